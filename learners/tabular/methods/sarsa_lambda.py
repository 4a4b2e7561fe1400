"""Sarsa(lambda): every pair that led here learns from each error, the less the longer ago it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import ActionValues, ControlSettings, Explorer

_FADED = 1e-8  # of a trace that is left out from then on


class SarsaLambdaConfig(ControlSettings):
    name: Literal["sarsa_lambda"] = Field(default="sarsa_lambda", description="the method")
    lam: float = Field(default=0.9, ge=0, le=1, description="lambda, the decay of the traces; 0: Sarsa")
    traces: Literal["accumulating", "replacing"] = Field(
        default="accumulating", description="what a pair's trace becomes when it is visited again: 1 more, or 1"
    )


class SarsaLambda:
    """delta = R + gamma Q(S', A') - Q(S, A); the trace of (S, A) rises by 1, or to 1; for all pairs
    Q <- Q + alpha delta z and z <- gamma lambda z: the book's section 12.7, of (12.5) to (12.7)."""

    Config = SarsaLambdaConfig

    def __init__(self, num_states: int, num_actions: int, config: SarsaLambdaConfig) -> None:
        self._table = ActionValues(num_states, num_actions, config)
        self._discount, self._decay = config.discount, config.discount * config.lam
        self._accumulates = config.traces == "accumulating"
        self._traces: dict[tuple[int, int], float] = {}

    @property
    def values(self) -> Array:
        return self._table.q

    def begin(self, state: int, explorer: Explorer) -> int:
        self._traces.clear()
        return explorer.choose(self._table.q[state])

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        q, traces = self._table.q, self._traces
        next_action = explorer.choose(q[next_state])
        following = 0.0 if terminated else float(q[next_state, next_action])
        error = reward + self._discount * following - float(q[state, action])
        traces[state, action] = 1.0 + (traces.get((state, action), 0.0) if self._accumulates else 0.0)
        step_size = self._table.step_size(state, action)
        for pair, trace in list(traces.items()):
            q[pair] += step_size * error * trace
            traces[pair] = trace * self._decay
            if traces[pair] < _FADED:
                del traces[pair]
        return next_action

    def end(self, final_state: int | None, explorer: Explorer) -> None: ...

    def arrays(self) -> Mapping[str, Array]:
        return self._table.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._table.load(arrays)


TABULAR = SarsaLambda
