"""PPO for language models (Ouyang et al., 2022, arXiv:2203.02155): a critic values the state before each token, so that
credit differs within a sample; the KL to the reference is in the reward of each token."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field, model_validator
from torch import Tensor

from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.algorithms.language.token_algorithm import (
    BeforeUpdate,
    LMPart,
    TokenMethod,
    clipped_surrogate,
    rewards_of_tokens,
)
from rollcall.learners.algorithms.language.token_settings import ClipHigh, ClipLow, RewardKL, TokenAlgorithmConfig
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.maths import losses
from rollcall.learners.maths.group_advantages import token_gae, whiten


class LMPPOConfig(TokenAlgorithmConfig):
    """Settings of PPO over tokens."""

    name: Literal["lm_ppo"] = Field(default="lm_ppo", description="the algorithm")
    discount: float = Field(
        default=1.0, ge=0, le=1, description="1: a reward at the end is worth the same at any token"
    )
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    value_clip_range: float | None = Field(
        default=None,
        gt=0,
        description="how far a value may move in one batch, in units of rewards; None: without bound",
    )
    value_coef: float = Field(
        default=0.5, ge=0, description="weight of the value loss: the critic shares the gradient clip with the policy"
    )
    kl_estimator: RewardKL = "k1"
    kl_target: float | None = Field(
        default=None,
        gt=0,
        description="nats a token: kl_coef is adapted after each batch so that kl_reference stays near it (Ziegler et "
        "al., 2019, arXiv:1909.08593); None: kl_coef stays",
    )

    @model_validator(mode="after")
    def _adapts_something(self) -> LMPPOConfig:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(f"kl_target={self.kl_target} with kl_coef=0: there is no weight to adapt: set kl_coef=0.1")
        return self

    @property
    def kl_goal(self) -> float | None:
        return self.kl_target

    @property
    def kl_in_loss(self) -> bool:
        return False

    @property
    def min_group_size(self) -> int:
        return 1


def advantages(config: LMPPOConfig, before: BeforeUpdate) -> dict[str, Tensor]:
    values = before.evaluate(lambda rows: _values(before.models, rows))
    found, returns = token_gae(
        rewards=rewards_of_tokens(before),
        values=values,
        lengths=before.batch.lengths,
        discount=config.discount,
        lam=config.gae_lambda,
    )
    return {"advantages": whiten(values=found), "returns": returns, "proximal_values": values}


def value_loss(config: LMPPOConfig, models: Models, part: LMPart) -> tuple[Tensor, Metrics]:
    """Over all tokens, also those that the policy's loss leaves out: their states have values all the same."""
    values, returns = _values(models, part.rows), part.targets.returns
    assert returns is not None
    over = {"mask": part.weights, "num_valid": part.weights.new_ones(())}
    if config.value_clip_range is None:
        loss = losses.squared_value_loss(values=values, returns=returns, **over)
    else:
        before, clip_range = part.targets.proximal_values, config.value_clip_range
        assert before is not None
        loss = losses.clipped_value_loss(
            values=values, behaviour_values=before, returns=returns, clip_range=clip_range, **over
        )
    return config.value_coef * loss, {"value_loss": loss.detach()}


def _values(models: Models, rows: TokenRows) -> Tensor:
    return cast(Tensor, models["critic"](rows))


ALGORITHM = LMPPO = TokenMethod(LMPPOConfig, advantages, clipped_surrogate, extra_loss=value_loss, critic=True)
