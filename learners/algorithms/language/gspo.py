"""GSPO (Zheng et al., 2025, arXiv:2507.18071): the ratio, and its clip, are of a whole sequence, as the reward is.
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
from rollcall.learners.maths.group_advantages import group_relative
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
    normalise_std: bool = Field(
        default=True,
        description="divide by the group's deviation; False (Dr. GRPO): hard and easy prompts count as others do",
    )
    kl_estimator: Literal["k2", "k3"] = Field(
        default="k3",
        description="of the KL in the loss; k3: never negative; k2: its gradient is the KL's; k1 would do nothing here",
    )


class GSPO:
    """The sequence ratio's denominator is the behaviour policy (or the proximal one, weighed likewise)."""

    Config = GSPOConfig
    name = "gspo"
    unit: Unit = "prompt"
    corrects_policy_lag = True
    needs_critic = False
    min_group_size = 2

    def __init__(self, config: GSPOConfig, *, max_tokens: int | None = None) -> None:
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
        rewards = token_algorithm.shaped_rewards(batch, self.config, max_tokens=self._max_tokens)
        advantages = group_relative(rewards=rewards, group=batch.group, normalise_std=self.config.normalise_std)
        tensors = token_algorithm.evaluate_policies(models, self.config, each_token)
        return Prepared(batch, TokenTargets(advantages[batch.sequence], **tensors))

    def minibatches(self, prepared: Prepared, generator: torch.Generator) -> Iterator[LMMinibatch]:
        return token_algorithm.minibatches(prepared, generator, self.config)

    def loss(self, models: Models, part: LMPart) -> tuple[Tensor, Metrics]:
        terms = token_algorithm.policy_terms(models, part, self.config)
        surrogate = token_losses.gspo_surrogate(
            logprobs=terms.logprobs,
            anchor_logprobs=terms.anchor_logprobs,
            advantages=part.targets.advantages,
            sequence=part.sequence,
            num_sequences=part.num_samples,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            mask=terms.kept,
        )
        return token_algorithm.policy_loss(part, terms, surrogate, self.config, kl_in_loss=True, per_sequence=True)

    def stops_early(self, metrics: Metrics) -> bool:
        return False


ALGORITHM = GSPO
