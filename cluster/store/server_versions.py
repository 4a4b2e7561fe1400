"""Which servers may keep a run's books: for each line that is still fixed, the lowest version without known holes.
Must never know where a server comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """One line of releases, and its lowest safe version: with it everything known in earlier ones is closed too."""

    name: str
    lowest: Version
    closes: str  # the newest hole that it closes


_SHARED_NACK = "remote code execution by a crafted stream in RESTORE (July 2026)"
_MAY_2026 = "CVE-2026-23479, CVE-2026-25243, CVE-2026-23631"

# As of the releases of July 2026. All of them have CVE-2025-21605 (output buffers without a limit before the password),
# CVE-2025-49844 (use after free in Lua) and CVE-2025-67733 closed. A line that is not here gets no fixes any more, or
# is newer than this table; redis 8.0 had none in July.
LINES = (
    Line("Redis", (6, 2, 23), _SHARED_NACK),
    Line("Redis", (7, 2, 15), _SHARED_NACK),
    Line("Redis", (7, 4, 10), _SHARED_NACK),
    Line("Redis", (8, 2, 8), _SHARED_NACK),
    Line("Redis", (8, 4, 5), _SHARED_NACK),
    Line("Redis", (8, 6, 5), _SHARED_NACK),
    Line("Redis", (8, 8, 1), "RESTORE in RedisBloom and TDigest (July 2026)"),
    Line("Valkey", (7, 2, 13), _MAY_2026),
    Line("Valkey", (8, 0, 9), _MAY_2026),
    Line("Valkey", (8, 1, 7), _MAY_2026),
    Line("Valkey", (9, 0, 5), "CVE-2026-56684, CVE-2026-63639"),
    Line("Valkey", (9, 1, 1), "CVE-2026-56684, CVE-2026-63639"),
)


def version_said(text: str) -> tuple[str, Version] | None:
    """(name, version) of what a server says to --version: `Valkey server v=9.1.2 sha=...`; of an image's tag:
    `redis:7.2.15-bookworm`. None of anything else."""
    said = re.search(r"\b(redis|valkey)(?: server v=|:)(\d+)\.(\d+)\.(\d+)", text, re.IGNORECASE)
    return None if said is None else (said[1].capitalize(), tuple(int(part) for part in said.groups()[1:]))


def weakness(name: str, version: Version) -> str:
    """Why this server is not to be used, naming the lowest safe version; nothing of one that is safe."""
    lines = [line for line in LINES if line.name == name]
    if version[:2] > lines[-1].lowest[:2]:
        return ""  # a line newer than this table
    is_ = f"{name} {_text(version)}"
    for line in lines:
        if line.lowest[:2] == version[:2]:
            below = version < line.lowest
            return f"{is_} has known holes; the lowest safe {_text(version[:2])} is {_text(line.lowest)}" * below
    later = next(line for line in lines if line.lowest > version)
    return f"{is_} is of a line that nobody fixes; the lowest safe version after it is {_text(later.lowest)}"


def _text(version: Version) -> str:
    return ".".join(map(str, version))
