"""The attempts at tickets that are under way, with their entries in the ledger: which may still come back, which failed
and are to be made again, which are done with. Must never know what was produced, nor who works on it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import get_args

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.messages.events import Fault

MAX_ATTEMPTS = 3  # that failed by themselves
MAX_DEATHS = 6  # at which its actor died: fewer than an actor's restarts, so that the run outlives such a ticket

Key = tuple[int, int]  # (ticket id, attempt)


class Attempts:
    """Of one epoch: at most one attempt at a ticket is current."""

    def __init__(self, ledger: Ledger, counters: Counters, again: Iterable[Key] = ()) -> None:
        """`counters` number new tickets; `again`: attempts that a restore wants issued first."""
        self._ledger = ledger
        self._counters = counters
        self._again = deque(again)
        self._current: dict[int, int] = {}  # ticket id -> attempt, in flight, queued or in training
        self._being_scored: set[Key] = set()
        self._faults: Counter[tuple[int, Fault]] = Counter()  # attempts that failed, by ticket; restores do not count

    @property
    def num_being_scored(self) -> int:
        return len(self._being_scored)

    def is_current(self, key: Key) -> bool:
        return self._current.get(key[0]) == key[1]

    def is_being_scored(self, key: Key) -> bool:
        return key in self._being_scored

    def next(self) -> Key:
        """The attempt to be made next: at a ticket that needs another one, or at a new ticket."""
        if self._again:
            key = self._again.popleft()
        else:
            key = (self._counters.next_ticket_id, 1)
            self._counters.next_ticket_id += 1
        self._current[key[0]] = key[1]
        return key

    def issue(self, keys: Sequence[Key]) -> None:
        """Books attempts that `next` gave, before anybody works on them."""
        self._ledger.issue(keys)

    def produced(self, entries: Sequence[tuple[Key, int]], *, to_score: bool) -> None:
        """(attempt, its oldest policy version), each."""
        self._ledger.produced(entries)
        if to_score:
            self._being_scored.update(key for key, _ in entries)

    def scored(self, keys: Iterable[Key]) -> None:
        keys = list(keys)
        self._being_scored.difference_update(keys)
        self._ledger.scored(keys)

    def refuse(self, key: Key) -> None:
        """Something came that nobody waits for: an attempt that was given up, or the same one twice."""
        self._ledger.refuse_duplicate(key)

    def failed(self, key: Key, reason: str, fault: Fault = "own") -> int:
        """Books a drop. The ticket is tried again, unless it was tried often enough: returns how often then, else 0."""
        ticket_id, attempt = key
        self._faults[ticket_id, fault] += 1
        own, deaths = (self._faults[ticket_id, kind] for kind in ("own", "death"))
        final = own >= MAX_ATTEMPTS or own + deaths >= MAX_DEATHS
        self._ledger.drop([(key, "attempts_exhausted" if final else reason, final)])
        self._done(key)
        if final:
            self._forgive(ticket_id)
        else:
            self._again.append((ticket_id, attempt + 1))
        return own + deaths if final else 0

    def give_up(self, key: Key, reason: str) -> None:
        """Books a drop of a ticket that is not tried again."""
        self._ledger.drop([(key, reason, True)])
        self._done(key)
        self._forgive(key[0])

    def commit(self, step: int, keys: Sequence[Key], *, skipped: bool) -> None:
        """Books the batch of a learner step."""
        self._ledger.commit(step, keys, skipped=skipped)
        for key in keys:
            self._done(key)
            self._forgive(key[0])

    def stop(self) -> frozenset[int]:
        """Books what a stop leaves undone, to be issued again by a resume. Returns its tickets."""
        self._ledger.drop([(key, "stopped", False) for key in self._current.items()])
        undone = frozenset(self._current)
        self._current.clear()
        self._being_scored.clear()
        return undone

    def _forgive(self, ticket_id: int) -> None:
        for fault in get_args(Fault):
            self._faults.pop((ticket_id, fault), None)

    def _done(self, key: Key) -> None:
        del self._current[key[0]]
        self._being_scored.discard(key)
