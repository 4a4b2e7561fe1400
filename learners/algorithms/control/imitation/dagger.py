"""DAgger (Ross, Gordon and Bagnell, 2011, arXiv:1011.0686): the learner acts, an expert says of every state that it
sees what it would have done there, and the learner imitates all that was said so far. So it also learns what to do
where its own mistakes lead, which a recorded expert never shows."""

from __future__ import annotations

from collections.abc import Iterator

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.imitation import expert_loss
from rollcall.learners.algorithms.control.imitation.dagger_config import DECLARED, DAggerConfig
from rollcall.learners.batches.replay_batch import ReplayBatch, ReplayMinibatch


class DAgger:
    """The supervised loss over the aggregated labels. Which policy met a state does not matter to it, nor how old that
    policy is."""

    Config = DAggerConfig
    name = "dagger"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: DAggerConfig) -> None:
        self._config = config

    def check_models(self, models: Models) -> None:
        """Raises ValueError: for a policy with a memory, or a loss that the actions have not."""
        expert_loss.check(samples.actor_critic(models), algorithm=self.name, loss=self._config.loss)

    def prepare(self, context: Context, batch: ReplayBatch) -> ReplayBatch:
        return batch

    def minibatches(self, context: Context, prepared: ReplayBatch) -> Iterator[ReplayMinibatch]:
        return prepared.minibatches()

    def loss(self, context: Context, minibatch: ReplayMinibatch) -> Loss:
        config = self._config
        return expert_loss.imitation_loss(context, minibatch, loss=config.loss, entropy_coef=config.entropy_coef)


ALGORITHM = DAgger
