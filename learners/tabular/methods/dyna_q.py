"""Dyna-Q: Q-learning from what happens, and between two steps from what is remembered to have happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer
from rollcall.learners.tabular.methods.q_learning import q_learning_target

_Outcome = tuple[float, int, bool]  # reward, next state, terminated


class DynaQConfig(ControlSettings):
    name: Literal["dyna_q"] = Field(default="dyna_q", description="the method")
    planning_steps: int = Field(default=10, ge=0, description="n: updates from the model for each step; 0: Q-learning")


class DynaQ:
    """Tabular Dyna-Q (the book's section 8.2, Sutton 1990): after each step n times a pair that was met before, at
    random, an outcome of it from the model, and Q-learning's update (6.8) of that. The book's model holds the last
    outcome, for envs without chance; this one holds how often each was met, and draws in that proportion."""

    Config = DynaQConfig

    def __init__(self, num_states: int, num_actions: int, config: DynaQConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._discount, self._n = config.discount, config.planning_steps
        self._pairs: list[tuple[int, int]] = []
        self._model: dict[tuple[int, int], dict[_Outcome, int]] = {}

    @property
    def values(self) -> Array:
        return self._table.q

    def begin(self, state: int, explorer: Explorer) -> int:
        return explorer.choose(self._table.q[state])

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        outcome = (reward, next_state, terminated)
        self._learn((state, action), outcome)
        self._remember((state, action), outcome, 1)
        for chosen in explorer.rng.integers(len(self._pairs), size=self._n).tolist():
            pair = self._pairs[chosen]
            self._learn(pair, self._imagined(pair, explorer.rng))
        return explorer.choose(self._table.q[next_state])

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def _learn(self, pair: tuple[int, int], outcome: _Outcome) -> None:
        reward, next_state, terminated = outcome
        target = q_learning_target(self._table.q, reward, next_state, terminated=terminated, discount=self._discount)
        self._table.move(*pair, target)

    def _remember(self, pair: tuple[int, int], outcome: _Outcome, times: int) -> None:
        if pair not in self._model:
            self._pairs.append(pair)
        met = self._model.setdefault(pair, {})
        met[outcome] = met.get(outcome, 0) + times

    def _imagined(self, pair: tuple[int, int], rng: np.random.Generator) -> _Outcome:
        met = self._model[pair]
        outcomes = list(met)
        if len(outcomes) == 1:
            return outcomes[0]
        counts = np.cumsum(list(met.values()))
        return outcomes[int(np.searchsorted(counts, rng.integers(counts[-1]), side="right"))]

    def arrays(self) -> Mapping[str, Array]:
        rows = [(*pair, *outcome, n) for pair in self._pairs for outcome, n in self._model[pair].items()]
        return {**self._table.arrays(), "model": np.array(rows, np.float64).reshape(-1, 6)}

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)
        self._pairs, self._model = [], {}
        for state, action, reward, next_state, terminated, times in arrays["model"].tolist():
            outcome = (reward, int(next_state), bool(terminated))
            self._remember((int(state), int(action)), outcome, int(times))


TABULAR = DynaQ
