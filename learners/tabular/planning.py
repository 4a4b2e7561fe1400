"""Dynamic programming: what a policy is worth, and which one is best, where the dynamics are known. Policies are
[S, A], each row a distribution; values are [S]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.model import Model

TOLERANCE = 1e-12
MAX_SWEEPS = 1_000_000
_LOOK = 1 << 14  # sweeps after which undiscounted values that never settle are told apart
_TIE = 1e-9  # of action values, relative to the largest


class NoOptimum(ValueError):
    """Undiscounted values that are not finite, or that no policy attains."""


@dataclass(frozen=True)
class Solution:
    """What a method of dynamic programming ended with."""

    values: Array  # [S]
    policy: Array  # [S, A]: greedy with respect to them
    iterations: int  # sweeps of value iteration, or improvements of policy iteration


def closed_form(model: Model, policy: Array, discount: float, among: Array | None = None) -> Array:
    """Bellman's equation for v_pi, the book's (4.4), solved as the linear system that it is:
    v = (I - gamma P_pi)^-1 r_pi.

    `among`: bool [S], states that the policy does not leave; the others' values are not asked for, and 0. Undiscounted,
    a state from which the episode never ends is worth 0 if it never gives a reward.

    Raises:
      NoOptimum: undiscounted, where such a state gives rewards.
    """
    matrix = model.transitions(policy)
    rewards = (policy * model.expected_rewards()).sum(1)
    solved = np.ones(model.num_states, bool) if among is None else among.copy()
    if discount == 1.0:
        endless = solved & ~_may_end(matrix)
        if (rewards[endless] != 0).any():
            state = int(np.flatnonzero(endless & (rewards != 0))[0])
            raise NoOptimum(f"from state {state} on the episode never ends, and its rewards have no finite sum")
        solved &= ~endless
    values = np.zeros(model.num_states)
    inner = matrix[np.ix_(solved, solved)]
    values[solved] = np.linalg.solve(np.eye(len(inner)) - discount * inner, rewards[solved])
    return values


def _may_end(matrix: Array) -> Array:
    """bool [S]: states from which the end can be reached."""
    found: Array = matrix.sum(1) < 1.0 - 1e-9
    while True:
        more = found | (matrix[:, found] > 0).any(1)
        if (more == found).all():
            return found
        found = more


def policy_evaluation(
    model: Model, policy: Array, discount: float, *, tolerance: float = TOLERANCE, max_sweeps: int = MAX_SWEEPS
) -> tuple[Array, int]:
    """Iterative policy evaluation, the book's (4.5): v(s) <- sum_a pi(a|s) sum_s',r p(s',r|s,a) [r + gamma v(s')], for
    all states at once. Returns v_pi to within `tolerance` (discounted) and the number of sweeps."""
    values = np.zeros(model.num_states)
    for sweep in range(1, max_sweeps + 1):
        before, values = values, (policy * model.backup(values, discount)).sum(1)
        if _settled(before, values, discount, tolerance):
            return values, sweep
    raise NoOptimum(f"the policy's values had not settled after {max_sweeps:,} sweeps")


def _settled(before: Array, after: Array, discount: float, tolerance: float) -> bool:
    """A backup is a contraction by the discount: from a last change c what is to come is at most c discount / (1 -
    discount). Undiscounted there is no such bound, and the change itself is asked to vanish."""
    change = float(np.abs(after - before).max())
    if discount < 1.0:
        return change * discount <= tolerance * (1.0 - discount)
    return change <= tolerance * 1e-3 * max(1.0, float(np.abs(after).max()))


def greedy(action_values: Array) -> Array:
    """[S, A]: the policy that is greedy with respect to q [S, A], the book's (4.9); of equals the first."""
    policy = np.zeros_like(action_values)
    policy[np.arange(len(action_values)), action_values.argmax(1)] = 1.0
    return policy


def policy_iteration(model: Model, discount: float) -> Solution:
    """Evaluation in closed form and greedy improvement (the book's 4.9) in turn, until the policy is its own
    improvement; an action is left only for one that is better. Discounted.

    Raises:
      ValueError: for discount = 1: the policy that it begins with may never end.
    """
    if discount >= 1.0:
        raise ValueError(f"discount={discount:g}: policy iteration here is for less than 1; use value_iteration")
    policy = greedy(model.expected_rewards())
    for iteration in range(1, MAX_SWEEPS):
        values = closed_form(model, policy, discount)
        q = model.backup(values, discount)
        own = (policy * q).sum(1)
        better = q.max(1) > own + _TIE * max(1.0, float(np.abs(q).max()))
        if not better.any():
            return Solution(values, policy, iteration)
        policy = np.where(better[:, None], greedy(q), policy)
    raise AssertionError("finitely many policies, each better than the one before")


def value_iteration(
    model: Model, discount: float, *, tolerance: float = TOLERANCE, max_sweeps: int = MAX_SWEEPS
) -> Solution:
    """v(s) <- max_a sum_s',r p(s',r|s,a) [r + gamma v(s')], the book's (4.10), for all states at once, until v_* is
    known to within `tolerance` (discounted). States that cannot be reached from a first one stay 0.

    Raises:
      NoOptimum: when the values have not settled: undiscounted, where they are not finite.
    """
    reached = model.reachable()
    values, at_first = np.zeros(model.num_states), np.inf
    for sweep in range(1, max_sweeps + 1):
        q = model.backup(values, discount)
        before, values = values, np.where(reached, q.max(1), 0.0)
        if _settled(before, values, discount, tolerance):
            return Solution(values, greedy(model.backup(values, discount)), sweep)
        change = float(np.abs(values - before).max())
        if sweep == _LOOK:
            at_first = change
        elif discount == 1.0 and sweep == 2 * _LOOK and change > 0.999 * at_first:
            break  # as many sweeps again hardly shrank it: it would not settle within any number of them
    raise NoOptimum(f"the values had not settled after {sweep:,} sweeps")


def optimum(model: Model, discount: float, *, max_sweeps: int = MAX_SWEEPS) -> Solution:
    """The optimal values, exactly: those of value iteration's greedy policy, in closed form, which are seen to satisfy
    Bellman's optimality equation (the book's 4.1). Among actions of equal value the policy takes one that leads to the
    end soonest: undiscounted, one that merely keeps its chances for ever would be greedy too.

    Raises:
      NoOptimum: undiscounted, where the values are not finite or no policy attains them.
    """
    found = value_iteration(model, discount, max_sweeps=max_sweeps)
    q = model.backup(found.values, discount)
    equals = q >= q.max(1, keepdims=True) - _TIE * max(1.0, float(np.abs(q).max()))
    policy = _soonest(model, equals)
    reached = model.reachable(policy)
    values = closed_form(model, policy, discount, among=reached)
    missed = float(np.abs(values - found.values)[reached].max())
    if missed > 1e-7 * max(1.0, float(np.abs(values).max())):
        raise NoOptimum(f"no policy attains the values: the best that was found misses them by {missed:.3g}")
    values = np.where(reached, values, found.values)
    return Solution(values, policy, found.iterations)


def _soonest(model: Model, allowed: Array) -> Array:
    """[S, A]: of the allowed actions, those that end the episode soonest, in the sense of the largest expectation of
    0.99 ** steps. Where no end can be reached, the first allowed one."""
    continues, soon = np.where(model.terminated, 0.0, 1.0), np.zeros(model.num_states)
    for _ in range(20_000):
        of_outcomes = np.where(continues > 0, 0.99 * soon[model.next_states], 0.99) * model.probabilities
        q = np.add.reduceat(of_outcomes, model.first).reshape(allowed.shape)
        q = np.where(allowed, q, -1.0)
        before, soon = soon, q.max(1)
        if np.abs(soon - before).max() < 1e-13:
            break
    return greedy(np.where(q >= q.max(1, keepdims=True) - 1e-12, 1.0, 0.0))


def within(model: Model, horizon: int, policy: Array | None = None) -> Array:
    """[S]: the expected undiscounted return of at most `horizon` steps: of a policy [S, A], or the best of all that may
    look at the time left. Backward induction: v_0 = 0, v_k+1(s) = max_a sum p [r + v_k(s')]."""
    values = np.zeros(model.num_states)
    for _ in range(horizon):
        q = model.backup(values, 1.0)
        values = q.max(1) if policy is None else (policy * q).sum(1)
    return values
