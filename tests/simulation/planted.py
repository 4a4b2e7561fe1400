"""Bugs to be found: each is patched into the product for as long as one asks, and none is there otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args
from unittest.mock import patch

from redis.commands.core import Script

from rollcall.cluster.books import ledger
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.loop.attempts import Attempts, Key
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.cluster.loop.rollouts import Rollouts
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.events import Fault, StepDone


@contextmanager
def forgotten_fence() -> Iterator[None]:
    """The loop compares no epochs: what a dead learner or actor says late is taken for its successor's word."""
    on_step_done, awaits = Coordinator._on_step_done, Rollouts.awaits

    def believes(self: Coordinator, event: StepDone) -> None:
        on_step_done(self, replace(event, report=replace(event.report, epoch=self._epoch)))

    def awaits_any(self: Rollouts, header: Header) -> bool:
        return awaits(self, replace(header, epoch=self._epoch))

    with patch.object(Coordinator, "_on_step_done", believes), patch.object(Rollouts, "awaits", awaits_any):
        yield


@contextmanager
def forgotten_fence_in_the_books() -> Iterator[None]:
    """The ledger compares no epochs: a driver that was only stopped writes beside its successor."""
    with _script("if known[1] ~= epoch then", "if false then"):
        yield


@contextmanager
def double_commit() -> Iterator[None]:
    """What was in training when the learner died stays in training: it is committed again with what follows."""
    resume = Coordinator.resume

    def keeps(self: Coordinator, *arguments: Any) -> int:
        training = list(self._training)
        epoch = resume(self, *arguments)
        self._training.extend(training)
        return epoch

    with patch.object(Coordinator, "resume", keeps):
        yield


@contextmanager
def double_use() -> Iterator[None]:
    """A rollout that was cut into a batch waits for the next one still, once in a run."""
    cut = Rollouts.cut

    def leaves_one(self: Rollouts) -> Any:
        batch = cut(self)
        if batch and self.flow.version == 2:
            self.flow.issued(batch[0].ticket_id)
            self.flow.produced(*(getattr(batch[0], name) for name in ("ticket_id", "attempt", "min_version", "handle")))
        return batch

    with patch.object(Rollouts, "cut", leaves_one):
        yield


@contextmanager
def lost_drop() -> Iterator[None]:
    """One kind of drop is not booked."""
    drop = Ledger.drop

    def forgets(self: Ledger, entries: Iterable[tuple[Key, str, bool]]) -> tuple[Key, ...]:
        return drop(self, [entry for entry in entries if entry[1] != "deadline"])

    with patch.object(Ledger, "drop", forgets):
        yield


@contextmanager
def lost_ticket() -> Iterator[None]:
    """A ticket that failed twice is not issued again."""
    failed = Attempts.failed

    def forgets(self: Attempts, key: Key, reason: str, fault: Fault = "own") -> int:
        tried = failed(self, key, reason, fault)
        if not tried and sum(self._faults[key[0], kind] for kind in get_args(Fault)) == 2:
            self._again.pop()
        return tried

    with patch.object(Attempts, "failed", forgets):
        yield


@contextmanager
def lag_by_one() -> Iterator[None]:
    """One ticket too many may be under way."""
    issue = Rollouts.issue

    def issues_more(self: Rollouts, *, ahead: bool) -> None:
        self.flow.max_policy_lag += 1
        issue(self, ahead=ahead)
        self.flow.max_policy_lag -= 1

    with patch.object(Rollouts, "issue", issues_more):
        yield


@contextmanager
def _script(what: str, instead: str) -> Iterator[None]:
    def changed(client: Any, text: str) -> Script:
        assert what in text
        return Script(client, text.replace(what, instead))

    with patch.object(ledger, "Script", changed):
        yield


PLANTED: Mapping[str, Callable[[], Any]] = {
    planted.__name__: planted
    for planted in (
        forgotten_fence,
        forgotten_fence_in_the_books,
        double_commit,
        double_use,
        lost_drop,
        lost_ticket,
        lag_by_one,
    )
}
