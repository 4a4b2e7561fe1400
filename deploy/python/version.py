"""Which version of Rollcall this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Of the distribution; 0 of a source tree that nobody installed."""
    try:
        return version("rollcall-rl")
    except PackageNotFoundError:
        return "0"
