"""How much a comparison may hold."""

from __future__ import annotations

MAX_CANDIDATES = 9  # one key each
