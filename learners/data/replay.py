"""Kept experience: a ring of env steps, from which transitions of n steps are drawn. Numpy alone; who samples, how
often and why, the collator knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.learners.data.transitions import TransitionRows

OBSERVATION = "observations."  # before an observation's name among a buffer's arrays
# What a row is. A row has one observation; the one that followed its action is the next row's.
NO_STEP, STEP, TERMINATED = 0, 1, 2

Allocate = Callable[[str, tuple[int, ...], np.dtype[Any]], Array]


def in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.zeros(shape, dtype)  # pages that nothing was written to take no memory


@dataclass(frozen=True)
class Origin:
    """Where rows come from. All are [N]."""

    ticket: Array  # int64
    attempt: Array  # int32
    version: Array  # int32: of the policy that acted
    env_steps: Array  # int64: env steps of the run that were in the buffer, or had been, once these were


@dataclass(frozen=True)
class _Before:
    """What an `add` has changed."""

    slots: Array
    arrays: Mapping[str, Array]
    streams: Array
    num_transitions: int


class ReplayBuffer:
    """The newest steps of each of E envs, in time order: [rows, E] in every array.

    An observation is stored once, in the env's dtype: what followed row t's action is the observation of row t + 1.
    Where an episode ended, its true last observation has a row of its own, from which no step begins; so has what an
    env showed last. A fragment's border is no end: the next fragment goes on in the row that the last one left open, if
    it goes on with what the env showed then. If not (a fragment between them was dropped, or the env was begun anew),
    what came before bootstraps from that observation, as at a truncation.

    `capacity` counts rows. When a ring is full, an env's newest rows take the place of its oldest.
    """

    def __init__(self, *, capacity: int, num_envs: int, allocate: Allocate = in_memory) -> None:
        """`num_envs`: of all shards together.

        Raises:
          ValueError: when there is not room for a step of each env.
        """
        self.num_envs = num_envs
        self.num_rows = capacity // num_envs  # of one env
        if self.num_rows < 2:
            raise ValueError(f"capacity={capacity} of {num_envs} envs: each needs room for a step and what followed it")
        self.num_transitions = 0  # that can be drawn
        self.arrays: dict[str, Array] = {}  # [num_rows, num_envs, ...] by name
        self._flat: dict[str, Array] = {}  # the same, [num_rows * num_envs, ...]
        # Of each env: [the row written last, counted since the beginning (-1: none); its incarnation]
        self.streams = np.stack([np.full(num_envs, -1, np.int64), np.zeros(num_envs, np.int64)])
        self._allocate = allocate
        self._before: list[_Before] = []

    @property
    def num_slots(self) -> int:
        return self.num_rows * self.num_envs

    @property
    def size_bytes(self) -> int:
        """Of the whole ring, as soon as anything is in it."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def observation_names(self) -> list[str]:
        return [name.removeprefix(OBSERVATION) for name in self.arrays if name.startswith(OBSERVATION)]

    def adopt(self, arrays: Mapping[str, Array]) -> None:
        """Has its arrays made for rows such as these [..., num_envs, ...], unless it has them."""
        for name, array in arrays.items():
            if name not in self.arrays:
                shape = (self.num_rows, self.num_envs, *array.shape[2:])
                self.arrays[name] = made = self._allocate(name, shape, array.dtype)
                self._flat[name] = made.reshape(-1, *shape[2:])

    def add(self, trajectory: GymTrajectory, *, env_steps: int) -> tuple[Array, Array]:
        """Takes in one unit of one shard. `env_steps`: of the run, with this one.

        Returns: (slots that were written, whether a transition begins there), for who keeps something beside it.

        Raises:
          ValueError: when it has more steps than the ring has rows.
        """
        unroll, steps = trajectory.unroll, trajectory.steps
        num_steps, num_envs = unroll.shape
        envs = trajectory.shard * num_envs + np.arange(num_envs)
        source = self._source(trajectory, env_steps)
        self.adopt({name: array[:1] for name, array in source.items()})
        mask, final = steps.mask, np.zeros((num_steps, num_envs), bool)
        final[unroll.final_index[:, 0], unroll.final_index[:, 1]] = True
        base = self._begins_at(trajectory, envs)
        # Rows of an env in time order: each step of its experience, and after an episode's last the final observation.
        place = base + mask.cumsum(0) - 1 + final.cumsum(0) - final
        going_on = mask.any(0) & ~final[_last_true(mask), np.arange(num_envs)]
        end = base + mask.sum(0) + final.sum(0)
        t, b = np.nonzero(mask)
        ft, fb = unroll.final_index[:, 0], unroll.final_index[:, 1]
        (ob,) = np.nonzero(going_on)
        rows = np.concatenate([place[t, b], place[ft, fb] + 1, end[ob]])
        most = int((end + going_on - base).max(initial=0))
        if most > self.num_rows:
            raise ValueError(f"{most} rows of one env in one unit, and room for {self.num_rows}: raise the capacity")
        slots = (rows % self.num_rows) * self.num_envs + envs[np.concatenate([b, fb, ob])]
        self._remember(slots)
        written = self._write(source, trajectory, slots, (t, b), ob)
        head = np.where(mask.any(0), end + going_on - 1, self.streams[0, envs])
        self.streams[0, envs], self.streams[1, envs] = head, trajectory.incarnation
        return slots, written > NO_STEP

    def _source(self, trajectory: GymTrajectory, env_steps: int) -> dict[str, Array]:
        """[T, B, ...] by the names of the buffer's arrays."""
        steps = trajectory.steps
        found = {OBSERVATION + name: array for name, array in steps.observations.items()}
        found |= {"actions": steps.actions, "rewards": steps.rewards.astype(np.float32, copy=False)}
        found["kind"] = np.where(steps.terminated, TERMINATED, STEP).astype(np.uint8)
        if steps.action_mask is not None:
            found["action_mask"] = steps.action_mask
        header = trajectory.header
        origin = {"ticket": (header.ticket_id, np.int64), "attempt": (header.attempt, np.int32)}
        origin |= {"version": (trajectory.policy_version, np.int32), "env_steps": (env_steps, np.int64)}
        shape = trajectory.unroll.shape
        return found | {name: np.broadcast_to(np.array(value, dtype), shape) for name, (value, dtype) in origin.items()}

    def _begins_at(self, trajectory: GymTrajectory, envs: Array) -> Array:
        """[B]: the row of each env's first step: the one that its last fragment left open, or the one after it."""
        steps, b = trajectory.steps, np.arange(len(envs))
        head, incarnation = self.streams[:, envs]
        first = steps.mask.argmax(0)
        goes_on = (head >= 0) & (incarnation == trajectory.incarnation) & ~steps.episode_starts[first, b]
        slots = (head % self.num_rows) * self.num_envs + envs
        for name, array in steps.observations.items():
            shown = self._flat[OBSERVATION + name][slots]
            goes_on &= (shown == array[first, b]).reshape(len(envs), -1).all(1)
        return np.where(goes_on, head, head + 1)

    def _write(
        self,
        source: Mapping[str, Array],
        trajectory: GymTrajectory,
        slots: Array,
        steps: tuple[Array, Array],
        open_envs: Array,
    ) -> Array:
        """Steps, finals, and what is shown last, in this order. Returns what the rows are now."""
        unroll, num_steps, num_finals = trajectory.unroll, len(steps[0]), len(trajectory.unroll.final_index)
        before = int((self._flat["kind"][slots] > NO_STEP).sum())
        for name, array in source.items():
            flat = self._flat[name]
            flat[slots[:num_steps]] = array[steps]
            rest = slots[num_steps:]
            if name.startswith(OBSERVATION):
                key = name.removeprefix(OBSERVATION)
                flat[rest[:num_finals]] = unroll.final_observations[key]
                flat[rest[num_finals:]] = unroll.last_observations[key][open_envs]
            elif name == "action_mask":
                flat[rest] = True  # not known yet, or never
            elif name == "kind":
                flat[rest] = NO_STEP
        written: Array = self._flat["kind"][slots]
        self.num_transitions += num_steps - before
        return written

    def restore(self, streams: Array) -> None:
        """Once the arrays are those of the checkpoint."""
        self._before.clear()
        self.streams = np.array(streams)
        self.num_transitions = int((self.arrays["kind"] > NO_STEP).sum()) if self.arrays else 0

    # A step that is taken back.

    def _remember(self, slots: Array) -> None:
        arrays = {name: flat[slots] for name, flat in self._flat.items()}
        self._before.append(_Before(slots, arrays, self.streams.copy(), self.num_transitions))

    def take_back(self) -> None:
        """What was added since `keep`."""
        for before in reversed(self._before):
            for name, array in before.arrays.items():
                self._flat[name][before.slots] = array
            self.streams, self.num_transitions = before.streams, before.num_transitions
        self._before.clear()

    def keep(self) -> None:
        """From now on it cannot be taken back."""
        self._before.clear()

    # Drawing.

    def uniform(self, number: int, generator: np.random.Generator) -> Array:
        """int64 [number]: slots at which transitions begin, each with the same probability, with replacement.

        Raises:
          ValueError: when there are none.
        """
        if not self.num_transitions:
            raise ValueError("uniform: nothing is in the buffer yet")
        counts = np.minimum(self.streams[0], self.num_rows - 1).clip(min=0)  # rows but the last one
        ends = counts.cumsum()
        found = np.empty(0, np.int64)
        while len(found) < number:  # rows without a step are few: one an episode
            drawn = generator.integers(0, ends[-1], number - len(found))
            env = np.searchsorted(ends, drawn, side="right")
            row = self.streams[0, env] - 1 - (drawn - (ends[env] - counts[env]))
            slots = (row % self.num_rows) * self.num_envs + env
            slots = slots[self._flat["kind"][slots] > NO_STEP]
            found = slots if not len(found) else np.concatenate([found, slots])
        return found

    def transitions(
        self, slots: Array, *, n_step: int, discount: float, weights: Array | None = None
    ) -> TransitionRows[Array]:
        """Those that begin at these slots [N]."""
        row, env = np.divmod(slots, self.num_envs)
        kind = self._flat["kind"][slots]
        rewards = self._flat["rewards"][slots]
        length, terminated, running = np.ones(len(slots), np.int64), kind == TERMINATED, kind == STEP
        for k in range(1, n_step):
            at = (row + k) % self.num_rows * self.num_envs + env
            kind = np.where(running, self._flat["kind"][at], NO_STEP)
            running = kind > NO_STEP
            rewards = rewards + np.where(running, np.float32(discount**k) * self._flat["rewards"][at], np.float32(0))
            length += running
            terminated |= kind == TERMINATED
            running &= kind == STEP
        after = (row + length) % self.num_rows * self.num_envs + env
        powers = np.float32(discount) ** np.arange(n_step + 1, dtype=np.float32)
        masks = self._flat.get("action_mask")
        return TransitionRows(
            observations={name: self._flat[OBSERVATION + name][slots] for name in self.observation_names},
            actions=self._flat["actions"][slots],
            rewards=rewards,
            discounts=np.where(terminated, np.float32(0), powers[length]),
            next_observations={name: self._flat[OBSERVATION + name][after] for name in self.observation_names},
            weights=np.ones(len(slots), np.float32) if weights is None else weights,
            action_mask=None if masks is None else masks[slots],
            next_action_mask=None if masks is None else masks[after],
        )

    def origin(self, slots: Array) -> Origin:
        """Of the steps with which transitions begin."""
        return Origin(**{name: self._flat[name][slots] for name in ("ticket", "attempt", "version", "env_steps")})


def _last_true(mask: Array) -> Array:
    """[B]: the last step t of each env at which mask [T, B] is True."""
    last: Array = len(mask) - 1 - mask[::-1].argmax(0)
    return last
