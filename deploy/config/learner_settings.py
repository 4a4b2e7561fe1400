"""How the learner's settings are written: in sections, or short, as recipes have them and runs had before there were
sections."""

from __future__ import annotations

from typing import Any

from rollcall.deploy.config.settings import KeyPath, Settings
from rollcall.learners.loop.config import SHORT, section

SECTIONS: tuple[KeyPath, ...] = (("learner", "optimizer"), ("learner", "schedule"))


def write_out_kinds(settings: Settings) -> None:
    """A section that is written as its kind alone becomes one, so that something can be written into it."""
    for path in SECTIONS:
        if settings.has(path) and isinstance(settings.value(path), str):
            settings.set(path, section(settings.value(path)), settings.origin(path))


def written_over(settings: Settings, path: KeyPath, value: Any, origin: str) -> bool:
    """Before a setting is written: what was written short of the same setting goes, as what is written last counts.
    True where the setting was a section's kind, and is written: another kind begins from its defaults."""
    for short, place in SHORT.items():
        if path == ("learner", *place) or (place[-1] == "kind" and path == ("learner", *place[:1])):
            settings.tree.get("learner", {}).pop(short, None)
    if path not in SECTIONS or not isinstance(value, str):
        return False
    if not settings.has(path) or section(settings.value(path)).get("kind") != value:
        settings.set(path, section(value), origin)
    return True


def as_written(settings: Settings, path: KeyPath) -> KeyPath:
    """The short spelling of a setting, if it was written so."""
    short = next((name for name, place in SHORT.items() if ("learner", *place) == path), None)
    return ("learner", short) if short is not None and settings.has(("learner", short)) else path
