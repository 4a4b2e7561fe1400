"""Raters of a known reward, with the noise of people."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rollcall.reward_service.preferences.records import Answer, Candidate, TextCandidate
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig

TrueReward = Callable[..., Any]


def rank(rewards: Sequence[float], config: SyntheticRaterConfig, rng: np.random.Generator) -> tuple[int, ...]:
    """The place of each candidate, 0 the best, drawn as Plackett and Luce do (a pair: Bradley and Terry, 1952).

    Rewards with Gumbel noise of the given temperature are sorted, and with probability error_rate two of them change
    places. Neighbours whose rewards differ by at most tie_threshold share a place; where all do, there is no noise.

    Raises:
      ValueError: rewards that are not finite.
    """
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"rewards are {list(rewards)}: a true reward must be a finite number")
    count = len(rewards)
    if max(rewards) - min(rewards) <= config.tie_threshold:
        return (0,) * count
    utilities = np.asarray(rewards, np.float64)
    if config.temperature > 0:
        utilities = utilities + config.temperature * rng.gumbel(size=count)
    order = [int(index) for index in np.argsort(-utilities, kind="stable")]
    if rng.random() < config.error_rate:
        i, j = rng.choice(count, size=2, replace=False)
        order[i], order[j] = order[j], order[i]
    places, place = [0] * count, 0
    for before, after in pairwise(order):
        if abs(rewards[before] - rewards[after]) > config.tie_threshold:
            place += 1
        places[after] = place
    return tuple(places)


def reward_of(candidate: Candidate, true_reward: TrueReward) -> float:
    """true_reward(prompt, response) of a text, true_reward(observations, actions) of a segment. An array, one reward a
    step, is summed.

    Raises:
      ValueError: where it says no number.
    """
    if isinstance(candidate, TextCandidate):
        asked = candidate.asked
        prompt: Any = asked if isinstance(asked, str) else [message.model_dump() for message in asked]
        said = true_reward(prompt, candidate.response)
    else:
        said = true_reward(candidate.segment.observations.array(), candidate.segment.actions.array())
    array = np.asarray(said)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the true reward said {said!r:.100}, and a number or one a step is needed")
    return float(array.sum(dtype=np.float64))


class SyntheticRater:
    """Says what a true reward and noise make it say. Raters of different names have different noise."""

    def __init__(
        self, name: str, true_reward: TrueReward, config: SyntheticRaterConfig, *, says_it_again: bool = False
    ) -> None:
        """`says_it_again`: noise is drawn by what is compared, so that another one of this name says the same of it;
        else one answer after the other."""
        self.name = name
        self._true_reward, self._config, self._says_it_again = true_reward, config, says_it_again
        self._seed = (config.seed, *name.encode())
        self._rng = np.random.default_rng(self._seed)

    def answer(self, candidates: Sequence[Candidate]) -> Answer:
        order, rng = list(range(len(candidates))), self._rng
        if self._says_it_again:
            digests = [candidate.digest() for candidate in candidates]
            order.sort(key=digests.__getitem__)  # whatever their order on the screen
            rng = np.random.default_rng((*self._seed, *(int(digests[index][:16], 16) for index in order)))
        found = rank([reward_of(candidates[index], self._true_reward) for index in order], self._config, rng)
        places = tuple(place for _, place in sorted(zip(order, found, strict=True)))
        if len(places) > 2:
            return Answer(ranks=places)
        return Answer(choice="tie" if places[0] == places[1] else "left" if places[0] == 0 else "right")
