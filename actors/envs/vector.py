"""What every group of envs looks like to an actor, whichever way it is stepped and resets itself: one kind of step,
with the dead ones masked and the true final observations beside it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rollcall.actors.envs.contract import misunderstanding
from rollcall.actors.envs.observations import Space
from rollcall.cluster.errors import EnvFailure
from rollcall.cluster.inputs.user_code import user_line
from rollcall.cluster.messages.records import Array
from rollcall.cluster.seeds import derive_seed

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reset:
    """What freshly reset envs show. Arrays are valid until the group's next call."""

    observations: Mapping[str, Array]  # name -> [B, ...]
    action_mask: Array | None  # bool [B, num_actions]


@dataclass(slots=True)
class Step:
    """What followed one action per env. Arrays are valid until the group's next call.

    A step with mask False took no action: the reset step of a NEXT_STEP env, an env that was not active, or one that
    raised; nothing else about it means anything but the observation that it shows next.
    """

    observations: Mapping[str, Array]  # name -> [B, ...]: to act on next, in a new episode where the last one ended
    action_mask: Array | None  # bool [B, num_actions], of `observations`
    rewards: Array  # float32 [B], the env's own; 0 where mask is False
    terminated: Array  # bool [B]
    truncated: Array  # bool [B]
    mask: Array  # bool [B]
    episode_starts: Array  # bool [B]: `observations` are the first of an episode
    final_envs: Array  # int64 [N]: where an episode ended at this step, ascending
    final_observations: Mapping[str, Array]  # [N, ...]: the last ones of those episodes
    lost: tuple[int, ...] = ()  # envs that raised and were started anew: their episodes broke off before this step
    life_lost: Array | None = None  # bool [B]: terminated for the learner (a life was lost), but the game goes on


class EnvGroup(Protocol):
    """B envs of one kind, stepped together; each begins a new episode by itself when one ended."""

    name: str
    num_envs: int
    observation_space: Space  # of one env, without an action mask
    action_space: Space  # of one env
    restarts: Restarts

    def reset(self, seeds: Sequence[int | None] | None = None) -> Reset:
        """All envs, to a first observation. Without seeds: the next of the group's own."""

    def step(self, actions: Array, active: Array | None = None) -> Step:
        """One action per env, as the env takes it. With `active` (bool [B]) the others' actions are ignored, and an
        env whose episode ended stays where it is: the caller resets the group when it wants new episodes.

        Raises:
          NonFinite: naming env, step and field.
          EnvFailure: with the env's own traceback, once the budget of restarts is spent.
        """

    def doing(self) -> str:
        """In words, what a call under way is busy with. Safe to ask from another thread."""

    def close(self) -> None: ...


class RemoteEnvError(Exception):
    """What an env did in a process of its own: which one, what, and its own traceback; `contract`: that it is written
    for another way of being called."""

    def __init__(self, who: str, what: str, remote_traceback: str, *, contract: bool = False) -> None:
        super().__init__(f"{who}: {what}")
        self.who = who
        self.what = what
        self.remote_traceback = remote_traceback
        self.contract = contract


class Restarts:
    """Counts the envs of one group that had to be started anew, and allows so many."""

    def __init__(self, name: str, allowed: int) -> None:
        self.total = 0
        self._name = name
        self._allowed = allowed

    def book(self, who: str, error: Exception, *, step: int = 0) -> None:
        """Counts one, and logs it with the env's own traceback.

        Raises:
          EnvFailure: when the budget is spent: one line that names the env's own code, and the traceback below it.
            At once, and in one line, where the env is written for another way of being called: a new one would be too.
        """
        if isinstance(error, RemoteEnvError):
            who, what, trace = error.who, error.what, error.remote_traceback
            contract = what if error.contract else None
        else:
            what, trace = f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
            contract = misunderstanding(error)
        if contract is not None:
            raise EnvFailure(f"{self._name}: {who}, step {step}: {contract}") from error
        self.total += 1
        text = f"{self._name}: {who} raised {' '.join(what.split())}"
        if self.total > self._allowed:
            spent = f" (its budget of {self._allowed} restarts is spent)" if self._allowed else ""
            raise EnvFailure(f"{text}{spent}\n{trace}") from error
        place = user_line(trace) or "no line of the env's own"
        _log.warning("%s; restart %d of %d allowed, at %s\n%s", text, self.total, self._allowed, place, trace)


def env_seed(seed: int, *names: str | int) -> int:
    """A seed for an env, in 31 bits: envs hand theirs on to C libraries."""
    return derive_seed(seed, *names) >> 32


def usable_mask(name: str, mask: Array, unused: Array, *, step: int) -> Array:
    """The action mask with everything allowed in rows (bool [B]) where nobody acts: envs often show an empty one at an
    end. In the other rows an empty one is the env's error."""
    mask = mask | unused[:, None]
    allows = mask.any(axis=1)
    if not allows.all():
        env = int(np.flatnonzero(~allows)[0])
        raise EnvFailure(f"{name}: env {env} allows no action at its shard's step {step}: its action_mask is empty")
    return mask


def no_flags(num_envs: int) -> Array:
    flags = np.zeros(num_envs, bool)
    flags.flags.writeable = False
    return flags


NO_ENVS: Array = np.zeros(0, np.int64)
NO_ENVS.flags.writeable = False
