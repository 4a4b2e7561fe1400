"""What raters say of a run's reward model: each round's new labels, before they are learnt from, as a test of the model
that was in service until then. In every step's record, for all who record of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.deploy.preferences.round_book import REWARD_MODELS, ROUNDS, read_rounds
from rollcall.deploy.report.recorders import Record


class FreshRaters:
    """The first of a run's observers: it writes into a step's record before the others read it.

    reward_fresh_accuracy: the share of the newest round's labels that the model before it was right about;
    reward_fresh_low: the lower end of its 95 % interval. Neither before the second round.
    """

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory / REWARD_MODELS
        self._size = -1  # of the book, when it was read
        self._rounds: list[dict[str, Any]] = []

    def on_step(self, record: Record) -> None:
        assert isinstance(record, dict), "the step's own record, which the observers after this one are told too"
        found = self._newest(int(record["step"]))
        if found is not None:
            record |= {"reward_fresh_accuracy": found["accuracy"], "reward_fresh_low": found["low"]}

    def _newest(self, step: int) -> Mapping[str, Any] | None:
        """Of the rounds by whose model the step's batch was scored; a run that goes on may have booked later ones."""
        book = self._directory / ROUNDS
        size = book.stat().st_size if book.exists() else -1
        if size != self._size:
            self._size, self._rounds = size, read_rounds(self._directory)
        judged = [line for line in self._rounds if line.get("fresh") and int(line["policy_version"]) <= step]
        return judged[-1]["fresh"] if judged else None

    def on_start(self, info: Record) -> None: ...

    def on_eval(self, record: Record) -> None: ...

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: Record) -> None: ...
