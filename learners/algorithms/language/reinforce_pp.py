"""REINFORCE++ (Hu et al., 2025, arXiv:2501.03262): rewards to go with a KL penalty at every token, normalised over all
tokens of the batch instead of within a group, and a clipped surrogate. No critic, and one sample of a prompt will do.
REINFORCE++-baseline, of the same paper, subtracts the group's mean first; its KL is a loss of its own, by k2."""

from __future__ import annotations

import torch
from torch import Tensor

from rollcall.learners.algorithms.language.reinforce_pp_config import ReinforcePPConfig
from rollcall.learners.algorithms.language.token_algorithm import (
    BeforeUpdate,
    TokenMethod,
    clipped_surrogate,
    rewards_of_tokens,
)
from rollcall.learners.maths.group_advantages import group_relative, rewards_to_tokens, token_gae, whiten


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
