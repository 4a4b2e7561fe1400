"""Plays episodes of an env with a method that learns from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rollcall.learners.tabular.action_values import Explorer, Method


class DiscreteEnv(Protocol):
    """As gymnasium's, with states and actions that are numbers from 0 on."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]: ...

    def step(self, action: int) -> tuple[Any, Any, Any, Any, Any]:
        """(state, reward, terminated, truncated, info)"""


@dataclass(frozen=True, slots=True)
class Played:
    """One episode."""

    total: float  # the sum of its rewards
    length: int
    terminated: bool


def play_episode(
    env: DiscreteEnv, method: Method, explorer: Explorer, *, seed: int | None = None, max_steps: int | None = None
) -> Played:
    """One episode, cut off after `max_steps` where the env does not end it before."""
    state = int(env.reset(seed=seed)[0])
    action = method.begin(state, explorer)
    total, length = 0.0, 0
    while True:
        shown, given, terminated, truncated, _ = env.step(action)
        next_state, reward = int(shown), float(given)
        total, length = total + reward, length + 1
        action = method.step(state, action, reward, next_state, terminated=bool(terminated), explorer=explorer)
        state = next_state
        if terminated or truncated or length == max_steps:
            method.end(None if terminated else state, explorer)
            return Played(total, length, bool(terminated))
