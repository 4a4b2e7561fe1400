"""Linear function approximation, v(s, w) = w . x(s): where it agrees with the table, where it ends, and the example in
which it has no end. Features are [S, D], weights [D]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollcall.cluster.messages.arrays import Array


@dataclass(frozen=True)
class Step:
    """One step of a process: features [D] before it, its reward, features after it (zeros after a termination), and how
    much likelier the action is under the target policy than under the one that acted."""

    features: Array
    reward: float
    next_features: Array
    ratio: float = 1.0  # rho, the book's (11.1)


def semi_gradient_td(weights: Array, step: Step, step_size: float, discount: float) -> Array:
    """w <- w + alpha rho [R + gamma w . x' - w . x] x: the book's (9.9), and off policy (11.2)."""
    error = step.reward + discount * float(weights @ step.next_features) - float(weights @ step.features)
    updated: Array = weights + step_size * step.ratio * error * step.features
    return updated


def expected_semi_gradient(
    weights: Array, features: Array, transitions: Array, rewards: Array, *, mu: Array, step_size: float, discount: float
) -> Array:
    """w <- w + alpha sum_s mu(s) (E_pi[R + gamma w . x(S')] - w . x(s)) x(s): the update without its noise, over states
    visited with the frequencies mu [S]. With all alike, it is the book's (11.9). `transitions` [S, S] and `rewards`
    [S] are the target policy's."""
    errors = rewards + discount * transitions @ features @ weights - features @ weights
    updated: Array = weights + step_size * (mu * errors) @ features
    return updated


def fixed_point(features: Array, transitions: Array, rewards: Array, *, mu: Array, discount: float) -> Array:
    """w_TD = A^-1 b with A = E[x (x - gamma x')^T] and b = E[R x]: the book's (9.11) and (9.12). On policy, mu is the
    policy's own distribution and semi-gradient TD(0) ends here."""
    weighted = features.T * mu
    matrix = weighted @ (features - discount * transitions @ features)
    return np.asarray(np.linalg.solve(matrix, weighted @ rewards))


def tdc(
    weights: Array, correction: Array, step: Step, *, step_size: float, correction_step_size: float, discount: float
) -> tuple[Array, Array]:
    """(w, v) after a step of TD(0) with gradient correction (the book's section 11.7; Sutton et al., 2009), which is
    stable off policy: w <- w + alpha rho (delta x - gamma x' (x . v)), v <- v + beta rho (delta - v . x) x."""
    error = step.reward + discount * float(weights @ step.next_features) - float(weights @ step.features)
    guess = float(correction @ step.features)
    moved = error * step.features - discount * guess * step.next_features
    weights = weights + step_size * step.ratio * moved
    correction = correction + correction_step_size * step.ratio * (error - guess) * step.features
    return weights, correction


@dataclass(frozen=True)
class Baird:
    """Baird's counterexample (1995), the book's figure 11.1. Seven states, eight weights, no reward. `dashed` leads to
    one of the upper six, `solid` to the seventh. The policy that acts takes dashed with 6/7; the target policy
    always takes solid. Every value is 0, weights of 0 have them, and the features are linearly independent: all
    the same semi-gradient TD(0) off policy moves away from them, at any step size."""

    discount: float = 0.99
    step_size: float = 0.01

    @property
    def features(self) -> Array:
        """[7, 8]: 2 w_i + w_8 in the upper states, w_7 + 2 w_8 in the seventh."""
        features = np.zeros((7, 8))
        features[np.arange(6), np.arange(6)] = 2.0
        features[:6, 7] = 1.0
        features[6, 6:] = 1.0, 2.0
        return features

    @property
    def weights(self) -> Array:
        """Those that the book begins with."""
        return np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0])

    @property
    def transitions(self) -> Array:
        """[7, 7], of the target policy."""
        matrix = np.zeros((7, 7))
        matrix[:, 6] = 1.0
        return matrix

    def play(self, num_steps: int, rng: np.random.Generator) -> list[Step]:
        """Under the policy that acts, from a state at random."""
        features, state, steps = self.features, int(rng.integers(7)), []
        for _ in range(num_steps):
            solid = bool(rng.random() < 1 / 7)
            following = 6 if solid else int(rng.integers(6))
            steps.append(Step(features[state], 0.0, features[following], 7.0 if solid else 0.0))
            state = following
        return steps
