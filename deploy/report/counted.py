"""What a run counts, and what its records and its summary call that: the words in which a run is told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counted:
    """One thing that is counted."""

    key: str  # in the record of a step: so many by then
    total: str  # in the summary
    speed: str  # in the summary: a second
    unit: str  # one of them
    trial: str  # what is counted where it is evaluated
    step: str = ""  # in what a learner step reports: how many of them it learnt from

    @property
    def units(self) -> str:
        return f"{self.unit}s"

    @property
    def per_second(self) -> str:
        """The unit of a speed."""
        return "tok/s" if self.unit == "token" else "steps/s"

    def done(self, amount: int, seconds: float) -> dict[str, Any]:
        """Of a summary."""
        return {self.total: amount, self.speed: amount / seconds if seconds else 0.0}


ENV_STEPS = Counted("env_steps", "env_steps", "steps_per_s", "env step", "episodes")
PLAYED = Counted("env_steps", "env_steps", "steps_per_s", "env step", "episodes", step="played_steps")
TOKENS = Counted("tokens", "generated_tokens", "tokens_per_s", "token", "problems")
LEARNT = Counted("tokens", "trained_size", "size_per_s", "token", "pairs", step="trained_size")  # or steps of segments
RECORDED = Counted("env_steps", "trained_steps", "steps_per_s", "recorded step", "episodes", step="trained_steps")
IMITATED = Counted("tokens", "trained_tokens", "tokens_per_s", "token", "problems", step="trained_tokens")


PAIRS_RIGHT = "pairs right"  # the unit of an evaluation on comparisons
BROKEN = "broken"  # of one of answers that are to keep principles
RETURN = "return"  # of one in an env


def counted_in(records: Sequence[Mapping[str, Any]]) -> Counted:
    """By what steps and evaluations say, of which the latter may say both; env steps where they say nothing."""
    of_tokens = (record.get("tokens") or ("tokens" in record and "env_steps" not in record) for record in records)
    return TOKENS if any(of_tokens) else ENV_STEPS
