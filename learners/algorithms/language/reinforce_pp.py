"""REINFORCE++ (Hu et al., 2025, arXiv:2501.03262): rewards to go with a KL penalty at every token, normalised over all
tokens of the batch instead of within a group, and a clipped surrogate. No critic, and one sample of a prompt will do.
REINFORCE++-baseline, of the same paper, subtracts the group's mean first; its KL is a loss of its own, by k2.
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
from rollcall.learners.maths.group_advantages import group_relative, rewards_to_tokens, token_gae, whiten
from rollcall.learners.maths.token_losses import KLEstimator


class ReinforcePPConfig(TokenAlgorithmConfig):
    """Settings of REINFORCE++ and, with group_baseline, of REINFORCE++-baseline."""

    name: Literal["reinforce_pp"] = Field(default="reinforce_pp", description="the algorithm")
    clip_low: float = Field(default=0.2, gt=0, le=1, description="how far a ratio may fall below 1 with a gradient")
    clip_high: float = Field(default=0.2, gt=0, description="how far a ratio may rise above 1 with a gradient")
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


class ReinforcePP:
    """The ratio's denominator is the behaviour policy (or the proximal one, weighed): older experience stays sound."""

    Config = ReinforcePPConfig
    name = "reinforce_pp"
    unit: Unit = "prompt"
    corrects_policy_lag = True
    needs_critic = False
    min_group_size = 1

    def __init__(self, config: ReinforcePPConfig, *, max_tokens: int | None = None) -> None:
        token_algorithm.check_max_tokens(config, max_tokens)
        self.config = config
        self._max_tokens = max_tokens
        self.min_group_size = 2 if config.group_baseline else 1
        no_gradient = config.group_baseline and config.kl_estimator == "k1"
        self._loss_config = config.model_copy(update={"kl_estimator": "k2"}) if no_gradient else config

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_coef > 0

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}

    @torch.no_grad()
    def prepare(self, models: Models, batch: TokenBatch, each_token: EachToken) -> Prepared:
        in_reward = not self.config.group_baseline
        tensors = token_algorithm.evaluate_policies(models, self.config, each_token, kl_in_reward=in_reward)
        rewards = token_algorithm.shaped_rewards(batch, self.config, max_tokens=self._max_tokens)
        if self.config.group_baseline:
            rewards = group_relative(rewards=rewards, group=batch.group, normalise_std=False)
            per_token = rewards_to_tokens(rewards=rewards, lengths=batch.lengths)
        else:
            per_token = token_algorithm.rewards_of_turns(batch, rewards)
            per_token = per_token - token_algorithm.reward_kl(batch, tensors, self.config)
        # Rewards to go: no values, and lam = 1. The horizon is the sample, so there is no discount.
        rewards_to_go, _ = token_gae(
            rewards=per_token, values=torch.zeros_like(per_token), lengths=batch.lengths, discount=1.0, lam=1.0
        )
        return Prepared(batch, TokenTargets(whiten(values=rewards_to_go), **tensors))

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
        return token_algorithm.policy_loss(
            part, terms, surrogate, self._loss_config, kl_in_loss=self.config.group_baseline
        )

    def stops_early(self, metrics: Metrics) -> bool:
        return False


ALGORITHM = ReinforcePP
