"""The pauses between tries of something that may succeed later."""

from __future__ import annotations

import random
import time


class Backoff:
    """Each pause is about twice as long as the one before, and never quite what another's is: not all come back at
    once. The last one ends at the deadline."""

    def __init__(self, deadline: float, *, first_s: float, longest_s: float) -> None:
        """`deadline` is monotonic."""
        self._deadline, self._pause_s, self._longest_s = deadline, first_s, longest_s

    def wait(self, at_least_s: float = 0.0) -> bool:
        """Waits for `at_least_s` or longer. False, at once, where the deadline comes first."""
        rest_s = self._deadline - time.monotonic()
        if rest_s <= at_least_s:
            return False
        time.sleep(min(at_least_s + self._pause_s * random.uniform(0.5, 1.5), rest_s))
        self._pause_s = min(2 * self._pause_s, self._longest_s)
        return True
