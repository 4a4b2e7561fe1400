"""Between the learner, which does not know what it learns from, and control experience: trajectories become a batch,
rewards are scaled, and after the step the normaliser takes the batch in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.learners.algorithm import Algorithm, Models
from rollcall.learners.batches.gym_batch import GymBatch, stack_trajectories
from rollcall.learners.loop.collective import Collective
from rollcall.learners.models.networks import ActorCritic
from rollcall.learners.models.normaliser import RewardNormaliser


class ControlExperience:
    """What the learner asks of its experience, for gymnasium trajectories."""

    def __init__(self, network: ActorCritic, reward_normaliser: RewardNormaliser | None = None) -> None:
        self._network = network
        self._reward_normaliser = reward_normaliser

    def collate(self, trajectories: Sequence[GymTrajectory], device: torch.device, *, step: int) -> GymBatch:
        """The batch on the learner's device, its rewards scaled where the policy says so."""
        batch = stack_trajectories(trajectories, device)
        if self._reward_normaliser is None:
            return batch
        return batch.with_rewards(self._reward_normaliser.update_and_scale(batch, trajectories))

    def prepare(self, algorithm: Algorithm, models: Models, batch: GymBatch, collective: Collective) -> Any:
        return algorithm.prepare(models, batch)  # cheap enough for every process to do it all

    def metrics(self, batch: GymBatch) -> dict[str, float]:
        return {}

    def learned(self, batch: GymBatch) -> None:
        """After the step: the new statistics are published with the next version, so that at lag 0 actor and learner
        have used the same ones and the ratio was 1."""
        self._network.update_normaliser(batch.steps.observations, batch.steps.mask)

    def state(self) -> dict[str, Any]:
        """For the checkpoint, beside the statistics, which are weights."""
        if self._reward_normaliser is None:
            return {}
        return {"reward_accumulators": self._reward_normaliser.accumulators()}

    def load_state(self, state: dict[str, Any]) -> None:
        if self._reward_normaliser is not None:
            self._reward_normaliser.set_accumulators(state["reward_accumulators"])
