"""Adam over weights in bfloat16 that are stepped as float32, 12 bytes a parameter in place of 16: each weight's other
half lies beside it (models/halves.py), and gradients and their average are bfloat16. The average of their squares is
float32: a step changes it by a thousandth, which bfloat16 would round away for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rollcall.learners.loop.footprint import STEP_CHUNK
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig
from rollcall.learners.loop.optimizers import CONTROL_EPS
from rollcall.learners.loop.rules import ALL, PARAMETERS, Stretch, adam_step, shrink
from rollcall.learners.models.halves import joined, split_into


class MixedAdam:
    """A Rule, over bfloat16 tensors."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        rests: Sequence[Tensor],
        decayed: Sequence[Stretch],
        config: AdamConfig | AdamWConfig,
        *,
        learning_rate: float,
    ) -> None:
        """`parameters` have their gradients; `rests`: the other half of each; `decayed` as TorchRule's."""
        self._parameters = parameters
        self._weights = [parameter.detach().view(-1) for parameter in parameters]
        self._rests = [rest.view(-1) for rest in rests]
        self._config = config
        self._decayed = decayed if config.weight_decay else []
        self._learning_rate = learning_rate
        self._scale: Tensor | None = None
        self._step = torch.zeros((), device=parameters[0].device)
        self._exp_avg = [torch.zeros_like(weights) for weights in self._weights]
        self._exp_avg_sq = [torch.zeros_like(weights, dtype=torch.float32) for weights in self._weights]

    def set_learning_rate(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate

    def scale_gradients(self, factor: Tensor) -> None:
        self._scale = factor  # of the float32 that the step makes of them: they are rounded once

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        self._step.add_(1.0 - skip)
        for index, stretch, is_decayed in self._stretches():
            for begin in range(stretch.start, stretch.stop, STEP_CHUNK):
                self._step_chunk(index, slice(begin, min(begin + STEP_CHUNK, stretch.stop)), is_decayed, skip)
        self._scale = None

    def _step_chunk(self, index: int, chunk: slice, is_decayed: bool, skip: Tensor) -> None:
        weights, rest, config = self._weights[index][chunk], self._rests[index][chunk], self._config
        found = self._parameters[index].grad
        assert found is not None
        value, gradient = joined(weights, rest), found.view(-1)[chunk].float()
        average = self._exp_avg[index][chunk].float()
        if self._scale is not None:
            gradient.mul_(self._scale)
        if is_decayed:
            shrink([value], config.weight_decay * self._learning_rate, skip)
        adam_step(
            [value],
            [gradient],
            [average],
            [self._exp_avg_sq[index][chunk]],
            [self._step],
            lr=self._learning_rate,
            betas=(config.beta1, config.beta2),
            eps=CONTROL_EPS if config.eps is None else config.eps,
            skip=skip,
        )
        self._exp_avg[index][chunk].copy_(average)
        split_into(value, weights, rest)

    def _stretches(self) -> Iterator[tuple[int, slice, bool]]:
        """All of every tensor, as stretches that are decayed or not."""
        for index, weights in enumerate(self._weights):
            done = 0
            for which, stretch in self._decayed:
                if which == index:
                    yield index, slice(done, stretch.start), False
                    yield index, stretch, True
                    done = stretch.stop
            yield index, slice(done, weights.numel()), False

    def names(self) -> Sequence[str]:
        return [PARAMETERS, "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"]

    def live(self, name: str) -> Sequence[Tensor]:
        if name == "optimizer.step":
            return [self._step] * len(self._parameters)
        if name == PARAMETERS:
            return self._parameters
        flat = self._exp_avg if name == "optimizer.exp_avg" else self._exp_avg_sq
        return [tensor.view(parameter.shape) for tensor, parameter in zip(flat, self._parameters, strict=True)]

    def read(self, name: str, index: int, part: slice = ALL) -> Tensor:
        if name == PARAMETERS:
            return joined(self._weights[index][part], self._rests[index][part])
        return self.live(name)[index].view(-1)[part].float()

    @torch.no_grad()
    def write(self, name: str, index: int, value: Tensor) -> None:
        if name == PARAMETERS:
            split_into(value.to(self._step.device).view(-1), self._weights[index], self._rests[index])
        else:
            self.live(name)[index].copy_(value)

    def state_tensors(self) -> dict[str, Tensor]:
        tensors = {f"{name}.{index}": item for name in self.names() for index, item in enumerate(self.live(name))}
        return tensors | {f"rest.{index}": rest for index, rest in enumerate(self._rests)}
