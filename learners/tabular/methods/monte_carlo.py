"""Monte Carlo control: on-policy, from whole episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer


class MonteCarloConfig(ControlSettings):
    name: Literal["monte_carlo"] = Field(default="monte_carlo", description="the method")
    visits: Literal["first", "every"] = Field(
        default="first", description="which visits of a pair in an episode its returns are counted of"
    )
    step_size: float = Field(default=1.0, gt=0, le=1, description="alpha, of a pair's first update")
    step_size_power: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="alpha is divided by (the updates of the pair) ** this; 1 with step_size=1: the mean of returns",
    )


class MonteCarlo:
    """On-policy Monte Carlo control for epsilon-soft policies (the book's section 5.4): after an episode, of each pair
    Q(S, A) <- Q(S, A) + alpha [G - Q(S, A)], by default the mean of the returns of first visits. With exploration=glie
    epsilon is 1/k in episode k: greedy in the limit with infinite exploration. The return of an episode that was cut
    off goes on with what the policy's next action is worth."""

    Config = MonteCarloConfig

    def __init__(self, num_states: int, num_actions: int, config: MonteCarloConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._discount, self._first_only = config.discount, config.visits == "first"
        self._steps: list[tuple[int, int, float]] = []

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
        return explorer.choose(self._table.q[next_state])

    def end(self, final_state: int | None, explorer: Explorer) -> None:
        following = 0.0
        if final_state is not None:
            row = self._table.q[final_state]
            following = float(explorer.probabilities(row) @ row)
        found: list[float] = []
        for *_, reward in reversed(self._steps):
            following = reward + self._discount * following
            found.append(following)
        seen: set[tuple[int, int]] = set()
        for (state, action, _), target in zip(self._steps, reversed(found), strict=True):
            if not (self._first_only and (state, action) in seen):
                self._table.move(state, action, target)
            seen.add((state, action))

    def arrays(self) -> Mapping[str, Array]:
        return self._table.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)


TABULAR = MonteCarlo
