"""The ledger as records: one attempt, the counts, and everything that Redis holds of a run's books at one moment.
Knows the text formats that ledger.lua writes; must never write them to Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import redis
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.store.store import Store

Key = tuple[int, int]  # (ticket_id, attempt)
State = Literal["leased", "produced", "scored", "committed", "dropped", "rolled_back"]
IN_FLIGHT: frozenset[str] = frozenset({"leased", "produced", "scored"})
STATES: frozenset[str] = IN_FLIGHT | {"committed", "dropped", "rolled_back"}
PAGE_ENTRIES = 10_000  # of a hash, read per call
STILL_TRIES = 3
RESTORED = "restored"  # the reason of what was in flight when a checkpoint was restored


@dataclass(slots=True)
class Remembered:
    """A write that Redis has acknowledged but may yet lose."""

    seq: int
    at_s: float
    again: Callable[[redis.Redis], object]


class LedgerCounts(BaseModel):
    """Counts of attempts: issued = committed + dropped + rolled_back + in_flight, always."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issued: int = Field(default=0, ge=0)
    committed: int = Field(default=0, ge=0)
    dropped: int = Field(default=0, ge=0)
    rolled_back: int = Field(default=0, ge=0)
    in_flight: int = Field(default=0, ge=0)
    duplicates_refused: int = Field(default=0, ge=0)
    skipped_steps: int = Field(default=0, ge=0)
    dropped_by_reason: dict[str, int] = Field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return self.issued == self.committed + self.dropped + self.rolled_back + self.in_flight

    def as_counters(self) -> dict[str, str]:
        """As the hash of counters in Redis."""
        plain = self.model_dump(exclude={"dropped_by_reason"})
        reasons = {f"dropped:{reason}": number for reason, number in self.dropped_by_reason.items()}
        return {name: str(number) for name, number in (plain | reasons).items()}

    @classmethod
    def from_counters(cls, counters: Mapping[str, str]) -> LedgerCounts:
        plain = {name: int(number) for name, number in counters.items() if not name.startswith("dropped:")}
        reasons = {
            name.removeprefix("dropped:"): int(number)
            for name, number in sorted(counters.items())
            if name.startswith("dropped:")
        }
        return cls.model_validate({**plain, "dropped_by_reason": reasons})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a ticket. `final`: whether its unit is done with (committed, or dropped for good)."""

    ticket_id: int
    attempt: int
    state: State
    epoch: int  # in which it was issued
    version: int = -1  # its oldest policy version; -1 before it was produced
    step: int = -1  # at which it was committed, also if that was rolled back
    reason: str = ""  # why it was dropped
    final: bool = False

    @property
    def key(self) -> Key:
        return (self.ticket_id, self.attempt)

    def __str__(self) -> str:
        return f"ticket {self.ticket_id} attempt {self.attempt}"

    @property
    def value(self) -> str:
        """As ledger.lua writes it."""
        version = "" if self.version < 0 else str(self.version)
        detail = self.reason if self.state == "dropped" else "" if self.step < 0 else str(self.step)
        final = "" if self.state in IN_FLIGHT else "1" if self.final else "0"
        return f"{self.state}|{self.epoch}|{version}|{detail}|{final}"

    @classmethod
    def parse(cls, field_name: str, value: str) -> Attempt:
        """Raises ValueError for what ledger.lua cannot have written."""
        ticket, _, attempt = field_name.partition(":")
        state, epoch, version, detail, final = value.split("|")
        if state not in STATES or final not in ("", "0", "1"):
            raise ValueError(f"{field_name}: not an attempt: {value!r}")
        dropped = state == "dropped"
        parsed = cls(
            ticket_id=int(ticket),
            attempt=int(attempt),
            state=cast(State, state),
            epoch=int(epoch),
            version=int(version) if version else -1,
            step=int(detail) if detail and not dropped else -1,
            reason=detail if dropped else "",
            final=final == "1",
        )
        if (field_of(parsed.key), parsed.value) != (field_name, value):
            raise ValueError(f"{field_name}: not an attempt as the ledger writes it: {value!r}")
        return parsed


def field_of(key: Key) -> str:
    """The name of an attempt in Redis."""
    return f"{key[0]}:{key[1]}"


@dataclass(frozen=True, slots=True)
class StepEntry:
    """A committed learner step: what was in its batch, in ticket order."""

    step: int
    epoch: int
    skipped: bool
    batch: tuple[Key, ...]

    @property
    def value(self) -> str:
        outcome = "skipped" if self.skipped else "learned"
        return f"{self.epoch}|{outcome}|{','.join(field_of(key) for key in self.batch)}"

    @classmethod
    def parse(cls, field_name: str, value: str) -> StepEntry:
        epoch, outcome, batch = value.split("|")
        if outcome not in ("learned", "skipped"):
            raise ValueError(f"step {field_name}: not a step: {value!r}")
        keys = [key.partition(":") for key in batch.split(",")]
        numbers = tuple((int(ticket), int(attempt)) for ticket, _, attempt in keys)
        parsed = cls(int(field_name), int(epoch), outcome == "skipped", numbers)
        if (str(parsed.step), parsed.value) != (field_name, value):
            raise ValueError(f"step {field_name}: not a step as the ledger writes it: {value!r}")
        return parsed


def recount(attempts: Iterable[Attempt], *, skipped_steps: int, duplicates_refused: int) -> LedgerCounts:
    """The counts that these attempts amount to."""
    ways = Counter[tuple[str, str]]((attempt.state, attempt.reason) for attempt in attempts)
    return counts_of(ways, skipped_steps=skipped_steps, duplicates_refused=duplicates_refused)


def counts_of(ways: Mapping[tuple[str, str], int], *, skipped_steps: int, duplicates_refused: int) -> LedgerCounts:
    """The same of how many attempts are in each state, and why, where they were dropped."""
    states: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for (state, reason), number in ways.items():
        states[state] += number
        if state == "dropped":
            reasons[reason] += number
    return LedgerCounts(
        issued=states.total(),
        committed=states["committed"],
        dropped=states["dropped"],
        rolled_back=states["rolled_back"],
        in_flight=sum(states[state] for state in IN_FLIGHT),
        duplicates_refused=duplicates_refused,
        skipped_steps=skipped_steps,
        dropped_by_reason=dict(sorted(reasons.items())),
    )


@dataclass(frozen=True)
class LedgerTable:
    """All that Redis holds of a run's books at one moment, still as text: a damaged entry is the reader's to judge."""

    epoch: int = 0
    seq: int = 0
    step: int = 0
    tickets_per_step: int = 0
    attempts: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, str] = field(default_factory=dict)
    epochs: Mapping[int, int] = field(default_factory=dict)  # epoch -> the step at which it was opened


def ledger_keys(store: Store) -> list[str]:
    """head, attempts, counters, steps (as ledger.lua takes them), epochs."""
    return [store.key("ledger", name) for name in ("head", "attempts", "counters", "steps", "epochs")]


def read_table(store: Store) -> LedgerTable:
    """Reads the books in pages, each a short call, and again where a run has gone on meanwhile: they are those of one
    moment. A run too busy to hold still is read in one transaction: what it has in Redis is bounded."""
    keys = ledger_keys(store)
    for _ in range(STILL_TRIES):
        before = store.call(lambda client: cast(dict[str, str], client.hgetall(keys[0])))
        _, attempts, counters, steps, epochs = (dict(scan_hash(store, key)) for key in keys)
        if store.call(lambda client: client.hgetall(keys[0])) == before:
            return _table(before, attempts, counters, steps, epochs)

    def read(client: redis.Redis) -> list[dict[str, str]]:
        with client.pipeline(transaction=True) as pipeline:
            for key in keys:
                pipeline.hgetall(key)
            return cast(list[dict[str, str]], pipeline.execute())

    return _table(*store.call(read))


# A page as one text: a client in Python takes ten times as long over as many separate values.
_PAGE = """
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
return { page[1], table.concat(page[2], '\\n') }
"""


def scan_hash(store: Store, key: str) -> Iterator[tuple[str, str]]:
    """Every field and its value, some perhaps twice; a page at a time."""
    cursor = "0"
    while True:
        here = cursor
        reply = store.call(lambda client: client.eval(_PAGE, 1, key, here, str(PAGE_ENTRIES)))  # noqa: B023
        cursor, page = cast(tuple[str, str], reply)
        texts = page.split("\n") if page else []
        yield from zip(texts[::2], texts[1::2], strict=True)
        if cursor == "0":
            return


def _table(
    head: Mapping[str, str],
    attempts: Mapping[str, str],
    counters: Mapping[str, str],
    steps: Mapping[str, str],
    epochs: Mapping[str, str],
) -> LedgerTable:
    numbers = {name: int(head.get(name, 0)) for name in ("epoch", "seq", "step", "tickets_per_step")}
    opened = {int(epoch): int(step) for epoch, step in epochs.items()}
    return LedgerTable(**numbers, attempts=attempts, counters=counters, steps=steps, epochs=opened)
