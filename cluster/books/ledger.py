"""The books of a run: what became of every attempt of every ticket. Only the driver writes them, through this class.
It must never know what a ticket is for, nor decide what to do about a drop."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, cast

import redis
from redis.commands.core import Script

from rollcall.cluster.books.history import History
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.ledger_restore import Restoration, RestorePlan, reconcile
from rollcall.cluster.books.ledger_table import (
    IN_FLIGHT,
    Attempt,
    Key,
    LedgerCounts,
    Remembered,
    field_of,
    ledger_keys,
    read_table,
    scan_hash,
)
from rollcall.cluster.books.sealed import SealedBooks, SealedIndex
from rollcall.cluster.books.sealed_steps import whole_steps
from rollcall.cluster.errors import LedgerConflict, StaleEpoch, StoreUnavailable
from rollcall.cluster.store.store import Store

REMEMBERED_S = 30.0  # Redis loses at most what it has not yet synced: about two seconds
WINDOW_TICKETS = 5000  # read per call, so that none takes long
WRITE_ENTRIES = 10_000
_REASON = re.compile(r"[a-z][a-z0-9_]*")

_log = logging.getLogger(__name__)


class Ledger:
    """Every method is one round trip and atomic; repeated, it changes nothing. `open_epoch` or `restore` comes first.

    A Redis that comes back without its last second is brought up to date from memory: writes are numbered, the script
    sees a gap, and the writes since are applied again.

    All writing methods raise
      StaleEpoch: another driver has opened a newer epoch; nothing was written.
      StoreUnavailable: Redis is away for too long, or has lost more than is remembered here.
    """

    def __init__(self, store: Store, *, tickets_per_step: int, books: SealedBooks | None = None) -> None:
        """`books`: where tickets are sealed; without, all stay in Redis."""
        self.epoch = 0
        self._books = books
        self._store = store
        self._tickets_per_step = tickets_per_step
        *self._keys, self._epochs_key = ledger_keys(store)
        self._script = Script(store.client, files(__package__).joinpath("ledger.lua").read_text())
        self._seq = 0
        self._remembered: deque[Remembered] = deque()
        self._sealed = History()  # of the tickets from the segments' end to _low_water
        self._low_water = 0
        self._writing = threading.RLock()

    # Beginning.

    def open_epoch(self) -> int:
        """Opens the books of a new run. Returns its epoch.

        Raises:
          LedgerConflict: there are attempts in them already; `restore` opens those.
        """
        if self._segments.end or self._store.call(lambda client: client.hlen(self._keys[1])):
            raise LedgerConflict(f"the ledger of {self._store.run_id} is not empty: restore a checkpoint, or from None")
        return self.restore(None).epoch

    def restore(self, position: LedgerPosition | None, *, above_epoch: int = 0) -> RestorePlan:
        """Brings the books back to a checkpoint (None: to the beginning) in a new epoch; a driver of an older one is
        refused from then on. See `reconcile` for what becomes of what. May be killed and repeated at any point.
        `above_epoch`: an epoch seen elsewhere (in the consumption log), should Redis have lost the latest.

        Raises:
          LedgerConflict: the checkpoint is of a timeline that a later restore has ended, or of another run.
        """
        position = position or LedgerPosition.start(self._tickets_per_step)
        if position.tickets_per_step != self._tickets_per_step:
            raise LedgerConflict(
                f"the checkpoint has {position.tickets_per_step} tickets per step, this run {self._tickets_per_step}"
            )
        with self._writing:
            if self._books is not None and (torn := self._books.clear()):
                _log.warning("removed of the sealed books what was never finished: %s", ", ".join(torn))
            if self.epoch:  # a Redis that came back without its last writes gets them before anything is read of it
                self.counts()
            fence: list[str | int] = [max(position.epoch, self.epoch, above_epoch), 0, "fence"]
            epoch = int(self._store.call(lambda client: self._run(client, fence))[1])
            table = read_table(self._store)
            restoration = reconcile(table, position, epoch=epoch, sealed=self._segments)
            seq = max(self._seq, table.seq) + 1
            write = self._writer(restoration, seq)
            self._store.call(write)
            self._remember(seq, write)
            self.epoch, self._seq = epoch, seq
            self._sealed, self._low_water = position.sealed.from_ticket(self._segments.end), position.low_water
        return restoration.plan

    def take_up(self, position: LedgerPosition) -> bool:
        """Goes on in the epoch that there is, for whoever only seals: nothing of what happened changes. `position`: of
        the newest checkpoint. Returns whether Redis has the books of that epoch at all."""
        head = self._store.call(lambda client: client.hgetall(self._keys[0]))
        self.epoch, self._seq = int(head.get("epoch", 0)), int(head.get("seq", 0))
        self._sealed, self._low_water = position.sealed.from_ticket(self._segments.end), position.low_water
        return self.epoch > 0 and position.low_water >= self._segments.end

    # Transitions.

    def issue(self, keys: Sequence[Key]) -> None:
        """leased. Attempt 1 of a ticket, or the one after an attempt that was dropped to be issued again.

        Raises:
          LedgerConflict: naming the attempt that may not be issued; none was.
        """
        self._write("issue", [field_of(key) for key in keys])

    def produced(self, entries: Iterable[tuple[Key, int]]) -> tuple[Key, ...]:
        """leased -> produced, with the oldest policy version in it. Returns the attempts refused: late, or unknown."""
        return self._write("produced", [item for key, version in entries for item in (field_of(key), version)])

    def scored(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        """produced -> scored. Returns the attempts refused."""
        return self._write("scored", [field_of(key) for key in keys])

    def commit(self, step: int, keys: Sequence[Key], *, skipped: bool = False) -> None:
        """produced or scored -> committed at `step`, the whole batch or nothing. `skipped`: its loss was not finite.

        Raises:
          LedgerConflict: naming the attempt that cannot be committed, or the step that is not the next.
        """
        self._write("commit", [step, "skipped" if skipped else "learned", *(field_of(key) for key in sorted(keys))])

    def drop(self, entries: Iterable[tuple[Key, str, bool]]) -> tuple[Key, ...]:
        """In flight -> dropped: (key, reason, whether its unit is done with). Returns the attempts refused: ended."""
        arguments: list[str | int] = []
        for key, reason, final in entries:
            if not _REASON.fullmatch(reason):
                raise ValueError(f"reason is {reason!r}; it must be a lower_case_name")
            arguments += [field_of(key), reason, int(final)]
        return self._write("drop", arguments)

    def refuse_duplicate(self, key: Key) -> None:
        """Counts a result that the driver refused by itself: late, or of an old epoch."""
        self._write("refuse", [field_of(key)])

    # Reading.

    def counts(self) -> LedgerCounts:
        if not self.epoch:  # nothing opened yet: as Redis has it
            counters = self._store.call(lambda client: cast(dict[str, str], client.hgetall(self._keys[2])))
            return LedgerCounts.from_counters(counters)
        with self._writing:
            reply = self._checked(self._call("counts", [], self._seq))
        return LedgerCounts.from_counters(dict(zip(reply[::2], reply[1::2], strict=True)))

    def snapshot(self, *, step: int, next_ticket_id: int) -> LedgerPosition:
        """The books as a checkpoint carries them, at a step boundary. Reads only what is new since the last one.

        Raises:
          LedgerConflict: `step` is not the number of steps committed.
        """
        with self._writing:
            for _ in range(5):  # a Redis that came back without its last writes has them after any call: perhaps twice
                if (committed := self._committed()) >= step:
                    break
                self.counts()
            if committed != step:
                raise LedgerConflict(f"a checkpoint of step {step}, but the ledger has committed {committed}")
            attempts = self._window(self._low_water, next_ticket_id)
            return self._position(step, next_ticket_id, attempts)

    # Sealing.

    def seal(self, covered: int, *, whole: bool = False) -> None:
        """Folds tickets below `covered`, of which every checkpoint that a resume may go back to has seen the end, into
        segments, and takes them out of Redis. `whole`: also where they are few. Killed at any point, it is taken up
        where it was left: a segment is on the disk before anything leaves Redis."""
        books, covered = self._books, min(covered, self._low_water)
        if books is None:
            return
        with self._writing:
            while (end := books.next_end(covered, whole=whole)) > books.end:
                first = books.end
                attempts = self._sealed.columns(first=first).between(first, end)
                steps = whole_steps(self._store, self._keys[3], attempts, books.index, self._tickets_per_step)
                if steps is None:
                    _log.error("tickets %d to %d stay in Redis: their steps are not there as committed", first, end)
                    return
                try:
                    books.append(attempts, end, steps)
                except OSError as error:  # a full disk, say: the next checkpoint seals
                    _log.warning("tickets %d to %d stay in Redis: %s", first, end, error)
                    return
                self._trim(first, end, [entry.step for entry in steps])
            self._sealed = self._sealed.from_ticket(books.end)

    def _trim(self, first: int, end: int, steps: list[int]) -> None:
        """What is in the segments leaves Redis, a page at a time."""
        for start in range(first, end, WINDOW_TICKETS):
            self._write("trim", [start, min(start + WINDOW_TICKETS, end)])
        for at in range(0, len(steps), WINDOW_TICKETS):
            self._write("trim_steps", steps[at : at + WINDOW_TICKETS])

    @property
    def _segments(self) -> SealedIndex:
        return self._books.index if self._books is not None else SealedIndex()

    # How.

    def _position(self, step: int, next_ticket_id: int, attempts: list[Attempt]) -> LedgerPosition:
        last: dict[int, Attempt] = {}
        for attempt in attempts:
            if attempt.ticket_id not in last or last[attempt.ticket_id].attempt < attempt.attempt:
                last[attempt.ticket_id] = attempt
        unfinished: list[tuple[int, int, str]] = []
        for ticket_id in range(self._low_water, next_ticket_id):
            latest = last.get(ticket_id)
            if latest is None:
                unfinished.append((ticket_id, 0, "unissued"))
            elif not latest.final:
                unfinished.append((ticket_id, latest.attempt, latest.state))
        self._low_water = unfinished[0][0] if unfinished else next_ticket_id
        ended = [attempt for attempt in attempts if attempt.state not in IN_FLIGHT]
        self._sealed = self._sealed.extended(attempt for attempt in ended if attempt.ticket_id < self._low_water)
        epochs = self._store.call(lambda client: client.hgetall(self._epochs_key))
        steps = scan_hash(self._store, self._keys[3]) if self.counts().skipped_steps else ()
        return LedgerPosition(
            epoch=self.epoch,
            step=step,
            tickets_per_step=self._tickets_per_step,
            next_ticket_id=next_ticket_id,
            low_water=self._low_water,
            open=unfinished,
            epochs={int(epoch): int(opened) for epoch, opened in epochs.items()},
            skipped_steps=sorted({int(name) for name, value in steps if "|skipped|" in value}),
            counts=self.counts(),
            sealed_below=self._segments.end,
            sealed=self._sealed,
            recent=History().extended(attempt for attempt in ended if attempt.ticket_id >= self._low_water),
        )

    def _committed(self) -> int:
        return int(self._store.call(lambda client: client.hget(self._keys[0], "step")) or 0)

    def _window(self, first: int, end: int) -> list[Attempt]:
        attempts: list[Attempt] = []
        for start in range(first, end, WINDOW_TICKETS):
            read = self._call("window", [start, min(start + WINDOW_TICKETS, end)], self._seq)
            words = self._checked(read)[0].split()
            attempts += [Attempt.parse(name, value) for name, value in zip(words[::2], words[1::2], strict=True)]
        return attempts

    def _write(self, operation: str, arguments: Sequence[str | int]) -> tuple[Key, ...]:
        if not arguments:
            return ()
        with self._writing:
            seq = self._seq + 1
            call = self._call(operation, arguments, seq)
            refused = self._checked(call)
            self._seq = seq
            self._remember(seq, lambda client: self._run(client, call))
        keys = [name.partition(":") for name in refused]
        return tuple((int(ticket), int(attempt)) for ticket, _, attempt in keys)

    def _call(self, operation: str, arguments: Sequence[str | int], seq: int) -> list[str | int]:
        assert self.epoch, "open_epoch or restore comes first"
        return [self.epoch, seq, operation, " ".join(map(str, arguments))]

    def _checked(self, call: list[str | int]) -> list[str]:
        """One call of the script, and a second one when Redis had lost something in between."""
        for _ in range(3):
            status, *reply = self._store.call(lambda client: self._run(client, call))
            if status == "ok":
                return reply
            if status == "conflict":
                raise LedgerConflict(reply[0])
            if status == "stale" and int(reply[0]) > self.epoch:
                raise StaleEpoch(f"epoch {self.epoch} was ended: another driver has opened epoch {reply[0]}")
            self._catch_up(int(reply[-1]))
        raise StoreUnavailable("Redis keeps losing what was written to it")

    def _run(self, client: redis.Redis, call: Sequence[str | int]) -> list[Any]:
        return cast(list[Any], self._script(keys=self._keys, args=call, client=client))

    def _remember(self, seq: int, again: Callable[[redis.Redis], Any]) -> None:
        now = time.monotonic()
        while self._remembered and self._remembered[0].at_s < now - REMEMBERED_S:
            self._remembered.popleft()
        self._remembered.append(Remembered(seq, now, again))

    def _catch_up(self, kept: int) -> None:
        """Applies again what Redis has lost after the write number `kept`."""
        lost = [write for write in self._remembered if write.seq > kept]
        if not lost or lost[0].seq != kept + 1:
            raise StoreUnavailable(
                f"Redis came back without the ledger's writes {kept + 1} to {self._seq}, more than the last "
                f"{REMEMBERED_S:g} s: resume the run from its last checkpoint"
            )
        _log.warning("Redis came back without the ledger's last %d writes; writing them again", len(lost))
        for write in lost:
            self._store.call(write.again)
            write.at_s = time.monotonic()

    def _writer(self, restoration: Restoration, seq: int) -> Callable[[redis.Redis], Any]:
        head: dict[Any, Any] = {
            "epoch": restoration.plan.epoch,
            "seq": seq,
            "refused": "",
            "step": restoration.plan.step,
            "tickets_per_step": self._tickets_per_step,
        }
        epochs: dict[Any, Any] = {str(epoch): step for epoch, step in restoration.epochs.items()}
        counters: dict[Any, Any] = dict(restoration.counts.as_counters())
        steps: dict[Any, Any] = dict(restoration.steps)
        head_key, attempts_key, counters_key, steps_key = self._keys

        def write(client: redis.Redis) -> None:
            with client.pipeline(transaction=True) as pipeline:
                fields = list(restoration.attempts.items())
                for start in range(0, len(fields), WRITE_ENTRIES):
                    pipeline.hset(attempts_key, mapping=dict(fields[start : start + WRITE_ENTRIES]))
                for start in range(0, len(restoration.leftovers), WRITE_ENTRIES):
                    pipeline.hdel(attempts_key, *restoration.leftovers[start : start + WRITE_ENTRIES])
                pipeline.delete(counters_key, steps_key)
                pipeline.hset(counters_key, mapping=counters)
                if steps:
                    pipeline.hset(steps_key, mapping=steps)
                pipeline.hset(self._epochs_key, mapping=epochs)
                pipeline.hset(head_key, mapping=head)
                pipeline.execute()

        return write


__all__ = ["Key", "Ledger", "LedgerCounts", "LedgerPosition", "RestorePlan"]
