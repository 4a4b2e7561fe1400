"""GRPO (Shao et al., 2024, arXiv:2402.03300): samples of one prompt are each other's baseline. With DAPO's choices as
defaults (Yu et al., 2025, arXiv:2503.14476: clip-higher, token mean) and Dr. GRPO's as settings (arXiv:2503.20783).
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


class GRPOConfig(TokenAlgorithmConfig):
    """Settings of GRPO, DAPO and Dr. GRPO: they differ in nothing else."""

    name: Literal["grpo"] = Field(default="grpo", description="the algorithm")
    clip_low: float = Field(default=0.2, gt=0, le=1, description="how far a ratio may fall below 1 with a gradient")
    clip_high: float = Field(
        default=0.28, gt=0, description="how far it may rise above 1; more than clip_low keeps rare tokens alive"
    )
    dual_clip: float | None = Field(
        default=None,
        gt=1,
        description="a ratio above it, the advantage negative, pushes no more (arXiv:1912.09729): older data has such",
    )
    normalise_std: bool = Field(
        default=True,
        description="divide by the group's deviation; False (Dr. GRPO): hard and easy prompts count as others do",
    )
    dynamic_sampling: bool = Field(
        default=False,
        description="groups whose rewards are all equal are dropped, others sampled in their place: every step has "
        "as many groups to learn from; costs samples",
    )
    kl_estimator: Literal["k2", "k3"] = Field(
        default="k3",
        description="of the KL in the loss; k3: never negative; k2: its gradient is the KL's; k1 would do nothing here",
    )


class GRPO:
    """The ratio's denominator is the behaviour policy (or the proximal one, weighed): older experience stays sound."""

    Config = GRPOConfig
    name = "grpo"
    unit: Unit = "prompt"
    corrects_policy_lag = True
    needs_critic = False
    min_group_size = 2

    def __init__(self, config: GRPOConfig, *, max_tokens: int | None = None) -> None:
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
        surrogate = token_losses.clipped_surrogate(
            logprobs=terms.logprobs,
            anchor_logprobs=terms.anchor_logprobs,
            advantages=part.targets.advantages,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            dual_clip=self.config.dual_clip,
        )
        return token_algorithm.policy_loss(part, terms, surrogate, self.config, kl_in_loss=True)

    def stops_early(self, metrics: Metrics) -> bool:
        return False


ALGORITHM = GRPO
