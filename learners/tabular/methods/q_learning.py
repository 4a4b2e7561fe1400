"""Q-learning: off-policy control, from the best that could follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


def q_learning_target(q: Array, reward: float, next_state: int, *, terminated: bool, discount: float) -> float:
    """R + gamma max_a Q(S', a), of the book's (6.8); what follows a termination is worth nothing."""
    return reward if terminated else reward + discount * float(max(q[next_state].tolist()))


class QLearningConfig(ControlSettings):
    name: Literal["q_learning"] = Field(default="q_learning", description="the method")


class QLearning:
    """Q(S, A) <- Q(S, A) + alpha [R + gamma max_a Q(S', a) - Q(S, A)]: the book's (6.8), Watkins (1989)."""

    Config = QLearningConfig

    def __init__(self, num_states: int, num_actions: int, config: QLearningConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._discount = config.discount

    @property
    def values(self) -> Array:
        return self._table.q

    def begin(self, state: int, explorer: Explorer) -> int:
        return explorer.choose(self._table.q[state])

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        q = self._table.q
        target = q_learning_target(q, reward, next_state, terminated=terminated, discount=self._discount)
        self._table.move(state, action, target)
        return explorer.choose(q[next_state])

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def arrays(self) -> Mapping[str, Array]:
        return self._table.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)


TABULAR = QLearning
