"""How gymnasium trajectories become a batch: side by side, rewards scaled; and after the step the normaliser takes the
batch in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.learners.batches.gym_batch import GymBatch, stack_trajectories
from rollcall.learners.collators.collator import CollatorState
from rollcall.learners.models.networks import ActorCritic
from rollcall.learners.models.normaliser import RewardNormaliser


class ControlCollator:
    """A Collator of gymnasium trajectories."""

    def __init__(self, network: ActorCritic, reward_normaliser: RewardNormaliser | None = None) -> None:
        self._network = network
        self._reward_normaliser = reward_normaliser

    def collate(self, trajectories: Sequence[GymTrajectory], device: torch.device, *, step: int) -> GymBatch:
        """The batch on the learner's device, its rewards scaled where the policy says so."""
        batch = stack_trajectories(trajectories, device)
        if self._reward_normaliser is None:
            return batch
        return batch.with_rewards(self._reward_normaliser.update_and_scale(batch, trajectories))

    def metrics(self, batch: GymBatch) -> dict[str, float]:
        return {}

    def learned(self, batch: GymBatch, per_sample: Tensor | None) -> None:
        """After the step: the new statistics are published with the next version, so that at lag 0 actor and learner
        have used the same ones and the ratio was 1."""
        self._network.update_normaliser(batch.steps.observations, batch.steps.mask)

    def state(self) -> CollatorState:
        """Beside the statistics, which are weights."""
        if self._reward_normaliser is None:
            return CollatorState()
        return CollatorState({"reward_accumulators": self._reward_normaliser.accumulators()})

    def load_state(self, state: CollatorState) -> None:
        if self._reward_normaliser is not None:
            self._reward_normaliser.set_accumulators(state.values["reward_accumulators"])
