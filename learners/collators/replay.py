"""How control experience is kept, and how a learner step's minibatches are drawn from it. Tickets are committed once
their experience is in the buffer; how often it is drawn later the ledger does not ask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.learners.batches.gym_batch import stack_trajectories
from rollcall.learners.batches.replay_batch import ReplayBatch, Transitions
from rollcall.learners.collators.collator import CollatorState
from rollcall.learners.data.mapped import mapped_in
from rollcall.learners.data.priorities import LEAVES, Priorities
from rollcall.learners.data.replay import ReplayBuffer, in_memory
from rollcall.learners.data.replay_config import ReplayConfig
from rollcall.learners.data.replay_pages import ReplayPages


class TakesStatistics(Protocol):
    """A network that normalises what it observes."""

    def update_normaliser(self, observations: Mapping[str, Tensor], mask: Tensor) -> None: ...


@dataclass(frozen=True)
class _Drawn:
    """Minibatches whose slots are known, each gathered when its turn has come: memory holds one."""

    buffer: ReplayBuffer
    slots: Array  # [U, B]
    weights: Array | None
    n_step: int
    discount: float
    device: torch.device

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int) -> Transitions:
        weights = None if self.weights is None else self.weights[index]
        rows = self.buffer.transitions(self.slots[index], n_step=self.n_step, discount=self.discount, weights=weights)
        return rows.map(lambda array: torch.from_numpy(array).to(self.device, non_blocking=True))


class ReplayCollator:
    """A Collator that keeps what it is given. A learner step makes exactly `updates_per_env_step` gradient steps for
    each env step that came in, fractions carried over, and none for the first `learning_starts` env steps."""

    def __init__(
        self,
        config: ReplayConfig,
        *,
        discount: float,
        num_envs: int,
        seed: int,
        total_env_steps: int,
        steps_per_batch: int | None = None,
        network: TakesStatistics | None = None,
        stacked: Mapping[str, int] | None = None,
        directory: Path | None = None,
    ) -> None:
        """`num_envs`: of all shards; `total_env_steps`: of the run, over which importance weights reach full strength;
        `steps_per_batch`: env steps of a learner step, at the most; `stacked`: frames of the observations that are
        stacks, by name; `directory`: for storage=disk.

        Raises:
          ValueError: where the capacity has no room for a step of each env.
        """
        self._config = config
        self._discount = discount
        self._total_env_steps = total_env_steps
        self._network = network
        allocate = mapped_in(directory) if config.storage == "disk" and directory is not None else in_memory
        self.buffer = ReplayBuffer(capacity=config.capacity, num_envs=num_envs, stacked=stacked, allocate=allocate)
        self.pages = ReplayPages(self.buffer)
        self.priorities = None if config.prioritised is None else Priorities(config.prioritised, self.buffer.num_slots)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._updates_per_step = Fraction(str(config.updates_per_env_step))  # as it is written: 0.1 is a tenth
        self._num_samples: int | None = None
        if steps_per_batch is not None:
            self._num_samples = (math.ceil(self._updates_per_step * steps_per_batch) + 1) * config.batch_size
        self._env_steps = 0  # that came in
        self._owed = Fraction(0)  # of a gradient step, which the next env steps make whole

    def collate(self, trajectories: Sequence[GymTrajectory], device: torch.device, *, step: int) -> ReplayBatch:
        """Takes the trajectories in, and draws the minibatches that are due."""
        self._keep()
        config, before = self._config, max(self._env_steps, self._config.learning_starts)
        for trajectory in trajectories:
            self._add(trajectory)
        self._owed += self._updates_per_step * max(0, self._env_steps - before)
        due = int(self._owed)
        self._owed -= due
        slots = self._draw(due)
        drawn = _Drawn(
            self.buffer,
            slots,
            self._weights(slots),
            n_step=config.n_step,
            discount=self._discount,
            device=device,
        )
        return ReplayBatch(
            drawn=drawn,
            added=stack_trajectories([_as_acted(trajectory) for trajectory in trajectories], device),
            step=step,
            env_steps=self._env_steps,
            batch_size=config.batch_size,
            num_samples=self._num_samples,
        )

    def metrics(self, batch: ReplayBatch) -> dict[str, float]:
        """What is kept, and how old it was when it was drawn, of one draw in the mean."""
        size_bytes = self.buffer.size_bytes + (self.priorities.size_bytes if self.priorities is not None else 0)
        found = {
            "replay_transitions": float(self.buffer.num_transitions),
            "replay_bytes": float(size_bytes),
            "gradient_steps": float(len(batch.drawn)),
        }
        if len(batch.drawn):
            origin = self.buffer.origin(_slots(batch).reshape(-1))
            found["replay_age_versions"] = batch.step - float(origin.version.mean())
            found["replay_age_env_steps"] = batch.env_steps - float(origin.env_steps.mean())
            if self.priorities is not None:
                found["priority_evenness"] = self.priorities.evenness
        return found

    def sampled(self, batch: ReplayBatch) -> tuple[int, Array, Array]:
        """Of the steps with which the transitions begin."""
        slots = _slots(batch)
        origin = self.buffer.origin(np.unique(slots))
        pairs = np.unique(np.stack([origin.ticket, origin.attempt.astype(np.int64)]), axis=1)
        return slots.size, pairs[0], pairs[1]

    def learned(self, batch: ReplayBatch, per_sample: Tensor | None) -> None:
        """After the step: priorities, and the normaliser's statistics of what came in."""
        if self.priorities is not None and per_sample is not None:
            slots = _slots(batch).reshape(-1)
            self.priorities.set(slots, per_sample.cpu().numpy()[: len(slots)])
        if self._network is not None:
            self._network.update_normaliser(batch.added.steps.observations, batch.added.steps.mask)

    def state(self) -> CollatorState:
        """The buffer is in files of its own."""
        generator = self._generator.bit_generator.state
        values: dict[str, Any] = {"env_steps": self._env_steps, "owed": str(self._owed), "generator": generator}
        if self.priorities is not None:
            values["largest_priority"] = self.priorities.largest
        return CollatorState(values)

    def load_state(self, state: CollatorState) -> None:
        """Of a checkpoint; or of before the step that is taken back, with what it had added."""
        self.buffer.take_back()
        if self.priorities is not None:
            self.priorities.take_back()
            self.priorities.largest = float(state.values["largest_priority"])
        self._env_steps, self._owed = int(state.values["env_steps"]), Fraction(state.values["owed"])
        self._generator.bit_generator.state = state.values["generator"]

    def write_files(self, directory: Path) -> None:
        more = {} if self.priorities is None else {LEAVES: self.priorities.leaves}
        self.pages.write(directory, more)

    def read_files(self, checkpoint: Path) -> None:
        more = self.pages.read(checkpoint)
        if self.priorities is not None:
            self.priorities.load(more[LEAVES])

    def _add(self, trajectory: GymTrajectory) -> None:
        self._env_steps += trajectory.num_steps
        slots, begins = self.buffer.add(trajectory, env_steps=self._env_steps)
        self.pages.changed(slots)
        if self.priorities is None:
            return
        errors = trajectory.steps.td_errors
        if errors is not None:  # of the steps, which come first
            found = errors[trajectory.steps.mask]
            errors = np.concatenate([found, np.zeros(len(slots) - len(found), found.dtype)])
        self.priorities.add(slots, begins, errors)

    def _draw(self, number: int) -> Array:
        """[number, batch_size]"""
        size = self._config.batch_size
        if not number:
            return np.empty((0, size), np.int64)
        if self.priorities is None:
            return self.buffer.uniform(number * size, self._generator).reshape(number, size)
        return np.stack([self.priorities.draw(size, self._generator) for _ in range(number)])

    def _weights(self, slots: Array) -> Array | None:
        if self.priorities is None or not len(slots):
            return None
        number, done = self.buffer.num_transitions, self._env_steps / self._total_env_steps
        return np.stack([self.priorities.weights(row, num_transitions=number, done=done) for row in slots])

    def _keep(self) -> None:
        self.buffer.keep()
        if self.priorities is not None:
            self.priorities.keep()


def _slots(batch: ReplayBatch) -> Array:
    """[U, B]"""
    assert isinstance(batch.drawn, _Drawn), "a batch of this collator's"
    return batch.drawn.slots


def _as_acted(trajectory: GymTrajectory) -> GymTrajectory:
    """Without what some actors say of it, and others do not."""
    return replace(trajectory, unroll=trajectory.unroll.with_td_errors(None))
