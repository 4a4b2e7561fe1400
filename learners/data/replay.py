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
class _Places:
    """Where in a unit its rows come from."""

    steps: tuple[Array, Array]  # (t, b)
    left_open: Array  # b
    anew: tuple[Array, Array]  # (t, b): steps whose stacks do not go on from the row before


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

    Of an observation that is a stack of K frames a row has the newest alone: the others are those of the rows before.
    Where a stack does not go on from the one before, K - 1 rows without a step stand before it, with its other frames.

    `capacity` counts rows. When a ring is full, an env's newest rows take the place of its oldest.
    """

    def __init__(
        self,
        *,
        capacity: int,
        num_envs: int,
        stacked: Mapping[str, int] | None = None,
        allocate: Allocate = in_memory,
    ) -> None:
        """`num_envs`: of all shards together; `stacked`: K, of the observations that are stacks of frames, by name.

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
        self._stacked = dict(stacked or {})
        self._lead = max(self._stacked.values(), default=1) - 1  # rows before one whose stack begins anew
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
        goes_on = self._goes_on(trajectory, envs)
        anew = self._anew(trajectory, goes_on)
        base = self.streams[0, envs] + ~goes_on
        # Rows of an env in time order: each step of its experience, and after an episode's last the final observation.
        place = base + mask.cumsum(0) - 1 + final.cumsum(0) - final + self._lead * anew.cumsum(0)
        left_open = mask.any(0) & ~final[_last_true(mask), np.arange(num_envs)]
        end = base + mask.sum(0) + final.sum(0) + self._lead * anew.sum(0)
        most = int((end + left_open - base).max(initial=0)) + self._lead
        if most > self.num_rows:
            raise ValueError(f"{most} rows of one env in one unit, and room for {self.num_rows}: raise the capacity")
        head = np.where(mask.any(0), end + left_open - 1, self.streams[0, envs])
        t, b = np.nonzero(mask)
        ft, fb = unroll.final_index[:, 0], unroll.final_index[:, 1]
        at, ab = np.nonzero(anew)
        (ob,) = np.nonzero(left_open)
        lead = np.arange(self._lead)
        rows = [place[t, b], place[ft, fb] + 1, end[ob], (place[at, ab, None] - self._lead + lead).reshape(-1)]
        rows.append((head[:, None] - self.num_rows + 1 + lead).reshape(-1))  # a part of their stacks is gone
        owners = [b, fb, ob, np.repeat(ab, self._lead), np.repeat(np.arange(num_envs), self._lead)]
        row, owner = np.concatenate(rows), np.concatenate(owners)
        there = row >= 0
        slots = (row[there] % self.num_rows) * self.num_envs + envs[owner[there]]
        self._remember(slots)
        self._write(source, trajectory, slots, _Places((t, b), ob, (at, ab)))
        self.streams[0, envs], self.streams[1, envs] = head, trajectory.incarnation
        begins: Array = self._flat["kind"][slots] > NO_STEP
        return slots, begins

    def _source(self, trajectory: GymTrajectory, env_steps: int) -> dict[str, Array]:
        """[T, B, ...] by the names of the buffer's arrays."""
        steps = trajectory.steps
        found = {OBSERVATION + name: self._newest(name, array, 2) for name, array in steps.observations.items()}
        found |= {"actions": steps.actions, "rewards": steps.rewards.astype(np.float32, copy=False)}
        found["kind"] = np.where(steps.terminated, TERMINATED, STEP).astype(np.uint8)
        if steps.action_mask is not None:
            found["action_mask"] = steps.action_mask
        header = trajectory.header
        origin = {"ticket": (header.ticket_id, np.int64), "attempt": (header.attempt, np.int32)}
        origin |= {"version": (trajectory.policy_version, np.int32), "env_steps": (env_steps, np.int64)}
        shape = trajectory.unroll.shape
        return found | {name: np.broadcast_to(np.array(value, dtype), shape) for name, (value, dtype) in origin.items()}

    def _goes_on(self, trajectory: GymTrajectory, envs: Array) -> Array:
        """bool [B]: the unit's first step of an env belongs into the row that its last unit left open."""
        steps, b = trajectory.steps, np.arange(len(envs))
        head, incarnation = self.streams[:, envs]
        first = steps.mask.argmax(0)
        goes_on: Array = (head >= 0) & (incarnation == trajectory.incarnation) & ~steps.episode_starts[first, b]
        if goes_on.any():
            slots = (head % self.num_rows) * self.num_envs + envs
            for name, array in steps.observations.items():
                same = self._observations(name, slots) == array[first, b]
                goes_on &= same.reshape(len(envs), -1).all(1)
        return goes_on

    def _anew(self, trajectory: GymTrajectory, goes_on: Array) -> Array:
        """bool [T, B]: steps whose stacks do not go on from the row before.

        Raises:
          ValueError: where other steps' do not either.
        """
        steps = trajectory.steps
        first = steps.mask & (steps.mask.cumsum(0) == 1)
        anew: Array = steps.mask & (steps.episode_starts | (first & ~goes_on))
        within = (steps.mask & ~anew)[1:] & steps.mask[:-1]
        for name in self._stacked:
            frames = steps.observations[name]
            if not np.array_equal(frames[1:, :, :-1][within], frames[:-1, :, 1:][within]):
                raise ValueError(f"observation {name} is no stack of frames of which each step brings one")
        return anew

    def _write(self, source: Mapping[str, Array], trajectory: GymTrajectory, slots: Array, places: _Places) -> None:
        """Steps, finals, what is shown last, and frames before a stack, in this order; then rows whose stacks lose
        frames, where these were written."""
        unroll, num_steps, num_finals = trajectory.unroll, len(places.steps[0]), len(trajectory.unroll.final_index)
        before = int((self._flat["kind"][slots] > NO_STEP).sum())
        finals, others = np.split(slots[num_steps:], [num_finals])
        opened, others = np.split(others, [len(places.left_open)])
        frames = others[: self._lead * len(places.anew[0])].reshape(len(places.anew[0]), self._lead)
        for name, array in source.items():
            flat = self._flat[name]
            flat[slots[:num_steps]] = array[places.steps]
            if name.startswith(OBSERVATION):
                key = name.removeprefix(OBSERVATION)
                flat[finals] = self._newest(key, unroll.final_observations[key], 1)
                flat[opened] = self._newest(key, unroll.last_observations[key], 1)[places.left_open]
                if older := self._stacked.get(key, 1) - 1:
                    flat[frames[:, -older:]] = unroll.steps.observations[key][places.anew][:, :-1]
            elif name == "action_mask":
                flat[slots[num_steps:]] = True  # not known yet, or never
            elif name == "kind":
                flat[slots[num_steps:]] = NO_STEP
        self.num_transitions += num_steps - before

    def _newest(self, name: str, observations: Array, num_axes: int) -> Array:
        """Of what has so many axes before an observation's own: as a row has it."""
        return observations[(slice(None),) * num_axes + (-1,)] if name in self._stacked else observations

    def _observations(self, name: str, slots: Array) -> Array:
        """[N, ...], whole."""
        flat = self._flat[OBSERVATION + name]
        if name not in self._stacked:
            found: Array = flat.take(slots, axis=0)
            return found
        earlier = np.arange(1 - self._stacked[name], 1) * self.num_envs
        stacks: Array = flat.take((slots[:, None] + earlier) % self.num_slots, axis=0)
        return stacks

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
        newest = self.streams[0] - 1 + ends - counts  # minus a number of its env's share of them: one of its rows
        found = np.empty(0, np.int64)
        while len(found) < number:  # rows without a step are few: one an episode
            drawn = generator.integers(0, ends[-1], number - len(found))
            env = np.searchsorted(ends, drawn, side="right")
            row = newest.take(env) - drawn
            slots = (row % self.num_rows) * self.num_envs + env
            slots = slots[self._flat["kind"].take(slots) > NO_STEP]
            found = slots if not len(found) else np.concatenate([found, slots])
        return found

    def transitions(
        self, slots: Array, *, n_step: int, discount: float, weights: Array | None = None
    ) -> TransitionRows[Array]:
        """Those that begin at these slots [N]."""
        kinds, rewards_at, one_later = self._flat["kind"], self._flat["rewards"], self.num_envs
        kind, rewards = kinds.take(slots), rewards_at.take(slots)
        after, terminated = (slots + one_later) % self.num_slots, kind == TERMINATED
        discounts: Array = np.full(len(slots), discount, np.float32)
        for k in range(1, n_step):
            goes_on = ~terminated & (kind > NO_STEP)
            kind = np.where(goes_on, kinds.take(after), NO_STEP)
            goes_on = kind > NO_STEP
            rewards = rewards + np.where(goes_on, np.float32(discount**k) * rewards_at.take(after), np.float32(0))
            discounts = np.where(goes_on, np.float32(discount ** (k + 1)), discounts)
            terminated |= kind == TERMINATED
            after = (after + goes_on * one_later) % self.num_slots
        masks = self._flat.get("action_mask")
        return TransitionRows(
            observations={name: self._observations(name, slots) for name in self.observation_names},
            actions=self._flat["actions"].take(slots, axis=0),
            rewards=rewards,
            discounts=np.where(terminated, np.float32(0), discounts),
            next_observations={name: self._observations(name, after) for name in self.observation_names},
            weights=np.ones(len(slots), np.float32) if weights is None else weights,
            action_mask=None if masks is None else masks.take(slots, axis=0),
            next_action_mask=None if masks is None else masks.take(after, axis=0),
        )

    def origin(self, slots: Array) -> Origin:
        """Of the steps with which transitions begin."""
        return Origin(**{name: self._flat[name][slots] for name in ("ticket", "attempt", "version", "env_steps")})


def _last_true(mask: Array) -> Array:
    """[B]: the last step t of each env at which mask [T, B] is True."""
    last: Array = len(mask) - 1 - mask[::-1].argmax(0)
    return last
