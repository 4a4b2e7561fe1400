"""The settings of PPO for language models, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rollcall.learners.algorithms.language.token_settings import (
    KL_GAIN,
    ClipHigh,
    ClipLow,
    KLGoal,
    RewardKL,
    TokenAlgorithmConfig,
)
from rollcall.learners.declared import Declared, Needs


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
    kl_gain: float = Field(
        default=KL_GAIN,
        gt=0,
        le=4,
        description="of kl_target: a batch's relative error, at most a fifth, moves kl_coef by this share of it. 0.1 "
        "(Ziegler et al.): at most 2 % a batch, for thousands of them; a run of a hundred learner steps needs 0.5",
    )
    ptx_coef: float = Field(
        default=0.0,
        ge=0,
        description="weight of the likelihood of demonstrations beside each batch, a mean over their tokens (PPO-ptx), "
        "against forgetting; 0: none are read",
    )
    ptx_batch_size: int = Field(
        default=64, ge=1, description="those demonstrations: of one learner step, divided among its minibatches"
    )
    ptx_file: str | None = Field(
        default=None,
        description="a file of them, one JSON object a line: prompt and answer, messages, or text, of which all is "
        "learnt; none: the task's own",
    )

    @model_validator(mode="after")
    def _adapts_something(self) -> LMPPOConfig:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(f"kl_target={self.kl_target} with kl_coef=0: there is no weight to adapt: set kl_coef=0.1")
        if self.kl_target is None and self.kl_gain != KL_GAIN:
            raise ValueError(f"kl_gain={self.kl_gain} without kl_target: nothing is adapted: set kl_target=0.3")
        return self

    @model_validator(mode="after")
    def _mixes_something(self) -> LMPPOConfig:
        if self.ptx_file is not None and not self.ptx_coef:
            raise ValueError(f"ptx_file={self.ptx_file!r} with ptx_coef=0: nothing is learnt from it: set ptx_coef=0.1")
        if self.ptx_coef and self.ptx_batch_size < self.num_minibatches:
            raise ValueError(
                f"ptx_batch_size={self.ptx_batch_size} with num_minibatches={self.num_minibatches}: every minibatch "
                "needs a demonstration: raise it"
            )
        return self

    @property
    def supervised_coef(self) -> float:
        return self.ptx_coef

    @property
    def kl_goal(self) -> KLGoal | None:
        return None if self.kl_target is None else KLGoal(self.kl_target, self.kl_gain)

    @property
    def kl_in_loss(self) -> bool:
        return False

    @property
    def min_group_size(self) -> int:
        return 1


DECLARED = Declared(LMPPOConfig, Needs(critic=True, corrects_policy_lag=True), unit="prompt")
