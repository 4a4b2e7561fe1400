"""The settings of DQN, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount
from rollcall.learners.declared import Declared, Needs


class DQNConfig(BaseModel):
    """What is kept, and how often it is drawn, is in the section `replay`; the network's head in `policy.q`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["dqn"] = Field(default="dqn", description="the algorithm")
    discount: Discount = 0.99
    double: bool = Field(
        default=True,
        description="the best next action is the learning network's choice, its value the following one's word "
        "(van Hasselt et al., 2016): the largest of noisy values is too large",
    )
    loss: Literal["huber", "mse"] = Field(default="huber", description="of TD errors; huber: large ones weigh less")
    target_every: int = Field(default=1000, ge=1, description="gradient steps between moves of the following network")
    target_rate: float = Field(
        default=1.0, gt=0, le=1, description="how far it moves then: 1 copies, less averages (with target_every=1)"
    )
    epsilon: float = Field(default=0.05, ge=0, le=1, description="how often actors take any action, in the end")
    epsilon_steps: int = Field(default=10_000, ge=0, description="env steps over which it falls there from 1")
    epsilon_spread: float = Field(
        default=7.0,
        ge=0,
        description="with policy.q.epsilons=N: the i-th is epsilon^(1 + spread * i / (N - 1)) (Horgan et al., 2018)",
    )


DECLARED = Declared(
    DQNConfig, Needs(target_networks=("actor_critic",), replay=True, corrects_policy_lag=True), unit="fragment"
)
