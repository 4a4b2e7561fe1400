"""The hint for a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, mark: str = ";") -> str:
    """`; did you mean X?` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"{mark} did you mean {near[0]}?" if near else ""
