"""A schedule: what one simulated run is like, and which of its faults happen. All of it follows from a seed, and from
what a reader (or the shrinking) says otherwise. Every draw is of a name and not of a sequence: leaving one fault out
changes no other."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import xxhash

# The largest chance of each, at every place where it may happen. Half of them do not happen at all under a given seed.
FAULTS: Mapping[str, float] = {
    "actor_dies": 0.15,  # in the middle of a ticket
    "dies_before_handover": 0.1,  # it has produced, and nobody gets it
    "zombie": 0.7,  # what was given up answers all the same, late
    "doubled": 0.2,  # an answer comes twice
    "partition": 0.2,  # of a group of actors, for a while: answers are late
    "given_up": 0.5,  # by the driver, in a partition; then they answer
    "stale": 0.1,  # an actor acted with older weights than it was asked to
    "unscored": 0.15,
    "degenerate": 0.2,
    "skipped": 0.1,  # a loss that is not finite
    "learner_dies_before": 0.05,
    "learner_dies_updated": 0.05,  # its log is written, its checkpoint and weights are not
    "learner_dies_saving": 0.1,
    "learner_dies_published": 0.05,
    "learner_dies_committed": 0.05,
    "learner_dies_starting": 0.2,
    "late_step": 0.7,  # a dead learner's answer comes all the same
    "server_lost": 0.1,  # the parameter server
    "eval_fails": 0.3,
    "redis_away": 0.02,  # nothing is written, until it answers
    "answer_lost": 0.02,  # it is written, and nobody is told
    "redis_forgets": 0.01,  # it comes back without its last writes
    "driver_killed": 0.01,  # before or after a call of Redis
    "driver_killed_told": 0.03,  # between commit and checkpoint, or after a checkpoint
    "zombie_learner": 0.7,  # its driver is gone, and it finishes its step beside its successor
    "zombie_driver": 0.7,  # it was only stopped, and writes once more
    "stopped": 0.03,  # asked to stop after a step; resumed
}
AT_EACH_CALL = {"redis_away", "answer_lost", "redis_forgets", "driver_killed"}


@dataclass(frozen=True)
class Schedule:
    """One simulated run. A field that is None follows from the seed."""

    seed: int
    actors: int | None = None
    batch: int | None = None
    steps: int | None = None
    only: frozenset[str] | None = None  # faults that happen, by name; None: those that the seed draws
    quiet: bool = False  # no faults at all

    @cached_property
    def shape(self) -> Shape:
        draw = random.Random(f"shape {self.seed}")
        lag = draw.choice([0, 0, 1, 1, 2, 4])
        actors = draw.choice([1, 2, 3, 5, 8, 12, 40])
        batch = draw.randint(1, 6)
        steps = draw.randint(4, 14)
        language = draw.random() < 0.4
        return Shape(
            actors=self.actors or actors,
            batch=self.batch or (batch if self.actors is None else max(1, -(-self.actors // (lag + 1)))),
            steps=self.steps or steps,
            lag=lag,
            drops_stale=draw.random() < 0.3,
            language=language,
            scored=draw.random() < 0.4,
            exact=lag == 0 and draw.random() < 0.7,
            checkpoint_every=draw.randint(1, 5),
            keep=draw.randint(1, 3),
            eval_every=draw.choice([None, 2, 5]),
            tail=draw.choice([1.1, 1.5, 3.0]),
            gathers_s=draw.choice([0.0, 0.0, 0.2]),
            seals=draw.choice([0, 0, 1, 2, 8]),
        )

    @cached_property
    def rates(self) -> dict[str, float]:
        draw = random.Random(f"rates {self.seed}")
        rates = {name: 0.0 if draw.random() < 0.5 else most * draw.random() for name, most in FAULTS.items()}
        rarer = min(1.0, 40 / self.shape.actors)  # there are more calls the more actors there are, and not more outages
        return {name: rate * rarer if name in AT_EACH_CALL else rate for name, rate in rates.items()}

    def command(self) -> str:
        """What runs it again."""
        parts = ["python -m benchmarks.simulate", f"--seed {self.seed}"]
        sizes = {name: getattr(self, name) for name in ("actors", "batch", "steps")}
        parts += [f"--{name} {value}" for name, value in sizes.items() if value is not None]
        if self.only is not None:
            parts.append("--only " + ",".join(sorted(self.only)) if self.only else "--quiet")
        elif self.quiet:
            parts.append("--quiet")
        return " ".join(parts)


@dataclass(frozen=True)
class Shape:
    """What a simulated run is like."""

    actors: int
    batch: int
    steps: int
    lag: int
    drops_stale: bool
    language: bool
    scored: bool
    exact: bool
    checkpoint_every: int
    keep: int
    eval_every: int | None
    tail: float  # of the Pareto distribution of how long a ticket takes: infinite variance below 2
    gathers_s: float  # answers that come so close together are handed over together
    seals: int = 0  # tickets of a segment of sealed books at the least; 0: nothing is sealed


class Chances:
    """Draws by name. Remembers which faults happened."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._rates = {} if schedule.quiet else schedule.rates
        self.happened: dict[str, None] = {}

    def unit(self, *name: str | int) -> float:
        """In [0, 1), the same whenever it is asked."""
        text = "/".join(map(str, (self._schedule.seed, *name)))
        return xxhash.xxh64_intdigest(text.encode()) / 2.0**64

    def happens(self, fault: str, *where: str | int) -> bool:
        rate = self._rates.get(fault, 0.0)
        if not rate or self.unit("fault", fault, *where) >= rate:
            return False
        name = ":".join(map(str, (fault, *where)))
        if self._schedule.only is not None and name not in self._schedule.only:
            return False
        self.happened[name] = None
        return True

    def between(self, low: float, high: float, *name: str | int) -> float:
        return low + (high - low) * self.unit(*name)

    def pareto(self, tail: float, *name: str | int) -> float:
        """At least 1, heavy-tailed."""
        return float((1.0 - self.unit(*name)) ** (-1.0 / tail))
