"""The distribution a policy really samples from: logits after temperature, top-k and top-p. Pure functions; what the
generation engine does to its logits, done to the learner's, so that their log-probabilities are of one distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Processed(NamedTuple):
    """Of K sampled tokens under the processed distribution."""

    logprobs: Tensor  # [K]
    entropy: Tensor  # [K], in nats
    outside: Tensor  # bool [K]: the token lies outside the nucleus (it was at its edge when it was sampled)


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
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    chosen = targets.unsqueeze(-1)
    outside = torch.zeros_like(targets, dtype=torch.bool)
    if top_p < 1.0 or 0 < top_k < logits.shape[-1]:
        with torch.no_grad():
            kept = _nucleus(scaled, top_p, top_k)
            outside = ~kept.gather(-1, chosen).squeeze(-1)
            kept.scatter_(-1, chosen, True)
        scaled = scaled.masked_fill(~kept, -torch.inf)
    logprobs = scaled.log_softmax(-1)
    with torch.no_grad():
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return Processed(logprobs.gather(-1, chosen).squeeze(-1), entropy, outside)


def _nucleus(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """bool [K, V]: the tokens that may be sampled. Top-k first, then top-p of what remains, as vLLM does."""
    ordered, order = logits.sort(dim=-1, descending=False)
    if 0 < top_k < logits.shape[-1]:
        ordered = ordered.masked_fill(ordered < ordered[:, -top_k].unsqueeze(-1), -torch.inf)
    mass = ordered.softmax(-1).cumsum(-1)
    removed = (mass <= 1.0 - top_p) | (ordered == -torch.inf)
    removed[:, -1] = False
    return torch.empty_like(removed).scatter_(-1, order, ~removed)
