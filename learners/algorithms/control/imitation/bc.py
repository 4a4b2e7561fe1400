"""Behavioural cloning (Pomerleau, 1989): a policy learns an expert's actions from a recorded set, as classification or
regression. It never sees where its own mistakes lead; DAgger does."""

from __future__ import annotations

from collections.abc import Iterator

from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.imitation import expert_loss
from rollcall.learners.algorithms.control.imitation.bc_config import DECLARED, BCConfig
from rollcall.learners.batches.replay_batch import ReplayMinibatch, Transitions
from rollcall.learners.collators.recorded import whole


class BC:
    """argmin E[-log pi(a | s)] over the expert's states and actions."""

    Config = BCConfig
    name = "bc"
    needs = DECLARED.needs

    def __init__(self, config: BCConfig) -> None:
        self._config = config

    def check_models(self, models: Models) -> None:
        """Raises ValueError: for a policy with a memory, or a loss that the actions have not."""
        expert_loss.check(samples.actor_critic(models), algorithm=self.name, loss=self._config.loss)

    def prepare(self, context: Context, batch: Transitions) -> Transitions:
        return batch

    def minibatches(self, context: Context, prepared: Transitions) -> Iterator[ReplayMinibatch]:
        yield whole(prepared)

    def loss(self, context: Context, minibatch: ReplayMinibatch) -> Loss:
        config = self._config
        return expert_loss.imitation_loss(context, minibatch, loss=config.loss, entropy_coef=config.entropy_coef)


OFFLINE_METHOD = BC
