"""GRPO (Shao et al., 2024, arXiv:2402.03300): samples of one prompt are each other's baseline. With DAPO's choices as
defaults (Yu et al., 2025, arXiv:2503.14476: clip-higher, token mean) and Dr. GRPO's as settings (arXiv:2503.20783)."""

from __future__ import annotations

from torch import Tensor

from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from rollcall.learners.algorithms.language.token_algorithm import (
    LMPart,
    PolicyTerms,
    TokenMethod,
    clipped_surrogate,
    group_advantages,
)


def token_loss(config: GRPOConfig, part: LMPart, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    return clipped_surrogate(config, part, terms, config.dual_clip)


ALGORITHM = GRPO = TokenMethod(GRPOConfig, group_advantages, token_loss)
