"""What is wrong with a setting, as whoever looks for it says it."""

from __future__ import annotations

from dataclasses import dataclass

from rollcall.deploy.config.settings import KeyPath


@dataclass(frozen=True, slots=True)
class Problem:
    path: KeyPath
    text: str
