"""Sarsa: on-policy control, from the action that is taken next; over n steps, if asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


def n_step_target(rewards: Sequence[float], following: float, discount: float) -> float:
    """G_t:t+n = R_t+1 + ... + gamma^n-1 R_t+n + gamma^n `following`, the book's (7.4)."""
    target = following
    for reward in reversed(rewards):
        target = reward + discount * target
    return target


class SarsaConfig(ControlSettings):
    name: Literal["sarsa"] = Field(default="sarsa", description="the method")
    n_step: int = Field(default=1, ge=1, description="steps of reward before the value of a pair")


class Sarsa:
    """Q(S, A) <- Q(S, A) + alpha [R + gamma Q(S', A') - Q(S, A)]: the book's (6.7), Rummery and Niranjan (1994). Over
    n steps (7.5): Q(S_t, A_t) <- Q(S_t, A_t) + alpha [G_t:t+n - Q(S_t, A_t)]."""

    Config = SarsaConfig

    def __init__(self, num_states: int, num_actions: int, config: SarsaConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._discount, self._n = config.discount, config.n_step
        self._steps: deque[tuple[int, int, float]] = deque()  # those whose return is not complete
        self._next_action = 0

    @property
    def values(self) -> Array:
        return self._table.q

    def begin(self, state: int, explorer: Explorer) -> int:
        self._steps.clear()
        return explorer.choose(self._table.q[state])

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        self._steps.append((state, action, reward))
        next_action = explorer.choose(self._table.q[next_state])
        if len(self._steps) == self._n:
            self._learn(0.0 if terminated else float(self._table.q[next_state, next_action]))
        self._next_action = next_action
        return next_action

    def end(self, final_state: int | None, explorer: Explorer) -> None:
        while self._steps:
            following = 0.0 if final_state is None else float(self._table.q[final_state, self._next_action])
            self._learn(following)

    def _learn(self, following: float) -> None:
        """Of the oldest of the steps that wait."""
        target = n_step_target([reward for *_, reward in self._steps], following, self._discount)
        state, action, _ = self._steps.popleft()
        self._table.move(state, action, target)

    def arrays(self) -> Mapping[str, Array]:
        return self._table.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)


TABULAR = Sarsa
