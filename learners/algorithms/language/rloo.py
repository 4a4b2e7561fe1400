"""RLOO (Ahmadian et al., 2024, arXiv:2402.14740): REINFORCE with the mean reward of the prompt's other samples as the
baseline, and the KL to the reference in the reward of the whole sequence.
This file must never know where batches come from, nor what steps the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.algorithms.language import token_algorithm
from rollcall.learners.algorithms.language.token_algorithm import (
    EachToken,
    LMMinibatch,
    LMPart,
    Prepared,
    TokenAlgorithmConfig,
    TokenTargets,
)
from rollcall.learners.batches.token_batch import TokenBatch
from rollcall.learners.maths import token_losses
from rollcall.learners.maths.group_advantages import leave_one_out
from rollcall.learners.maths.token_losses import KLEstimator


class RLOOConfig(TokenAlgorithmConfig):
    """Settings of RLOO. A token mean is the paper's sum over tokens, up to a constant of the batch."""

    name: Literal["rloo"] = Field(default="rloo", description="the algorithm")
    clip_low: float = Field(default=0.2, gt=0, le=1, description="how far a ratio may fall below 1 with a gradient")
    clip_high: float = Field(default=0.2, gt=0, description="how far a ratio may rise above 1 with a gradient")
    kl_estimator: KLEstimator = Field(
        default="k1", description="of the KL in the reward; k1: unbiased, as in the paper; k2 and k3 are never negative"
    )


class RLOO:
    """On-policy its gradient is that of REINFORCE; otherwise the ratio to the behaviour policy corrects it, clipped."""

    Config = RLOOConfig
    name = "rloo"
    unit: Unit = "prompt"
    corrects_policy_lag = True
    needs_critic = False
    min_group_size = 2

    def __init__(self, config: RLOOConfig, *, max_tokens: int | None = None) -> None:
        token_algorithm.check_max_tokens(config, max_tokens)
        self.config = config
        self._max_tokens = max_tokens

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_coef > 0

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}

    @torch.no_grad()
    def prepare(self, models: Models, batch: TokenBatch, each_token: EachToken) -> Prepared:
        tensors = token_algorithm.evaluate_policies(models, self.config, each_token, kl_in_reward=True)
        rewards = token_algorithm.shaped_rewards(batch, self.config, max_tokens=self._max_tokens)
        rewards = rewards.index_add(0, batch.sequence, -token_algorithm.reward_kl(batch, tensors, self.config))
        advantages = leave_one_out(rewards=rewards, group=batch.group)
        return Prepared(batch, TokenTargets(advantages[batch.sequence], **tensors))

    def minibatches(self, prepared: Prepared, generator: torch.Generator) -> Iterator[LMMinibatch]:
        return token_algorithm.minibatches(prepared, generator, self.config)

    def loss(self, models: Models, part: LMPart) -> tuple[Tensor, Metrics]:
        terms = token_algorithm.policy_terms(models, part, self.config)
        surrogate = token_losses.clipped_surrogate(
            logprobs=terms.logprobs,
            anchor_logprobs=terms.anchor_logprobs,
            advantages=part.targets.advantages,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
        )
        return token_algorithm.policy_loss(part, terms, surrogate, self.config, kl_in_loss=False)

    def stops_early(self, metrics: Metrics) -> bool:
        return False


ALGORITHM = RLOO
