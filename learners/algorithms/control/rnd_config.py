"""The settings of RND, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.control.ppo_config import PPOSettings
from rollcall.learners.declared import Declared, Needs

RND_NETWORKS = "rnd"


class RNDConfig(PPOSettings):
    """PPO's settings are meant for both rewards, `discount` for the env's alone."""

    name: Literal["rnd"] = Field(default="rnd", description="the algorithm")
    normalise_advantages: Literal["minibatch", "none"] = Field(
        default="minibatch", description="the sum of both: to mean 0, deviation 1 over these steps"
    )
    intrinsic_discount: float = Field(
        default=0.99, ge=0, lt=1, description="of what novelty pays: no episode's end cuts it"
    )
    intrinsic_coef: float = Field(default=1.0, ge=0, description="weight of advantages by novelty")
    extrinsic_coef: float = Field(default=2.0, ge=0, description="weight of advantages by the env's own reward")
    predictor_share: float = Field(
        default=0.25, gt=0, le=1, description="of a minibatch's steps the predictor learns from: what is new stays so"
    )


DECLARED = Declared(RNDConfig, Needs(critic=True, corrects_policy_lag=True, networks=(RND_NETWORKS,)), unit="fragment")
