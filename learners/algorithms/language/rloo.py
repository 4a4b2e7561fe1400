"""RLOO (Ahmadian et al., 2024, arXiv:2402.14740): REINFORCE with the mean reward of the prompt's other samples as the
baseline, and the KL to the reference in the reward of the whole sequence. On-policy its gradient is that of REINFORCE;
otherwise the ratio to the behaviour policy corrects it, clipped."""

from __future__ import annotations

from torch import Tensor

from rollcall.learners.algorithms.language.rloo_config import RLOOConfig
from rollcall.learners.algorithms.language.token_algorithm import BeforeUpdate, TokenMethod, clipped_surrogate
from rollcall.learners.maths.group_advantages import leave_one_out


def advantages(config: RLOOConfig, before: BeforeUpdate) -> Tensor:
    batch = before.batch
    rewards = before.rewards.index_add(0, batch.sequence, -before.reward_kl)
    return leave_one_out(rewards=rewards, group=batch.group)[batch.sequence]


ALGORITHM = RLOO = TokenMethod(RLOOConfig, advantages, clipped_surrogate)
