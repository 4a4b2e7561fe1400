"""GSPO (Zheng et al., 2025, arXiv:2507.18071): the ratio, and its clip, are of a whole sequence, as the reward is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.language.token_algorithm import LMPart, PolicyTerms, TokenMethod, group_advantages
from rollcall.learners.algorithms.language.token_settings import LossKL, NormaliseStd, TokenAlgorithmConfig
from rollcall.learners.maths import losses, token_losses
from rollcall.learners.maths.token_losses import Aggregation


class GSPOConfig(TokenAlgorithmConfig):
    """Settings of GSPO. The clip is of a mean over many tokens, so it is hundreds of times narrower than GRPO's."""

    name: Literal["gspo"] = Field(default="gspo", description="the algorithm")
    clip_low: float = Field(
        default=3e-4, gt=0, le=1, description="how far a sequence's ratio may fall below 1 with a gradient"
    )
    clip_high: float = Field(
        default=4e-4, gt=0, description="how far it may rise above 1: a little more, so that rare sequences stay alive"
    )
    aggregation: Aggregation = Field(
        default="sequence_mean", description="sequence_mean, as in the paper: the unit of the loss is the sequence"
    )
    normalise_std: NormaliseStd = True
    kl_estimator: LossKL = "k3"


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
