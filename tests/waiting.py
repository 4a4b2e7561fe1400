"""Waits for what another process or thread brings about, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def eventually(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "what was waited for") -> Any:
    """What the condition says once it says something."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.02)
    return found
