"""Double Q-learning: one table says which action is best, the other what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


class DoubleQLearningConfig(ControlSettings):
    name: Literal["double_q_learning"] = Field(default="double_q_learning", description="the method")


class DoubleQLearning:
    """With probability one half Q1(S, A) <- Q1(S, A) + alpha [R + gamma Q2(S', argmax_a Q1(S', a)) - Q1(S, A)], else
    the same with the two exchanged: the book's (6.10), van Hasselt (2010). It acts by their sum. The maximum of noisy
    estimates is too large on average; here the noise of the choice is not that of the value."""

    Config = DoubleQLearningConfig

    def __init__(self, num_states: int, num_actions: int, config: DoubleQLearningConfig) -> None:
        self._tables = [ActionValues(num_states, num_actions, config) for _ in range(2)]
        self._discount = config.discount

    @property
    def values(self) -> Array:
        """The mean of the two."""
        first, second = self._tables
        return (first.q + second.q) / 2

    def begin(self, state: int, explorer: Explorer) -> int:
        return explorer.choose(self._tables[0].q[state] + self._tables[1].q[state])

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        chosen = int(explorer.rng.integers(2))
        own, other = self._tables[chosen], self._tables[1 - chosen]
        best = int(own.q[next_state].argmax())
        following = 0.0 if terminated else float(other.q[next_state, best])
        own.move(state, action, reward + self._discount * following)
        return self.begin(next_state, explorer)

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def arrays(self) -> Mapping[str, Array]:
        return {f"{name}_{n}": array for n, t in enumerate(self._tables, 1) for name, array in t.arrays().items()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        for n, table in enumerate(self._tables, 1):
            table.load({name: arrays[f"{name}_{n}"] for name in table.arrays()})


TABULAR = DoubleQLearning
