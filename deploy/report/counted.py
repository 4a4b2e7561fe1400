"""What a run counts, and what its records and its summary call that. Knows words; whose they are it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counted:
    """One thing that is counted."""

    key: str  # in the record of a step: so many by then
    total: str  # in the summary
    speed: str  # in the summary: a second
    unit: str  # one of them
    step: str = ""  # in what a learner step reports: how many of them it learnt from

    def done(self, amount: int, seconds: float) -> dict[str, Any]:
        """Of a summary."""
        return {self.total: amount, self.speed: amount / seconds if seconds else 0.0}


ENV_STEPS = Counted("env_steps", "env_steps", "steps_per_s", "env step")
TOKENS = Counted("tokens", "generated_tokens", "tokens_per_s", "token")
LEARNT = Counted("tokens", "trained_size", "size_per_s", "token", step="trained_size")  # or steps of segments
IMITATED = Counted("tokens", "trained_tokens", "tokens_per_s", "token", step="trained_tokens")
