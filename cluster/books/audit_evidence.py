"""What an audit holds against each other, and how it says what is wrong. Knows the records of a run's separate
witnesses; must never read a file or Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

from rollcall.cluster.books.consumption_line import LogReading
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.ledger_table import Attempt, Key, StepEntry
from rollcall.cluster.books.sealed import SealedIndex
from rollcall.cluster.books.settings_history import SettingsSpan


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that is wrong, as one line: where (ledger, log, ...), which step and ticket, and what."""

    where: str
    what: str
    step: int | None = None
    ticket_id: int | None = None
    attempt: int | None = None

    def __str__(self) -> str:
        named = [
            f"{name} {value}"
            for name, value in (("step", self.step), ("ticket", self.ticket_id), ("attempt", self.attempt))
            if value is not None
        ]
        return f"{self.where}: {' '.join(named)}{': ' if named else ''}{self.what}"


@dataclass(frozen=True)
class SealedFacts:
    """What the rules must know of the part of the books that is sealed, which is looked at by itself."""

    index: SealedIndex = field(default_factory=SealedIndex)
    partial: Mapping[Key, Attempt] = field(default_factory=dict)  # sealed, other tickets of whose steps are not
    first_step: int = 0  # steps below are sealed
    steps: frozenset[int] = frozenset()  # and these
    step_epochs: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # epoch -> its first and last sealed step
    max_lag: int = 0
    whole: bool = True  # every segment could be read

    @property
    def end(self) -> int:
        return self.index.end

    def has_step(self, step: int) -> bool:
        return step < self.first_step or step in self.steps

    def fits(self, step: int, epoch: int) -> bool:
        """Whether a sealed step may be of this epoch."""
        first, last = self.step_epochs.get(epoch, (0, -1))
        return first <= step <= last


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run, from its separate sources; what could not be read is not here. Attempts, steps and
    lines of the log are those that are not sealed."""

    attempts: Mapping[Key, Attempt]
    steps: Mapping[int, StepEntry]
    counters: Mapping[str, str]
    epochs: Mapping[int, int]
    num_steps: int  # as the ledger's head has it
    tickets_per_step: int
    log: LogReading
    max_policy_lag: int
    completed: bool
    alive: bool  # the run goes on: what is newer than the ledger's snapshot is no discrepancy
    metrics: Iterable[Mapping[str, Any]] = ()  # read once
    summary: Mapping[str, Any] | None = None
    checkpoints: Mapping[str, LedgerPosition] = field(default_factory=dict)
    segments: tuple[SettingsSpan, ...] = ()
    checkpoint_hashes: Mapping[str, str] = field(default_factory=dict)  # of the settings each was made under
    sealed: SealedFacts = field(default_factory=SealedFacts)
    log_whole: bool = True  # every segment of the log could be read

    def find(self, key: Key) -> Attempt | None:
        """An attempt, also one that is sealed and of a step that is not."""
        return self.attempts.get(key) or self.sealed.partial.get(key)

    def void(self, step: int, epoch: int) -> bool:
        """Whether a later epoch went back to before this step: what was done at it then is undone."""
        return self._lowest_after(epoch) <= step

    def _lowest_after(self, epoch: int) -> float:
        if epoch not in self._lowest:
            self._lowest[epoch] = min((opened for later, opened in self.epochs.items() if later > epoch), default=inf)
        return self._lowest[epoch]

    @cached_property
    def _lowest(self) -> dict[int, float]:
        """Epoch -> the lowest step that a later one went back to."""
        return {}


def gaps(present: Iterable[int], *, start: int, end: int) -> Iterator[str]:
    """The numbers of start..end-1 that are not present, as texts: "7" or "7 to 9"."""
    due = start
    for number in [*sorted(present), end]:
        if due < min(number, end):
            yield str(due) if number - due == 1 else f"{due} to {min(number, end) - 1}"
        due = max(due, number + 1)


def about(attempt: Attempt, what: str, *, where: str = "ledger", step: int | None = None) -> Discrepancy:
    at = step if step is not None else attempt.step if attempt.step >= 0 else None
    return Discrepancy(where, what, at, attempt.ticket_id, attempt.attempt)


def state_of(attempt: Attempt) -> str:
    version = f" of version {attempt.version}" if attempt.version >= 0 else ""
    if attempt.state in ("committed", "rolled_back"):
        return f"{attempt.state} at step {attempt.step}{version} in epoch {attempt.epoch}"
    if attempt.state == "dropped":
        return f"dropped ({attempt.reason}{', for good' if attempt.final else ''}){version} in epoch {attempt.epoch}"
    return f"{attempt.state}{version} in epoch {attempt.epoch}"


def lag_outside(step: int, version: int, bound: int) -> str:
    """What to say of a lag that is not within its bound; empty if it is."""
    if not 0 <= step - version <= bound:
        return f"made with version {version}: a lag of {step - version}, outside 0..{bound} (max_policy_lag)"
    return ""
