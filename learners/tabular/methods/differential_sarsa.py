"""Differential Sarsa: for tasks that go on for ever, by the reward per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


class DifferentialSarsaConfig(ControlSettings):
    name: Literal["differential_sarsa"] = Field(default="differential_sarsa", description="the method")
    average_step_size: float = Field(default=0.01, gt=0, le=1, description="beta, of the average reward, times delta")


class DifferentialSarsa:
    """delta = R - Rbar + Q(S', A') - Q(S, A), the book's (10.11); Rbar <- Rbar + beta delta; Q(S, A) <- Q(S, A) + alpha
    delta (10.12): section 10.3. Nothing is discounted. An episode that terminates is no end here: the next one's
    first state follows, as in a task that goes on."""

    Config = DifferentialSarsaConfig

    def __init__(self, num_states: int, num_actions: int, config: DifferentialSarsaConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._beta = config.average_step_size
        self.average_reward = 0.0
        self._waits: tuple[int, int, float] | None = None  # the last step of an episode that terminated

    @property
    def values(self) -> Array:
        return self._table.q

    def begin(self, state: int, explorer: Explorer) -> int:
        action = explorer.choose(self._table.q[state])
        if self._waits is not None:
            self._learn(*self._waits, float(self._table.q[state, action]))
            self._waits = None
        return action

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        next_action = explorer.choose(self._table.q[next_state])
        if terminated:
            self._waits = (state, action, reward)
        else:
            self._learn(state, action, reward, float(self._table.q[next_state, next_action]))
        return next_action

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def _learn(self, state: int, action: int, reward: float, following: float) -> None:
        error = self._table.move(state, action, reward - self.average_reward + following)
        self.average_reward += self._beta * error

    def arrays(self) -> Mapping[str, Array]:
        waits = [] if self._waits is None else [self._waits]
        own = {"average_reward": np.array([self.average_reward]), "waits": np.array(waits, np.float64).reshape(-1, 3)}
        return {**self._table.arrays(), **own}

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)
        self.average_reward = float(arrays["average_reward"][0])
        for state, action, reward in arrays["waits"].tolist():
            self._waits = (int(state), int(action), reward)


TABULAR = DifferentialSarsa
