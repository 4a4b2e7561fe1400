"""RLOO (Ahmadian et al., 2024, arXiv:2402.14740): REINFORCE with the mean reward of the prompt's other samples as the
baseline, and the KL to the reference in the reward of the whole sequence. On-policy its gradient is that of REINFORCE;
otherwise the ratio to the behaviour policy corrects it, clipped."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.language.token_algorithm import BeforeUpdate, TokenMethod, clipped_surrogate
from rollcall.learners.algorithms.language.token_settings import ClipHigh, ClipLow, RewardKL, TokenAlgorithmConfig
from rollcall.learners.maths.group_advantages import leave_one_out


class RLOOConfig(TokenAlgorithmConfig):
    """Settings of RLOO. A token mean is the paper's sum over tokens, up to a constant of the batch."""

    name: Literal["rloo"] = Field(default="rloo", description="the algorithm")
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    kl_estimator: RewardKL = "k1"

    @property
    def kl_in_loss(self) -> bool:
        return False


def advantages(config: RLOOConfig, before: BeforeUpdate) -> Tensor:
    batch = before.batch
    rewards = before.rewards.index_add(0, batch.sequence, -before.reward_kl)
    return leave_one_out(rewards=rewards, group=batch.group)[batch.sequence]


ALGORITHM = RLOO = TokenMethod(RLOOConfig, advantages, clipped_surrogate)
