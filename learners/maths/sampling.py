"""The distribution a policy really samples from: logits after temperature, top-k and top-p. Pure functions; what the
generation engine does to its logits, done to the learner's, so that their log-probabilities are of one distribution.

A few rows are worked on at a time: beside the logits, and their gradient, there is never another array of their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

# Float32 numbers of one array of a few rows: what a processor's cache holds, what keeps a GPU busy.
_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}


class Processed(NamedTuple):
    """Of K sampled tokens under the processed distribution."""

    logprobs: Tensor  # [K]
    entropy: Tensor  # [K], in nats
    outside: Tensor  # bool [K]: the token lies outside the nucleus (it was at its edge when it was sampled)


class Distribution(NamedTuple):
    """How a distribution is made of logits."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all


def process_logits(
    *, logits: Tensor, targets: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> Processed:
    """Log-probabilities of the targets under softmax(logits / temperature), renormalised over the nucleus.

    The nucleus is the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al., 2020,
    arXiv:1904.09751), among the top_k most probable if that is given. A target outside it is counted into it, so that
    its log-probability is finite: in float arithmetic the edge of a nucleus is not the same for engine and learner.

    Args:
      logits: [K, V].
      targets: int64 [K].
      top_k: 0 for all.

    Raises:
      ValueError: when temperature or top_p is not above 0.
    """
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature={temperature}, top_p={top_p}: both must be above 0, top_p at most 1")
    distribution = Distribution(temperature, top_p, top_k)
    found = _Process.apply(logits, targets, distribution)  # type: ignore[no-untyped-call]
    return Processed(*cast(tuple[Tensor, Tensor, Tensor], found))


@torch.no_grad()
def processed(logits: Tensor, targets: Tensor, distribution: Distribution) -> Processed:
    """`process_logits` without a gradient."""
    logprobs, entropy = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
    outside = torch.zeros_like(targets, dtype=torch.bool)
    for rows in _few_rows(logits):
        chosen = targets[rows].unsqueeze(-1)
        every, outside[rows] = _log_softmax(logits[rows], chosen, distribution)
        logprobs[rows] = every.gather(-1, chosen).squeeze(-1)
        entropy[rows] = every.exp().mul_(every).nansum(-1).neg_()  # what has no probability has no share
    return Processed(logprobs, entropy, outside)


@torch.no_grad()
def logits_gradient(logits: Tensor, targets: Tensor, distribution: Distribution, gradient: Tensor) -> Tensor:
    """[K, V]: the gradient of the logits, of that of the targets' log-probabilities [K]: the token itself less the
    distribution, over the temperature. The entropy has none."""
    found = torch.empty_like(logits)
    for rows in _few_rows(logits):
        chosen = targets[rows].unsqueeze(-1)
        every, _ = _log_softmax(logits[rows], chosen, distribution)
        own = torch.zeros_like(every).scatter_(-1, chosen, gradient[rows].unsqueeze(-1))
        of_rows = torch.ops.aten._log_softmax_backward_data(own, every, -1, torch.float32)
        found[rows] = of_rows.div_(distribution.temperature) if distribution.temperature != 1.0 else of_rows
    return found


class _Context(Protocol):
    """torch's, as far as it is used."""

    distribution: Distribution
    saved_tensors: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _Process(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, logits: Tensor, targets: Tensor, distribution: Distribution
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, targets)
        ctx.distribution = distribution
        found = processed(logits, targets, distribution)
        ctx.mark_non_differentiable(found.entropy, found.outside)
        return found.logprobs, found.entropy, found.outside

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        return logits_gradient(*ctx.saved_tensors, ctx.distribution, gradient), None, None


def _few_rows(logits: Tensor) -> Iterator[slice]:
    size = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE["cuda"]) // max(1, logits.shape[-1]))
    for begin in range(0, len(logits), size):
        yield slice(begin, begin + size)


def _log_softmax(logits: Tensor, chosen: Tensor, distribution: Distribution) -> tuple[Tensor, Tensor]:
    """[k, V] of all tokens, float32; and whether the chosen ones [k, 1] lie outside the nucleus [k]."""
    temperature, top_p, top_k = distribution
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    if top_p == 1.0 and not 0 < top_k < logits.shape[-1]:
        return scaled.log_softmax(-1), torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    kept = _nucleus(scaled, top_p, top_k)
    outside = ~kept.gather(-1, chosen).squeeze(-1)
    kept.scatter_(-1, chosen, True)
    return scaled.masked_fill(~kept, -torch.inf).log_softmax(-1), outside


def _nucleus(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """bool [K, V]: the tokens that may be sampled. Top-k first, then top-p of what remains, as vLLM does."""
    ordered, order = logits.sort(dim=-1, descending=False)
    if 0 < top_k < logits.shape[-1]:
        ordered = ordered.masked_fill(ordered < ordered[:, -top_k].unsqueeze(-1), -torch.inf)
    mass = ordered.softmax(-1).cumsum(-1)
    removed = (mass <= 1.0 - top_p) | (ordered == -torch.inf)
    removed[:, -1] = False
    return torch.empty_like(removed).scatter_(-1, order, ~removed)
