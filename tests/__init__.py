"""Tests of the product, in folders as its rooms are. Helpers are modules: `from tests.runs import Bench`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # child processes find `python -m tests...` from here
EARLIER = ROOT / "tests" / "runs_of_earlier_releases"
