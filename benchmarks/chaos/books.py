"""A second reading of a run's books, which shares no code with `rollcall audit`: the learner's log and the ledger are
parsed here, by their documented forms, and held against each other ticket by ticket."""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import xxhash

from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import inspect_store

MAGIC = b"rollcall segment 1\n"
STATES = ("leased", "produced", "scored", "committed", "dropped", "rolled_back")
Key = tuple[int, int]  # ticket, attempt


class Line(NamedTuple):
    """One trajectory that a learner says it has learnt from."""

    step: int
    epoch: int
    ticket: int
    attempt: int


class Entry(NamedTuple):
    """One attempt as the ledger has it."""

    state: str
    step: int  # at which it was committed; -1 otherwise
    final: bool


@dataclass
class Ledger:
    step: int  # committed so far
    tickets_per_step: int
    attempts: dict[Key, Entry]
    epochs: dict[int, int]  # epoch -> the step at which it was opened
    counters: dict[str, int]


@dataclass
class Reading:
    """What is wrong, ticket by ticket; and how much was looked at."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return not (self.lost or self.doubled or self.damaged)

    def as_json(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("lost", "doubled", "damaged")}
        return {**{name: len(found) for name, found in named.items()}, **self.counts} | {
            "examples": [text for found in named.values() for text in found[:3]]
        }


def look(run: Path, *, url: str | None = None) -> Reading:
    """The books of a run that has ended. `url`: of its Redis, if that was not its own."""
    reading = Reading()
    summary = json.loads((run / "summary.json").read_text())
    lines = list(read_log(run / "logs", reading))
    judge(lines, read_ledger(run, url, reading), reading, completed=summary["status"] == "completed")
    said = summary.get("ledger") or {}
    if said.get("committed") != reading.counts["committed"] or said.get("in_flight") != 0:
        reading.damaged.append(f"summary.json says {said}")
    return reading


# The learner's log.


def read_log(logs: Path, reading: Reading) -> Iterator[Line]:
    """All of it: its segments, then the file. The chain of checksums is followed through both."""
    after, newest = "", {}
    for path in sorted(logs.glob("consumption-????????????.seg")):
        meta, columns = read_segment(path)
        if meta["after"] != after or meta["problems"]:
            reading.damaged.append(f"{path.name}: does not follow the one before it, or has problems")
        after, newest = meta["last_sum"], meta
        yield from map(
            Line._make, zip(*(columns[n].tolist() for n in ("step", "epoch", "ticket", "attempt")), strict=True)
        )
    content = (logs / "consumption.jsonl").read_bytes()
    if newest and content.startswith(b"{") and json.loads(content.split(b"\n", 1)[0]).get("sum") == newest["first_sum"]:
        content = content[newest["size_bytes"] :]  # killed before they could be cut
    *whole, torn = content.split(b"\n")
    if torn:
        reading.counts["torn_lines"] = 1
    for number, text in enumerate(whole, start=1):
        record = json.loads(text)
        unsigned = text[: text.rindex(b', "sum": ')] + b"}"
        if record["after"] != after or record["sum"] != xxhash.xxh3_64_hexdigest(unsigned):
            reading.damaged.append(f"consumption.jsonl, line {number}: changed, or not after the one before it")
        after = record["sum"]
        yield Line(record["step"], record["epoch"], record["ticket_id"], record["attempt"])


def read_segment(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`rollcall segment 1`, a line of JSON, the columns that it tells of, and the xxh3-128 of all that."""
    content = path.read_bytes()
    body, digest = content[:-16], content[-16:]
    if not body.startswith(MAGIC) or xxhash.xxh3_128_digest(body) != digest:
        raise ValueError(f"{path}: not a segment, or damaged")
    head, at = body[len(MAGIC) :].split(b"\n", 1)[0], 0
    header = json.loads(head)
    rest = body[len(MAGIC) + len(head) + 1 :]
    columns: dict[str, Any] = {}
    for name, dtype, stored, form, shape, deflated, size in header["columns"]:
        part = rest[at : at + size]
        at += size
        values = np.frombuffer(zlib.decompress(part) if deflated else part, dtype=stored)
        columns[name] = (np.cumsum(values, dtype=dtype) if form == "differences" else values).reshape(shape)
    return header["meta"], columns


# The ledger.


def read_ledger(run: Path, url: str | None, reading: Reading) -> Ledger:
    """What is sealed, and what is in Redis."""
    attempts: dict[Key, Entry] = {}
    end = 0
    index = run / "books" / "index.json"
    for segment in json.loads(index.read_text())["segments"] if index.exists() else ():
        meta, columns = read_segment(run / "books" / segment["file"])
        if segment["first"] != end or meta["end"] != segment["end"]:
            reading.damaged.append(f"{segment['file']}: does not follow the one before it")
        end = segment["end"]
        names = ("ticket", "attempt", "state", "step", "final")
        for ticket, number, state, step, final in zip(*(columns[n].tolist() for n in names), strict=True):
            attempts[ticket, number] = Entry(STATES[state], step, bool(final))
    with inspect_store(RedisConfig(url=url), run) as store:  # type: ignore[arg-type]
        tables: dict[str, dict[str, str]] = {
            name: cast(dict[str, str], store.client.hgetall(store.key("ledger", name)))
            for name in ("head", "attempts", "counters", "epochs")
        }
    for name, value in tables["attempts"].items():
        ticket, _, number = name.partition(":")
        state, _, _, detail, final = value.split("|")
        if int(ticket) >= end:
            step = int(detail) if state == "committed" else -1
            attempts[int(ticket), int(number)] = Entry(state, step, final == "1")
    reading.counts["sealed_tickets"] = end
    head = tables["head"]
    return Ledger(
        step=int(head["step"]),
        tickets_per_step=int(head["tickets_per_step"]),
        attempts=attempts,
        epochs={int(epoch): int(step) for epoch, step in tables["epochs"].items()},
        counters={name: int(number) for name, number in tables["counters"].items()},
    )


# One against the other.


def judge(lines: list[Line], ledger: Ledger, reading: Reading, *, completed: bool) -> None:
    """A line stands unless a later epoch was opened at its step or before. What stands was committed, once, at its
    step, and nothing else was; every ticket that was ever issued is in the books, and ended as they say."""
    standing = [line for line in lines if not undone(line, ledger.epochs) and line.step < ledger.step]
    committed = {key: entry.step for key, entry in ledger.attempts.items() if entry.state == "committed"}
    learnt = {(line.ticket, line.attempt): line.step for line in standing}
    _doubles(lines, standing, committed, reading)
    for key, step in sorted(learnt.items()):
        if committed.get(key) != step:
            reading.lost.append(f"ticket {key} was learnt from at step {step}, and booked {ledger.attempts.get(key)}")
    for key in sorted(committed.keys() - learnt.keys()):
        reading.lost.append(f"ticket {key} is booked at step {committed[key]}, and was never learnt from")
    per_step = Counter(line.step for line in standing)
    for step in range(ledger.step):
        if per_step[step] != ledger.tickets_per_step:
            reading.lost.append(f"step {step} was made of {per_step[step]} tickets, not {ledger.tickets_per_step}")
    _unended(ledger, reading, completed=completed)
    _counters(ledger, reading)
    reading.counts |= {
        "lines": len(lines),
        "committed": len(committed),
        "attempts": len(ledger.attempts),
        "epochs": len(ledger.epochs),
        "undone_lines": sum(undone(line, ledger.epochs) for line in lines),
    }


def undone(line: Line, epochs: Mapping[int, int]) -> bool:
    return any(epoch > line.epoch and opened <= line.step for epoch, opened in epochs.items())


def _doubles(lines: list[Line], standing: list[Line], committed: Mapping[Key, int], reading: Reading) -> None:
    tickets = Counter(line.ticket for line in standing)
    booked = Counter(ticket for ticket, _ in committed)
    reading.doubled += [f"ticket {ticket} was learnt from {n} times" for ticket, n in tickets.items() if n > 1]
    reading.doubled += [f"ticket {ticket} is booked {n} times" for ticket, n in booked.items() if n > 1]
    attempts = Counter((line.ticket, line.attempt, line.epoch) for line in lines)
    reading.doubled += [f"attempt {key} stands {n} times in the log" for key, n in attempts.items() if n > 1]


def _unended(ledger: Ledger, reading: Reading, *, completed: bool) -> None:
    by_ticket: dict[int, list[Key]] = defaultdict(list)
    for key in ledger.attempts:
        by_ticket[key[0]].append(key)
    for ticket in range(max(by_ticket, default=-1) + 1):
        if ticket not in by_ticket:
            reading.lost.append(f"ticket {ticket} is in no book")
            continue
        entries = [ledger.attempts[key] for key in by_ticket[ticket]]
        if any(entry.state in STATES[:3] for entry in entries):
            reading.lost.append(f"ticket {ticket} is in flight still: {entries}")
        elif completed and not any(entry.final for entry in entries):
            reading.lost.append(f"ticket {ticket} never ended, in a run that is completed: {entries}")


def _counters(ledger: Ledger, reading: Reading) -> None:
    states = Counter(entry.state for entry in ledger.attempts.values())
    found = {"issued": len(ledger.attempts), **{name: states[name] for name in STATES[3:]}}
    said = {name: ledger.counters.get(name, 0) for name in found}
    if found != said:
        reading.damaged.append(f"the ledger's counters say {said}, its attempts {found}")
