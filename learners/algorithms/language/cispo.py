"""CISPO (MiniMax-M1, 2025, arXiv:2506.13585): REINFORCE with group-relative advantages and a clipped importance weight.
No token loses its gradient: those that a clipped surrogate drops first are the rare ones that turn an argument."""

from __future__ import annotations

from torch import Tensor

from rollcall.learners.algorithms.language.cispo_config import CISPOConfig
from rollcall.learners.algorithms.language.token_algorithm import LMPart, PolicyTerms, TokenMethod, group_advantages
from rollcall.learners.maths import token_losses


def token_loss(config: CISPOConfig, part: LMPart, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    return token_losses.cispo_loss(
        logprobs=terms.logprobs,
        anchor_logprobs=terms.anchor_logprobs,
        advantages=part.targets.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )


ALGORITHM = CISPO = TokenMethod(CISPOConfig, group_advantages, token_loss)
