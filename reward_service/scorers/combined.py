"""Scorers made of scorers: a weighted sum of clipped parts, and an ensemble that says how far its members disagree."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Scorer, Taken, finite
from rollcall.reward_service.scorers.combined_config import Take, Term


class CombinedScorer:
    """Asks every scorer about every item, and combines the scores of each."""

    def __init__(
        self,
        version: str,
        scorers: dict[str, Scorer],
        combine: Callable[[dict[str, float]], tuple[float, dict[str, float]]],
    ) -> None:
        """
        Args:
          combine: scores by name -> the score, and components beyond the parts' own.
        """
        taken = frozenset[Taken]({"text", "segment"}).intersection(*(scorer.takes for scorer in scorers.values()))
        self.takes: frozenset[Taken] = taken
        self._version = version
        self._scorers = scorers
        self._combine = combine

    @property
    def version(self) -> str:
        versions = "\n".join(f"{name} {scorer.version}" for name, scorer in self._scorers.items())
        return f"{self._version}-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"

    @property
    def cacheable(self) -> bool:
        return all(scorer.cacheable for scorer in self._scorers.values())

    def cost(self, item: ScoreItem) -> int:
        return sum(scorer.cost(item) for scorer in self._scorers.values())

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        by_name = {name: scorer.score(items) for name, scorer in self._scorers.items()}
        return [self._combined({name: outcomes[n] for name, outcomes in by_name.items()}) for n in range(len(items))]

    def close(self) -> None:
        for scorer in self._scorers.values():
            scorer.close()

    def _combined(self, outcomes: dict[str, Outcome]) -> Outcome:
        values: dict[str, float] = {}
        components: dict[str, float] = {}
        for name, outcome in outcomes.items():
            outcome = finite(outcome)  # clipping would make a number of an infinity
            if isinstance(outcome, Failure):
                return Failure(outcome.kind, f"{name}: {outcome.message}")
            values[name] = components[name] = outcome.value
            components |= {f"{name}.{inner}": value for inner, value in outcome.components.items()}
        value, more = self._combine(values)
        return Score(value, components | more)


def weighted_sum(scorers: dict[str, Scorer], terms: Mapping[str, Term]) -> CombinedScorer:
    """The sum over the scorers of weight times clipped score."""

    def combine(values: dict[str, float]) -> tuple[float, dict[str, float]]:
        return sum(term.weight * term.clipped(values[name]) for name, term in terms.items()), {}

    settings = [(name, term.weight, term.at_least, term.at_most) for name, term in terms.items()]
    return CombinedScorer(_version("weighted_sum", settings), scorers, combine)


def ensemble(scorers: dict[str, Scorer], take: Take, deviations: float) -> CombinedScorer:
    """`take` of several opinions; lower_bound is the mean less so many `deviations`."""

    def combine(values: dict[str, float]) -> tuple[float, dict[str, float]]:
        scores = list(values.values())
        mean, disagreement = statistics.fmean(scores), statistics.stdev(scores)
        taken = {"mean": mean, "min": min(scores), "lower_bound": mean - deviations * disagreement}
        return taken[take], {"disagreement": disagreement}

    return CombinedScorer(_version("ensemble", (take, deviations)), scorers, combine)


def build_all(builders: Mapping[str, Callable[[], Scorer]]) -> dict[str, Scorer]:
    """All of them, or none: what was built before one fails is closed."""
    built: dict[str, Scorer] = {}
    try:
        for name, build in builders.items():
            built[name] = build()
    except BaseException:
        for scorer in built.values():
            scorer.close()
        raise
    return built


def _version(kind: str, settings: object) -> str:
    return f"{kind}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}"
