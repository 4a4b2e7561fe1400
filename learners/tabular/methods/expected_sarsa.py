"""Expected Sarsa: on-policy control, from what the policy would get on average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


class ExpectedSarsaConfig(ControlSettings):
    name: Literal["expected_sarsa"] = Field(default="expected_sarsa", description="the method")


class ExpectedSarsa:
    """Q(S, A) <- Q(S, A) + alpha [R + gamma sum_a pi(a|S') Q(S', a) - Q(S, A)]: the book's (6.9), van Seijen et al.
    (2009). Sarsa's expectation, without the variance of the next action."""

    Config = ExpectedSarsaConfig

    def __init__(self, num_states: int, num_actions: int, config: ExpectedSarsaConfig) -> None:
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
        row = self._table.q[next_state]
        following = 0.0 if terminated else float(explorer.probabilities(row) @ row)
        self._table.move(state, action, reward + self._discount * following)
        return explorer.choose(row)

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def arrays(self) -> Mapping[str, Array]:
        return self._table.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)


TABULAR = ExpectedSarsa
