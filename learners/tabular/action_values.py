"""What the methods of control share: their settings, a table of action values with its step sizes, and how an action is
chosen from a row of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.cluster.messages.arrays import Array

Discount = Annotated[float, Field(gt=0, le=1, description="gamma; 1: undiscounted, for episodes that end")]


class ControlSettings(BaseModel):
    """Of every method that learns action values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    discount: Discount = 0.99
    step_size: float = Field(default=0.1, gt=0, le=1, description="alpha, of a pair's first update")
    step_size_power: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="alpha is divided by (the updates of the pair) ** this; 0: constant; 1 with step_size=1: the mean; "
        "above 0.5: the pair's value converges (the book's 2.7)",
    )
    initial_value: float = Field(
        default=0.0, description="of every action value; above what is possible: it is tried (the book's section 2.6)"
    )
    epsilon: float = Field(default=0.1, ge=0, le=1, description="probability of an action at random, at the beginning")
    epsilon_final: float | None = Field(
        default=None, ge=0, le=1, description="epsilon falls to this, linearly; none: it stays"
    )
    epsilon_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the run's episodes over which epsilon falls to its last value"
    )
    exploration: Literal["linear", "glie"] = Field(
        default="linear",
        description="glie: epsilon / k in episode k, greedy in the limit with infinite exploration (Singh et al. 2000)",
    )

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.exploration == "glie" and self.epsilon_final is not None:
            raise ValueError("epsilon_final: with exploration=glie epsilon falls to 0 by itself: leave it out")
        return self

    def epsilon_at(self, episode: int, num_episodes: int) -> float:
        """Of episode 0, 1, ... of the run."""
        if self.exploration == "glie":
            return self.epsilon / (episode + 1)
        if self.epsilon_final is None:
            return self.epsilon
        progress = min(1.0, episode / (self.epsilon_fraction * num_episodes))
        return self.epsilon + progress * (self.epsilon_final - self.epsilon)


class Explorer:
    """The epsilon-greedy policy of one episode; of equally good actions one at random."""

    def __init__(self, rng: np.random.Generator, epsilon: float) -> None:
        self.rng = rng
        self.epsilon = epsilon

    def choose(self, row: Array) -> int:
        """An action, by its values [A]."""
        if self.epsilon and self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(row)))
        values = row.tolist()  # of so few numbers, Python's own functions are the faster ones
        best = max(values)
        if values.count(best) == 1:
            return int(values.index(best))
        equals = [action for action, value in enumerate(values) if value == best]
        return equals[int(self.rng.integers(len(equals)))]

    def probabilities(self, row: Array) -> Array:
        """[A]: with which `choose` takes each action."""
        best = row == row.max()
        chances: Array = self.epsilon / len(row) + (1.0 - self.epsilon) * best / best.sum()
        return chances


class ActionValues:
    """q [S, A], and how often each pair was updated."""

    def __init__(self, num_states: int, num_actions: int, settings: ControlSettings) -> None:
        self.q: Array = np.full((num_states, num_actions), settings.initial_value)
        self.updates: Array = np.zeros((num_states, num_actions), np.int64)
        self._step_size, self._power = settings.step_size, settings.step_size_power

    def move(self, state: int, action: int, target: float) -> float:
        """Q(s, a) <- Q(s, a) + alpha [target - Q(s, a)], the book's (2.3) to (2.5). Returns the error in brackets."""
        error = target - float(self.q[state, action])
        self.q[state, action] += self.step_size(state, action) * error
        return error

    def step_size(self, state: int, action: int) -> float:
        """Of an update of this pair, which is counted."""
        self.updates[state, action] += 1
        if not self._power:
            return self._step_size
        return self._step_size / math.pow(self.updates[state, action], self._power)

    def arrays(self) -> dict[str, Array]:
        return {"q": self.q, "updates": self.updates}

    def load(self, arrays: Mapping[str, Array]) -> None:
        self.q, self.updates = np.array(arrays["q"]), np.array(arrays["updates"])


class Method(Protocol):
    """A method of control. `begin` and `step` choose actions; `step` learns from one, `end` from a whole episode."""

    @property
    def values(self) -> Array:
        """[S, A]: by whose largest entry of a row the learnt policy acts."""

    def begin(self, state: int, explorer: Explorer) -> int:
        """The first action of an episode."""

    def step(
        self, state: int, action: int, reward: float, next_state: int, *, terminated: bool, explorer: Explorer
    ) -> int:
        """The next action, which is of no meaning where the episode terminated. In `next_state` of an episode that is
        cut off there is none, but one could act: its value counts."""

    def end(self, final_state: int | None, explorer: Explorer) -> None:
        """The episode is over. `final_state`: where it was cut off; None: it terminated."""

    def arrays(self) -> Mapping[str, Array]:
        """All that it has learnt."""

    def load(self, arrays: Mapping[str, Array]) -> None: ...
