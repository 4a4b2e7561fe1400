"""A finite Markov decision process whose dynamics are known, p(s', r | s, a), as flat arrays of outcomes. In this room
"the book" is Sutton and Barto, Reinforcement Learning: An Introduction, second edition, 2018; its equations are named
by their numbers. Nothing here knows torch, recipes or runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rollcall.cluster.messages.arrays import Array

Outcome = tuple[float, int, float, bool]  # probability, next state, reward, whether the episode ends with it
Table = Mapping[int, Mapping[int, Sequence[Outcome]]]  # [state][action], as gymnasium's toy_text envs have it in `P`
_SUM_ERROR = 1e-6  # of an action's probabilities: tables are written with thirds


@dataclass(frozen=True)
class Model:
    """The dynamics p(s', r | s, a) of S states and A actions. Outcomes lie one after another, state by state, and of a
    state action by action; every pair has at least one. An outcome that ends the episode has a next state, which is
    shown and never acted from: what follows it counts for nothing."""

    num_states: int
    num_actions: int
    first: Array  # int [S * A]: where each pair's outcomes begin
    probabilities: Array  # [N]
    next_states: Array  # int [N]
    rewards: Array  # [N]
    terminated: Array  # bool [N]
    start: Array  # [S]: the distribution of the first state

    @classmethod
    def of_table(cls, table: Table, start: Array) -> Self:
        """Of a table such as `env.unwrapped.P`, and the distribution of the first state.

        Raises:
          ValueError: naming the state and action whose outcomes are none, or not of this table.
        """
        num_states, num_actions = len(table), len(table[0])
        if np.shape(start) != (num_states,) or abs(float(np.sum(start)) - 1.0) > _SUM_ERROR:
            raise ValueError(f"start: must be a distribution over the table's {num_states} states")
        first: list[int] = []
        outcomes: list[Outcome] = []
        for state in range(num_states):
            if len(table[state]) != num_actions:
                raise ValueError(f"state {state}: has {len(table[state])} actions, and state 0 has {num_actions}")
            for action in range(num_actions):
                found = [(float(p), int(s), float(r), bool(end)) for p, s, r, end in table[state][action]]
                total = sum(p for p, *_ in found)
                if abs(total - 1.0) > _SUM_ERROR or any(p < 0 for p, *_ in found):
                    raise ValueError(f"state {state}, action {action}: probabilities that sum to {total:g}, not 1")
                if any(not 0 <= s < num_states for _, s, _, _ in found):
                    raise ValueError(f"state {state}, action {action}: leads to a state that the table does not have")
                first.append(len(outcomes))
                outcomes += found
        probabilities, next_states, rewards, terminated = (np.array(column) for column in zip(*outcomes, strict=True))
        start = np.asarray(start, np.float64)
        return cls(num_states, num_actions, np.array(first), probabilities, next_states, rewards, terminated, start)

    def backup(self, values: Array, discount: float) -> Array:
        """[S, A]: the expected reward, and the discounted value of where it leads: the book's (4.6), for any values
        [S] in place of v_pi."""
        following = np.where(self.terminated, 0.0, discount * values[self.next_states])
        return self._by_pair(self.probabilities * (self.rewards + following))

    def expected_rewards(self) -> Array:
        """[S, A]"""
        return self._by_pair(self.probabilities * self.rewards)

    def transitions(self, policy: Array) -> Array:
        """[S, S]: the probability under `policy` [S, A] of going on in the state of the column. A row sums to less than
        1 by the probability that the episode ends."""
        matrix = np.zeros((self.num_states, self.num_states))
        pairs = np.repeat(np.arange(self.num_states * self.num_actions), self._outcomes_of_pairs())
        weights = np.where(self.terminated, 0.0, self.probabilities * policy.reshape(-1)[pairs])
        np.add.at(matrix, (pairs // self.num_actions, self.next_states), weights)
        return matrix

    def reachable(self, policy: Array | None = None) -> Array:
        """bool [S]: states that some actions lead to from a first state and from which one acts; with a policy [S, A],
        its own."""
        allowed = np.ones((self.num_states, self.num_actions)) if policy is None else policy
        leads = self.transitions(allowed) > 0
        found = self.start > 0
        while True:
            more = found | leads[found].any(0)
            if (more == found).all():
                return found
            found = more

    def ends(self) -> Array:
        """bool [S]: states in which an episode may end."""
        found = np.zeros(self.num_states, bool)
        found[self.next_states[self.terminated & (self.probabilities > 0)]] = True
        return found

    def outcomes(self, state: int, action: int) -> slice:
        """Where those of a pair lie in the arrays of outcomes."""
        pair = state * self.num_actions + action
        begins = int(self.first[pair])
        return slice(begins, begins + int(self._outcomes_of_pairs()[pair]))

    def _outcomes_of_pairs(self) -> Array:
        return np.diff(self.first, append=len(self.probabilities))

    def _by_pair(self, of_outcomes: Array) -> Array:
        return np.add.reduceat(of_outcomes, self.first).reshape(self.num_states, self.num_actions)
