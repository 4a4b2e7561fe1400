"""DAgger (Ross, Gordon and Bagnell, 2011, arXiv:1011.0686): the learner acts, an expert says of every state that it
sees what it would have done there, and the learner imitates all that was said so far. So it also learns what to do
where its own mistakes lead, which a recorded expert never shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models, Needs
from rollcall.learners.algorithms.control import imitation, samples
from rollcall.learners.algorithms.control.imitation import EntropyCoef, LossName
from rollcall.learners.batches.replay_batch import ReplayBatch, ReplayMinibatch


class DAggerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["dagger"] = Field(default="dagger", description="the algorithm")
    expert: str = Field(
        min_length=1,
        description="who is imitated: a run (its directory, its name under runs/, or one of its checkpoints), or "
        "my_module:function, of one observation, which returns an action",
    )
    beta_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="in learner step i the expert acts at a step with the chance beta_decay^i, and the learner "
        "otherwise; 0: the expert acts in the first one alone",
    )
    acts: Literal["greedy", "sampled"] = Field(
        default="greedy", description="what the learner does where it acts: its likeliest action, or one drawn"
    )
    loss: LossName = "nll"
    entropy_coef: EntropyCoef = 0.0

    def beta(self, version: int) -> float:
        """The chance that the expert acts, while this version of the learner does otherwise."""
        return float(self.beta_decay**version)


class DAgger:
    """The supervised loss over the aggregated labels. Which policy met a state does not matter to it, nor how old that
    policy is."""

    Config = DAggerConfig
    name = "dagger"
    unit: Unit = "fragment"
    needs = Needs(replay=True, expert=True, corrects_policy_lag=True)

    def __init__(self, config: DAggerConfig) -> None:
        self._config = config

    def check_models(self, models: Models) -> None:
        """Raises ValueError: for a policy with a memory, or a loss that the actions have not."""
        imitation.check(samples.actor_critic(models), algorithm=self.name, loss=self._config.loss)

    def prepare(self, context: Context, batch: ReplayBatch) -> ReplayBatch:
        return batch

    def minibatches(self, context: Context, prepared: ReplayBatch) -> Iterator[ReplayMinibatch]:
        return prepared.minibatches()

    def loss(self, context: Context, minibatch: ReplayMinibatch) -> Loss:
        config = self._config
        return imitation.imitation_loss(context, minibatch, loss=config.loss, entropy_coef=config.entropy_coef)


ALGORITHM = DAgger
