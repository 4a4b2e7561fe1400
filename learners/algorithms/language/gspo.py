"""GSPO (Zheng et al., 2025, arXiv:2507.18071): the ratio, and its clip, are of a whole sequence, as the reward is."""

from __future__ import annotations

from torch import Tensor

from rollcall.learners.algorithms.language.gspo_config import GSPOConfig
from rollcall.learners.algorithms.language.token_algorithm import LMPart, PolicyTerms, TokenMethod, group_advantages
from rollcall.learners.maths import losses, token_losses


def token_loss(config: GSPOConfig, part: LMPart, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    log_ratio = token_losses.sequence_log_ratios(
        logprobs=terms.logprobs,
        anchor_logprobs=terms.anchor_logprobs,
        sequence=part.sequence,
        num_sequences=part.num_samples,
        mask=terms.mask,
    )
    return losses.clipped_surrogate(
        ratio=log_ratio.exp(),
        advantages=part.targets.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )


ALGORITHM = GSPO = TokenMethod(GSPOConfig, group_advantages, token_loss, per_sequence=True)
