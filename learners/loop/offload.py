"""An optimiser in the host's memory: of what is trained, the GPU holds weights and gradients alone. A step takes the
gradients there and the weights back, and is made on the host's cores; the GPU waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rollcall.learners.loop.footprint import STEP_CHUNK
from rollcall.learners.loop.optimizer_config import OptimizerConfig
from rollcall.learners.loop.rules import ALL, PARAMETERS, Stretch, TorchRule


class HostRule:
    """A Rule, over float32 copies in the host's memory. Those on the device may be bfloat16: they are rounded from
    these."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        values: Sequence[Tensor],
        decayed: Sequence[Stretch],
        config: OptimizerConfig,
        *,
        learning_rate: float,
    ) -> None:
        """`parameters`: on the device, with their gradients; `values`: float32, what they are rounded from."""
        self._parameters = parameters
        self._masters = [nn.Parameter(_on_host(value).copy_(value.detach())) for value in values]
        for master in self._masters:
            master.grad = _on_host(master)
        self._rule = TorchRule(self._masters, decayed, config, learning_rate=learning_rate)
        self._scale: Tensor | None = None

    def set_learning_rate(self, learning_rate: float) -> None:
        self._rule.set_learning_rate(learning_rate)

    def scale_gradients(self, factor: Tensor) -> None:
        self._scale = factor

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        skipped = skip.cpu()
        if bool(skipped):
            return
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            assert parameter.grad is not None and master.grad is not None
            _copy(parameter.grad, master.grad)
        if self._scale is not None:
            self._rule.scale_gradients(self._scale.cpu())
            self._scale = None
        self._rule.step(skipped)
        self._bring_back()

    def names(self) -> Sequence[str]:
        return self._rule.names()

    def live(self, name: str) -> Sequence[Tensor]:
        return self._rule.live(name)

    def read(self, name: str, index: int, part: slice = ALL) -> Tensor:
        return self._rule.read(name, index, part).to(self._parameters[index].device)

    def write(self, name: str, index: int, value: Tensor) -> None:
        self._rule.write(name, index, value)
        if name == PARAMETERS:
            self._bring_back()

    def state_tensors(self) -> dict[str, Tensor]:
        on_device = {f"weights.{index}": parameter for index, parameter in enumerate(self._parameters)}
        return self._rule.state_tensors() | on_device

    @torch.no_grad()
    def _bring_back(self) -> None:
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            _copy(master, parameter)


def _on_host(like: Tensor) -> Tensor:
    """Zeros that a GPU reads and writes by itself, where there is one."""
    return torch.zeros(like.shape, pin_memory=torch.cuda.is_available())


def _copy(source: Tensor, goal: Tensor) -> None:
    """In pieces: where dtypes differ, a copy of each is made on the device."""
    theirs, ours = source.detach().view(-1), goal.detach().view(-1)
    for begin in range(0, len(ours), STEP_CHUNK):
        ours[begin : begin + STEP_CHUNK].copy_(theirs[begin : begin + STEP_CHUNK])
