"""How the optimiser's step is made of parameters, gradients and its state, wherever they lie: here torch's optimisers
over what lies on the learner's device; in mixed.py Adam over bfloat16 weights, in offload.py in the host's memory. A
step that is to be skipped leaves all of it as it was, and a GPU need not be waited for to know that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rollcall.learners.loop.footprint import STEP_CHUNK
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, OptimizerConfig
from rollcall.learners.loop.optimizers import CONTROL_EPS, allocate_state, build_optimizer

PARAMETERS = "parameters"  # as a checkpoint calls them; an optimiser's state is `optimizer.<its name>`


ALL = slice(None)
Stretch = tuple[int, slice]  # which of several tensors, and which of its elements


class Rule(Protocol):
    """An update rule over a few tensors: the flat parameter of a learner, or its pieces."""

    def set_learning_rate(self, learning_rate: float) -> None: ...

    def scale_gradients(self, factor: Tensor) -> None:
        """Before the next step."""

    def step(self, skip: Tensor) -> None:
        """Along the gradients; where `skip`, 0-dim, is 1.0 and not 0.0, all stays as it is to the bit."""

    def names(self) -> Sequence[str]:
        """Of what there is for each of the tensors: `parameters`, `optimizer.exp_avg` and so on."""

    def live(self, name: str) -> Sequence[Tensor]:
        """One per tensor, to be looked at; a count of steps is 0-dim."""

    def read(self, name: str, index: int, part: slice = ALL) -> Tensor:
        """Flat, float32: a copy, or what lies so anyway."""

    def write(self, name: str, index: int, value: Tensor) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]:
        """All that a step changes, live: to be copied, and copied back."""


class AdamState(NamedTuple):
    """Of a flat parameter [P]."""

    steps: Tensor  # 0-dim
    mean: Tensor  # [P], of the gradients
    square: Tensor  # [P], of their squares


class TorchRule:
    """Torch's update rules, over float32 tensors on one device. Adam's is called without its optimiser, whose making
    alone imports torch's compiler: two seconds of CPU time in every process that learns."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decayed: Sequence[Stretch],
        config: OptimizerConfig,
        *,
        learning_rate: float,
    ) -> None:
        """`parameters` have their gradients; `decayed`: of which weight decay takes its share, in order."""
        self._parameters = parameters
        self._decayed = [parameters[index].detach().view(-1)[stretch] for index, stretch in decayed]
        self._decay: Tensor | None = None  # [P]: of each weight of a single parameter
        if config.weight_decay and len(parameters) == 1:
            self._decay = torch.zeros_like(parameters[0].detach().view(-1))
            for _, stretch in decayed:
                self._decay[stretch] = config.weight_decay
        self._config = config
        self._learning_rate = learning_rate
        self._optimizer: torch.optim.Optimizer | None = None
        if isinstance(config, AdamConfig | AdamWConfig):
            self._states = [_adam_state(parameter) for parameter in parameters]
        else:
            self._optimizer = build_optimizer(parameters, config, learning_rate=learning_rate)
            allocate_state(self._optimizer)
            self._states = [self._optimizer.state[parameter] for parameter in parameters]

    @property
    def is_adam(self) -> bool:
        return isinstance(self._config, AdamConfig | AdamWConfig)

    @property
    def learning_rate(self) -> float:
        return self._learning_rate

    def set_learning_rate(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        for group in self._optimizer.param_groups if self._optimizer else ():
            group["lr"] = learning_rate

    def scale_gradients(self, factor: Tensor) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        config, shrinkage = self._config, self._config.weight_decay * self._learning_rate
        if not isinstance(config, AdamConfig | AdamWConfig):
            assert self._optimizer is not None
            if not bool(skip):  # a GPU is waited for: these know no other way
                shrink(self._decayed, shrinkage)
                self._optimizer.step()
            return
        shrink(self._decayed, shrinkage, skip)
        steps = [state["step"] for state in self._states]
        torch._foreach_add_(steps, 1.0 - skip)
        adam_step(
            self._parameters,
            [parameter.grad for parameter in self._parameters if parameter.grad is not None],
            [state["exp_avg"] for state in self._states],
            [state["exp_avg_sq"] for state in self._states],
            steps,
            lr=self._learning_rate,
            betas=(config.beta1, config.beta2),
            eps=CONTROL_EPS if config.eps is None else config.eps,
            skip=skip,
        )

    def adam_state(self) -> AdamState:
        """Of a single flat parameter; live."""
        (state,) = self._states
        return AdamState(state["step"], state["exp_avg"], state["exp_avg_sq"])

    def traced_step(
        self, weights: Tensor, before: AdamState, gradient: Tensor, *, learning_rate: Tensor, finite: Tensor
    ) -> tuple[Tensor, AdamState]:
        """Adam's, of a single flat parameter, in operations that a compiler can join with those before it. Returns what
        `weights`, its values, and the state `before` become. `finite`, 0-dim: where it is False, they stay."""
        config = self._config
        assert isinstance(config, AdamConfig | AdamWConfig)
        steps = before.steps + 1.0
        mean = torch.lerp(before.mean, gradient, 1.0 - config.beta1)
        square = config.beta2 * before.square + (1.0 - config.beta2) * gradient.square()
        # Divided by what is missing to the averages, which began at 0.
        size = learning_rate / (1.0 - config.beta1**steps)
        deviation = (square / (1.0 - config.beta2**steps)).sqrt() + (CONTROL_EPS if config.eps is None else config.eps)
        kept = weights if self._decay is None else weights * (1.0 - learning_rate * self._decay)
        after = AdamState(steps, mean, square)
        stepped = AdamState(*(torch.where(finite, new, old) for new, old in zip(after, before, strict=True)))
        return torch.where(finite, kept - size * mean / deviation, weights), stepped

    def names(self) -> Sequence[str]:
        return [PARAMETERS, *(f"optimizer.{name}" for name in self._states[0])]

    def live(self, name: str) -> Sequence[Tensor]:
        if name == PARAMETERS:
            return self._parameters
        return [state[name.removeprefix("optimizer.")] for state in self._states]

    def read(self, name: str, index: int, part: slice = ALL) -> Tensor:
        return self.live(name)[index].detach().view(-1)[part]

    @torch.no_grad()
    def write(self, name: str, index: int, value: Tensor) -> None:
        self.live(name)[index].copy_(value)

    def state_tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{index}": item for name in self.names() for index, item in enumerate(self.live(name))}


def _adam_state(parameter: Tensor) -> dict[str, Tensor]:
    """Before the first step; by torch's names, and in its order."""
    mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": mean, "exp_avg_sq": square}


def adam_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    skip: Tensor,
) -> None:
    """Torch's fused Adam without its optimiser: of the 0.1 ms that Optimizer.step takes for one small flat parameter,
    nine tenths are its hooks and checks (measured), a seventh of a small network's whole update. `steps`: with this."""
    torch._fused_adam_(
        list(parameters),
        list(gradients),
        list(exp_avgs),
        list(exp_avg_sqs),
        [],
        list(steps),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
        found_inf=skip,
    )


def shrink(parameters: Sequence[Tensor], share: float, skip: Tensor | None = None) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101): of the weights, not of their gradients,
    so that what Adam makes of a gradient does not scale it."""
    if share and parameters:
        kept = torch.full((), 1.0 - share) if skip is None else torch.where(skip > 0, 1.0, 1.0 - share)
        torch._foreach_mul_(list(parameters), kept)


def gradient_norm(gradient: Tensor) -> Tensor:
    """Of a flat gradient, 0-dim float32."""
    norm: Tensor
    if gradient.dtype == torch.float32:
        norm = torch.linalg.vector_norm(gradient)
        return norm
    parts = (gradient[begin : begin + STEP_CHUNK] for begin in range(0, max(1, len(gradient)), STEP_CHUNK))
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part.float()) for part in parts]))
    return norm


def decays(name: str, parameter: Tensor) -> bool:
    """Weights of matrices and embeddings; not biases, nor the scales of normalisations, which are not many numbers and
    have to be as large as they are."""
    return parameter.dim() >= 2 and "bias" not in name
