"""Q actor-critic: a softmax policy climbs along the policy gradient, with a table of action values as its critic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


def softmax(row: Array) -> Array:
    """[A]: exp(h(a)) / sum_b exp(h(b)), the book's (13.2)."""
    exponents = np.exp(row - row.max())
    chances: Array = exponents / exponents.sum()
    return chances


class QActorCriticConfig(ControlSettings):
    name: Literal["q_actor_critic"] = Field(default="q_actor_critic", description="the method")
    actor_step_size: float = Field(default=0.05, gt=0, description="of the preferences")
    baseline: bool = Field(
        default=True,
        description="the state's own value, sum_a pi(a|s) Q(s, a), is taken off: the gradient's expectation stays, its "
        "variance falls",
    )


class QActorCritic:
    """Critic: Sarsa's (6.7). Actor: the policy gradient theorem (13.5), of one sample: theta <- theta + alpha_theta
    [Q(S, A) - b(S)] grad ln pi(A|S), where grad ln pi of a softmax is 1 at A less pi(.|S). Sutton et al. (2000); the
    weight gamma^t of later steps is left out, as is usual. Epsilon plays no part: the policy explores by itself."""

    Config = QActorCriticConfig

    def __init__(self, num_states: int, num_actions: int, config: QActorCriticConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._preferences: Array = np.zeros((num_states, num_actions))
        self._config = config

    @property
    def values(self) -> Array:
        """The preferences: the likeliest action is the greedy one."""
        return self._preferences

    def begin(self, state: int, explorer: Explorer) -> int:
        chances = softmax(self._preferences[state])
        return min(int(np.searchsorted(np.cumsum(chances), explorer.rng.random(), side="right")), len(chances) - 1)

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        next_action, q = self.begin(next_state, explorer), self._table.q
        following = 0.0 if terminated else float(q[next_state, next_action])
        chances = softmax(self._preferences[state])
        advantage = float(q[state, action]) - (float(chances @ q[state]) if self._config.baseline else 0.0)
        gradient = -chances
        gradient[action] += 1.0
        self._preferences[state] += self._config.actor_step_size * advantage * gradient
        self._table.move(state, action, reward + self._config.discount * following)
        return next_action

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def arrays(self) -> Mapping[str, Array]:
        return {**self._table.arrays(), "preferences": self._preferences}

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)
        self._preferences = np.array(arrays["preferences"])


TABULAR = QActorCritic
