"""Which line a screen shows of an event: failures come in hundreds that differ in numbers alone. What is written down
is recorders.py's, and complete."""

from __future__ import annotations

import re
from collections import Counter

# Events that end an attempt at a rollout, as the coordinator names them.
DROPS = (
    *("actor_died", "actor_failed", "object_lost", "deadline", "stale", "stale_epoch", "unscored", "versions_mixed"),
    *("non_finite", "env_failed", "expert_failed", "weights_timeout", "checksum_mismatch", "degenerate", "invalid"),
)
_COUNTED = (*DROPS, "attempts_exhausted", "skipped", "eval_failed", "start_failed")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_LONGEST = 400  # characters
_MAX_KINDS = 20  # of texts of one kind of event: what else comes is counted together


class EventLines:
    """Of one screen. Of failures that are alike the first is shown, and then, ever more seldom, how many there were: at
    the second, the fourth, the eighth, ..."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in _COUNTED}

    def line(self, kind: str, text: str) -> str | None:
        """What to show of an event, in one line, without a traceback below it; None: nothing."""
        shown = f"{kind}: {text.partition(chr(10))[0]}"
        if len(shown) > _LONGEST:  # events.jsonl has all of it
            shown = f"{shown[:_LONGEST]} ..."
        counts = self._counts.get(kind)
        if counts is None:
            return shown
        alike = _NUMBERS.sub("#", shown)
        if alike not in counts and len(counts) >= _MAX_KINDS:
            alike = "others"
        counts[alike] += 1
        count = counts[alike]
        if count & (count - 1):  # no power of two
            return None
        return shown if count == 1 else f"{shown} ({count:,} like this so far)"
