"""Prediction: v_pi from episodes that pi played, without a model. Each function learns from one episode and returns new
values [S]; what was given stays as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollcall.cluster.messages.arrays import Array


@dataclass(frozen=True)
class Episode:
    """Reward r[t] follows the action that was taken in state s[t], and leads to s[t + 1]."""

    states: Array  # int [T + 1]
    rewards: Array  # [T]
    terminated: bool  # else it was cut off: s[T] would have gone on, and its value counts

    def __len__(self) -> int:
        return len(self.rewards)

    def tail(self, values: Array) -> float:
        """The value of where the episode stopped."""
        return 0.0 if self.terminated else float(values[self.states[-1]])


def returns(episode: Episode, discount: float, tail: float = 0.0) -> Array:
    """[T]: G_t = R_t+1 + gamma G_t+1, the book's (3.9); `tail` stands for the return after the last step."""
    found, following = np.zeros(len(episode)), tail
    for t in reversed(range(len(episode))):
        found[t] = following = episode.rewards[t] + discount * following
    return found


def monte_carlo(
    values: Array, visits: Array, episode: Episode, discount: float, *, first_visit: bool = True
) -> tuple[Array, Array]:
    """(values, visits), both [S]: each state's value is the mean of the returns that followed its first visits, or
    every visit. The book's section 5.1; the mean is kept incrementally (2.3): V <- V + (G - V) / n."""
    values, visits = values.copy(), visits.copy()
    found = returns(episode, discount, episode.tail(values))
    for t, state in enumerate(episode.states[:-1]):
        if first_visit and state in episode.states[:t]:
            continue
        visits[state] += 1
        values[state] += (found[t] - values[state]) / visits[state]
    return values, visits


def constant_step_monte_carlo(values: Array, episode: Episode, step_size: float, discount: float) -> Array:
    """V(S_t) <- V(S_t) + alpha [G_t - V(S_t)], the book's (6.1), for every visit, after the episode."""
    found = returns(episode, discount, episode.tail(values))
    values = values.copy()
    for t, state in enumerate(episode.states[:-1]):
        values[state] += step_size * (found[t] - values[state])
    return values


def td(values: Array, episode: Episode, step_size: float, discount: float) -> Array:
    """TD(0): V(S_t) <- V(S_t) + alpha [R_t+1 + gamma V(S_t+1) - V(S_t)], the book's (6.2)."""
    values = values.copy()
    for t in range(len(episode)):
        state = episode.states[t]
        values[state] += step_size * td_error(values, episode, t, discount)
    return values


def td_error(values: Array, episode: Episode, t: int, discount: float) -> float:
    """delta_t = R_t+1 + gamma V(S_t+1) - V(S_t), the book's (6.5)."""
    ended = episode.terminated and t == len(episode) - 1
    following = 0.0 if ended else float(values[episode.states[t + 1]])
    return float(episode.rewards[t] + discount * following - values[episode.states[t]])


def n_step_td(values: Array, episode: Episode, n: int, step_size: float, discount: float) -> Array:
    """V_t+n(S_t) = V_t+n-1(S_t) + alpha [G_t:t+n - V_t+n-1(S_t)], the book's (7.2), with the n-step return (7.1)
    G_t:t+n = R_t+1 + ... + gamma^n-1 R_t+n + gamma^n V_t+n-1(S_t+n). Updates come as in play: n steps after their
    states, and for the last states when the episode is over."""
    values, length = values.copy(), len(episode)
    for t in range(length):
        end = min(t + n, length)
        powers = discount ** np.arange(end - t)
        target = float(powers @ episode.rewards[t:end])
        if end < length or not episode.terminated:
            target += discount ** (end - t) * float(values[episode.states[end]])
        state = episode.states[t]
        values[state] += step_size * (target - values[state])
    return values


def lambda_returns(values: Array, episode: Episode, lam: float, discount: float) -> Array:
    """[T]: G_t^lambda = (1 - lambda) sum_n lambda^n-1 G_t:t+n, the book's (12.2), the last of which has all the weight
    that is left (12.3). Here by its recursion: G_t = R_t+1 + gamma [(1 - lambda) V(S_t+1) + lambda G_t+1]."""
    found, following = np.zeros(len(episode)), episode.tail(values)
    for t in reversed(range(len(episode))):
        last = t == len(episode) - 1
        value = episode.tail(values) if last else float(values[episode.states[t + 1]])
        found[t] = following = episode.rewards[t] + discount * ((1 - lam) * value + lam * following)
    return found


def td_lambda(values: Array, episode: Episode, lam: float, step_size: float, discount: float) -> Array:
    """The backward view, with accumulating traces: z <- gamma lambda z + grad v(S_t) (12.5), delta_t as in (12.6), and
    w <- w + alpha delta_t z (12.7); of a table the gradient is 1 at S_t. lambda = 0 is TD(0)."""
    values, trace = values.copy(), np.zeros_like(values)
    for t in range(len(episode)):
        trace *= discount * lam
        trace[episode.states[t]] += 1.0
        values += step_size * td_error(values, episode, t, discount) * trace
    return values
