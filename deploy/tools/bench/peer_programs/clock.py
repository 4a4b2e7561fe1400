"""What the programs of peers share. Each is run by the Python of its peer, with its work as JSON in its first argument,
and prints one JSON object in its last line: {"per_second": env steps or tokens, "returns": [of episodes]}. Rollcall
imports none of it, and it imports nothing of Rollcall's."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

WORK: dict[str, Any] = json.loads(sys.argv[1])
LAST_EPISODES = 100  # whose returns are told


class Clock:
    """Counts env steps after a warm-up for so many seconds, or trains for so many env steps, as the work says."""

    def __init__(self, *, warm_up_steps: int) -> None:
        self._warm_up_steps = warm_up_steps
        self._from: tuple[int, float] | None = None
        self._per_second = 0.0

    def is_over(self, env_steps: int) -> bool:
        """Asked after each piece of work: `env_steps` are all that were taken until now."""
        now = time.perf_counter()
        if self._from is None:
            if env_steps >= self._warm_up_steps:
                self._from = env_steps, now
        else:
            self._per_second = (env_steps - self._from[0]) / (now - self._from[1])
            if WORK["learn_steps"] is None:
                return now - self._from[1] >= WORK["seconds"]
        return WORK["learn_steps"] is not None and env_steps >= WORK["learn_steps"]

    def tell(self, returns: Iterable[float]) -> None:
        tell(self._per_second, returns)


def tell(per_second: float, returns: Iterable[float] = ()) -> None:
    print(json.dumps({"per_second": per_second, "returns": [float(item) for item in returns]}))
