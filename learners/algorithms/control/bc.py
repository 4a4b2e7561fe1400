"""Behavioural cloning (Pomerleau, 1989): a policy learns an expert's actions from a recorded set, as classification or
regression. It never sees where its own mistakes lead; DAgger does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithm import Context, Loss, Models, Needs
from rollcall.learners.algorithms.control import imitation, samples
from rollcall.learners.algorithms.control.imitation import EntropyCoef, LossName
from rollcall.learners.batches.replay_batch import ReplayMinibatch, Transitions
from rollcall.learners.collators.recorded import whole


class BCConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["bc"] = Field(default="bc", description="the algorithm")
    loss: LossName = "nll"
    entropy_coef: EntropyCoef = 0.0


class BC:
    """argmin E[-log pi(a | s)] over the expert's states and actions."""

    Config = BCConfig
    name = "bc"
    needs = Needs()

    def __init__(self, config: BCConfig) -> None:
        self._config = config

    def check_models(self, models: Models) -> None:
        """Raises ValueError: for a policy with a memory, or a loss that the actions have not."""
        imitation.check(samples.actor_critic(models), algorithm=self.name, loss=self._config.loss)

    def prepare(self, context: Context, batch: Transitions) -> Transitions:
        return batch

    def minibatches(self, context: Context, prepared: Transitions) -> Iterator[ReplayMinibatch]:
        yield whole(prepared)

    def loss(self, context: Context, minibatch: ReplayMinibatch) -> Loss:
        config = self._config
        return imitation.imitation_loss(context, minibatch, loss=config.loss, entropy_coef=config.entropy_coef)


OFFLINE_METHOD = BC
