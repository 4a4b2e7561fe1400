"""REINFORCE++ (Hu et al., 2025, arXiv:2501.03262): rewards to go with a KL penalty at every token, normalised over all
tokens of the batch instead of within a group, and a clipped surrogate. No critic, and one sample of a prompt will do.
REINFORCE++-baseline, of the same paper, subtracts the group's mean first; its KL is a loss of its own, by k2."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.language.token_algorithm import (
    BeforeUpdate,
    TokenMethod,
    clipped_surrogate,
    rewards_of_tokens,
)
from rollcall.learners.algorithms.language.token_settings import ClipHigh, ClipLow, TokenAlgorithmConfig
from rollcall.learners.maths.group_advantages import group_relative, rewards_to_tokens, token_gae, whiten
from rollcall.learners.maths.losses import KLEstimator


class ReinforcePPConfig(TokenAlgorithmConfig):
    """Settings of REINFORCE++ and, with group_baseline, of REINFORCE++-baseline."""

    name: Literal["reinforce_pp"] = Field(default="reinforce_pp", description="the algorithm")
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    group_baseline: bool = Field(
        default=False,
        description="subtract the mean reward of the prompt's samples first, and have the KL in the loss "
        "(REINFORCE++-baseline): for rewards whose level depends on the prompt; needs groups of two or more",
    )
    kl_estimator: KLEstimator = Field(
        default="k1",
        description="of the KL in the reward; k1: unbiased, as in the paper; k2 and k3 are never negative. In the loss "
        "of group_baseline k1 would do nothing: there it stands for the paper's k2",
    )

    @property
    def kl_in_loss(self) -> bool:
        return self.group_baseline

    @property
    def kl_of_loss(self) -> KLEstimator:
        return "k2" if self.kl_estimator == "k1" else self.kl_estimator

    @property
    def min_group_size(self) -> int:
        return 2 if self.group_baseline else 1


def advantages(config: ReinforcePPConfig, before: BeforeUpdate) -> Tensor:
    batch = before.batch
    if config.group_baseline:
        rewards = group_relative(rewards=before.rewards, group=batch.group, normalise_std=False)
        per_token = rewards_to_tokens(rewards=rewards, lengths=batch.lengths)
    else:
        per_token = rewards_of_tokens(before)
    # Rewards to go: no values, and lam = 1. The horizon is the sample, so there is no discount.
    rewards_to_go, _ = token_gae(
        rewards=per_token, values=torch.zeros_like(per_token), lengths=batch.lengths, discount=1.0, lam=1.0
    )
    return whiten(values=rewards_to_go)


ALGORITHM = ReinforcePP = TokenMethod(ReinforcePPConfig, advantages, clipped_surrogate)
