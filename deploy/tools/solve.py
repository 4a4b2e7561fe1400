"""The exact optimum of an env that gives its transition table: by value iteration, the policy evaluated in closed form,
and the table held against what the env does. Drawn for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.deploy.kinds.tabular.numbered import NumberedEnv
from rollcall.learners.tabular import planning
from rollcall.learners.tabular.model import Model
from rollcall.learners.tabular.planning import NoOptimum, Solution

CHECKED_EPISODES, CHECKED_STEPS = 20, 1000
_ARROWS = {(-1, 0): "^", (1, 0): "v", (0, -1): "<", (0, 1): ">"}


@dataclass(frozen=True)
class Solved:
    """An env's optima."""

    env: str
    model: Model
    limit: int | None  # steps of an episode
    grid: Array | None  # [rows, columns]: what is drawn of each state where the policy says nothing
    solutions: Mapping[float, Solution | str]  # by discount; or why there is none

    def lines(self) -> list[str]:
        reachable = int((self.model.reachable() & ~self.model.ends()).sum())
        states = f"{self.model.num_states:,} states ({reachable:,} are acted in)"
        head = f"{self.env}: {states}, {self.model.num_actions} actions"
        return [head, *(line for discount in self.solutions for line in self._of(discount))]

    def _of(self, discount: float) -> Iterator[str]:
        found = self.solutions[discount]
        name = "undiscounted" if discount == 1.0 else f"discount {discount:g}"
        yield ""
        if isinstance(found, str):
            yield f"{name}: no optimum: {found}"
            return
        value = self.value(found)
        yield f"{name}: the start is worth {value:.10g} ({found.iterations:,} sweeps of value iteration)"
        if self.limit is not None and discount == 1.0:
            best, own = self.within(), self.within(found)
            yield (
                f"within its limit of {self.limit} steps: {best:.10g} at best, {own:.10g} by this policy, which does "
                "not look at the time left"
            )
        first = next(iter(self.solutions.values()))
        if isinstance(first, Solution) and first is not found and self._alike(first, found):
            yield "policy: the same"
            return
        yield "policy:" if self.grid is not None else "policy (action: states):"
        yield from (f"  {line}" for line in (self._drawn(found) if self.grid is not None else self._listed(found)))

    def value(self, found: Solution) -> float:
        """Of the first state."""
        return float(self.model.start @ found.values)

    def within(self, found: Solution | None = None) -> float:
        """Of the first state, in an episode that is cut off at the limit: by that policy, or at best."""
        assert self.limit is not None
        return float(
            self.model.start @ planning.within(self.model, self.limit, None if found is None else found.policy)
        )

    def _alike(self, one: Solution, other: Solution) -> bool:
        return bool((one.policy == other.policy)[self._acted()].all())

    def _acted(self) -> Array:
        reached: Array = self.model.reachable() & ~self.model.ends()
        return reached

    def _drawn(self, found: Solution) -> Iterator[str]:
        assert self.grid is not None
        columns, acted = self.grid.shape[1], self._acted()
        directions = _directions(self.model, columns)
        for row, cells in enumerate(self.grid):
            states = range(row * columns, (row + 1) * columns)
            chosen = [directions[int(found.policy[state].argmax())] for state in states]
            yield " ".join(arrow if acted[s] else str(c) for s, arrow, c in zip(states, chosen, cells, strict=True))

    def _listed(self, found: Solution) -> Iterator[str]:
        acted, chosen = self._acted(), found.policy.argmax(1)
        for action in range(self.model.num_actions):
            states = np.flatnonzero(acted & (chosen == action)).tolist()
            if states:
                yield f"{action}: {_ranges(states)}"

    def as_json(self) -> dict[str, Any]:
        acted = self._acted()
        results = []
        for discount, found in self.solutions.items():
            if isinstance(found, str):
                results.append({"discount": discount, "error": found})
                continue
            chosen = found.policy.argmax(1)
            result: dict[str, Any] = {
                "discount": discount,
                "value": self.value(found),
                "iterations": found.iterations,
                "values": [float(v) if on else None for v, on in zip(found.values, acted, strict=True)],
                "policy": [int(a) if on else None for a, on in zip(chosen, acted, strict=True)],
            }
            if self.limit is not None:
                result |= {"policy_within_limit": self.within(found)}
            results.append(result)
        limit = {} if self.limit is None else {"limit": self.limit, "within_limit": self.within()}
        sizes = {"states": self.model.num_states, "actions": self.model.num_actions}
        return {"env": self.env, **sizes, **limit, "results": results}


def solve(env_id: str, kwargs: Mapping[str, Any], discounts: Sequence[float]) -> Solved:
    """The optimum of an env for each of these discounts.

    Raises:
      BadInput: in one line, where the env cannot be made, has no table, or does otherwise than its table says.
    """
    try:
        env = NumberedEnv(EnvConfig(id=env_id, kwargs=dict(kwargs)))
        model = env.model()
    except BadInput as error:
        text = str(error)
        raise BadInput(text if text.startswith("env ") else f"env {env_id!r} {text}") from None
    if model is None:
        raise BadInput(
            f"env {env_id!r} gives no transition table (env.unwrapped.P and initial_state_distrib): there is nothing "
            "to solve; a method that learns from episodes needs none (q_learning, dqn, ppo)"
        )
    solutions: dict[float, Solution | str] = {}
    for discount in discounts:
        try:
            solutions[discount] = planning.optimum(model, discount)
        except NoOptimum as error:
            solutions[discount] = str(error)
    try:
        for solution in solutions.values():
            if isinstance(solution, Solution):
                _hold_against(env, model, solution.policy)
    finally:
        env.close()
    if all(isinstance(found, str) for found in solutions.values()):
        raise BadInput(f"env {env_id!r} has no optimum: {next(iter(solutions.values()))}; give --discount")
    return Solved(env_id, model, env.limit, _grid(env, model), solutions)


def _hold_against(env: NumberedEnv, model: Model, policy: Array) -> None:
    """Raises BadInput: where the env does what its table does not have. The policy is played, and then actions at
    random."""
    rng = np.random.default_rng(0)
    for episode in range(CHECKED_EPISODES):
        state, _ = env.reset(seed=episode)
        for _ in range(CHECKED_STEPS):
            at_random = episode % 2 == 1
            action = int(rng.integers(model.num_actions)) if at_random else int(policy[state].argmax())
            following, reward, terminated, truncated, _ = env.step(action)
            known = model.outcomes(state, action)
            same = (model.next_states[known] == following) & (model.terminated[known] == terminated)
            if not (same & np.isclose(model.rewards[known], reward) & (model.probabilities[known] > 0)).any():
                raise BadInput(
                    f"env {env.env.spec.id if env.env.spec else ''!r} does what its transition table does not have "
                    f"(action {action} in state {state} led to state {following}, reward {reward:g}): the table's "
                    "optimum would not be the env's"
                )
            state = following
            if terminated or truncated:
                break


def _grid(env: NumberedEnv, model: Model) -> Array | None:
    """What an env that says how its states lie on a grid has there: letters, or a sign for where nobody acts."""
    plain: Any = env.env.unwrapped
    desc, shape = getattr(plain, "desc", None), getattr(plain, "shape", None)
    if isinstance(desc, np.ndarray) and desc.ndim == 2 and desc.size == model.num_states:
        return desc.astype(str)
    if isinstance(shape, tuple) and len(shape) == 2 and int(np.prod(shape)) == model.num_states:
        cells = np.full(model.num_states, ".")
        cells[model.ends()] = "G"
        return cells.reshape(shape)
    return None


def _directions(model: Model, columns: int) -> list[str]:
    """Of each action the way in which it leads on average, over all states, as an arrow; its number where none."""
    pairs = np.repeat(np.arange(model.num_states * model.num_actions), np.diff(model.first, append=len(model.rewards)))
    states, actions = divmod(pairs, model.num_actions)
    moved = np.stack([model.next_states // columns - states // columns, model.next_states % columns - states % columns])
    near = np.abs(moved).sum(0) <= 1  # who is sent back to the start has not walked there
    found = []
    for action in range(model.num_actions):
        rows, cols = (moved * model.probabilities * near)[:, actions == action].sum(1)
        across = abs(cols) > abs(rows)
        way = (0, int(np.sign(round(cols, 6)))) if across else (int(np.sign(round(rows, 6))), 0)
        found.append(_ARROWS.get(way, str(action)))
    return found


def _ranges(states: Sequence[int]) -> str:
    """1-4, 7, 9-10"""
    parts: list[list[int]] = []
    for state in states:
        if parts and state == parts[-1][1] + 1:
            parts[-1][1] = state
        else:
            parts.append([state, state])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
