"""PPO for language models (Ouyang et al., 2022, arXiv:2203.02155): a critic values the state before each token, so that
credit differs within a sample; the KL to the reference is in the reward of each token.
This file must never know where batches come from, nor what steps the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, cast

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
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows
from rollcall.learners.maths import losses, token_losses
from rollcall.learners.maths.group_advantages import token_gae, whiten
from rollcall.learners.maths.token_losses import KLEstimator


class LMPPOConfig(TokenAlgorithmConfig):
    """Settings of PPO over tokens."""

    name: Literal["lm_ppo"] = Field(default="lm_ppo", description="the algorithm")
    discount: float = Field(
        default=1.0, ge=0, le=1, description="1: a reward at the end is worth the same at any token"
    )
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    clip_low: float = Field(default=0.2, gt=0, le=1, description="how far a ratio may fall below 1 with a gradient")
    clip_high: float = Field(default=0.2, gt=0, description="how far a ratio may rise above 1 with a gradient")
    value_clip_range: float | None = Field(
        default=None,
        gt=0,
        description="how far a value may move in one batch, in units of rewards; None: without bound",
    )
    value_coef: float = Field(
        default=0.5, ge=0, description="weight of the value loss: the critic shares the gradient clip with the policy"
    )
    kl_estimator: KLEstimator = Field(
        default="k1", description="of the KL in the reward; k1: unbiased, as in the paper; k2 and k3 are never negative"
    )


class LMPPO:
    """The ratio's denominator is the behaviour policy (or the proximal one, weighed): older experience stays sound."""

    Config = LMPPOConfig
    name = "lm_ppo"
    unit: Unit = "prompt"
    corrects_policy_lag = True
    needs_critic = True
    min_group_size = 1

    def __init__(self, config: LMPPOConfig, *, max_tokens: int | None = None) -> None:
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
        per_token = token_algorithm.rewards_of_turns(batch, rewards)
        per_token = per_token - token_algorithm.reward_kl(batch, tensors, self.config)
        values = each_token(lambda rows: _values(models, rows))
        advantages, returns = token_gae(
            rewards=per_token,
            values=values,
            lengths=batch.lengths,
            discount=self.config.discount,
            lam=self.config.gae_lambda,
        )
        targets = TokenTargets(whiten(values=advantages), returns=returns, proximal_values=values, **tensors)
        return Prepared(batch, targets)

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
        loss, metrics = token_algorithm.policy_loss(part, terms, surrogate, self.config, kl_in_loss=False)
        value_loss = self._value_loss(_values(models, part.rows), part)
        metrics["value_loss"] = value_loss.detach()
        return loss + self.config.value_coef * value_loss, metrics

    def stops_early(self, metrics: Metrics) -> bool:
        return False

    def _value_loss(self, values: Tensor, part: LMPart) -> Tensor:
        """Over all tokens, also those that the policy's loss leaves out: their states have values all the same."""
        returns, before, one = part.targets.returns, part.targets.proximal_values, part.weights.new_ones(())
        assert returns is not None and before is not None
        clip_range = self.config.value_clip_range
        if clip_range is None:
            return losses.squared_value_loss(values=values, returns=returns, mask=part.weights, num_valid=one)
        return losses.clipped_value_loss(
            values=values,
            behaviour_values=before,
            returns=returns,
            clip_range=clip_range,
            mask=part.weights,
            num_valid=one,
        )


def _values(models: Models, rows: TokenRows) -> Tensor:
    return cast(Tensor, models["critic"](rows))


ALGORITHM = LMPPO
