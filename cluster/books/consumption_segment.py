"""Lines of the consumption log that were folded into segments beside it, `consumption-<first line>.seg`. Checksums
are looked at once, while they are folded; from then on the segment's own vouches for them. The chain goes on through
the segments into the log. Must never read the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import xxhash
from pydantic import JsonValue

from rollcall.cluster.books.consumption_line import MOVED, Consumed, LogReading, first_sum, read_lines
from rollcall.cluster.books.segment_file import read_meta, read_segment, write_segment
from rollcall.cluster.errors import BooksDamaged
from rollcall.cluster.messages.arrays import Array

_NUMBERS = ("step", "epoch", "ticket", "attempt", "version")
_PLAIN_LINE = re.compile(
    rb'^(\{"step": (\d+), "epoch": (\d+), "ticket_id": (\d+), "attempt": (\d+), "min_version": (-?\d+), '
    rb'"digest": "([0-9a-f]{32})", "reward_version": "([^"\\]*)", "after": "([0-9a-f]*)"), "sum": "([0-9a-f]{16})"\}$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Folded:
    """What a segment of the log says of itself. Lines count from 1."""

    file: str
    first: int
    end: int
    first_ticket: int  # the lowest in it
    last_ticket: int
    last_epoch: int
    after: str  # the checksum that its first line follows
    first_sum: str
    last_sum: str
    size_bytes: int  # as lines of the log


@dataclass(frozen=True)
class FoldedLines:
    """A segment of the log as it was read: row i is a line. Arrays are [N], int64."""

    number: Array
    step: Array
    epoch: Array
    ticket: Array
    attempt: Array
    version: Array
    digest: Array  # [N, 16] uint8, or [N] of texts where one is not of 32 hexadecimal digits
    reward: Array  # of `rewards`
    rewards: tuple[str, ...]
    problems: tuple[tuple[int, str], ...]

    def __len__(self) -> int:
        return len(self.number)

    def where(self, chosen: Array) -> FoldedLines:
        """The rows of a mask, or of indices."""
        names = ("number", *_NUMBERS, "digest", "reward")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def digest_texts(self) -> Array:
        if self.digest.ndim == 1:
            return self.digest
        return np.array([row.tobytes().hex() for row in self.digest], object)

    def line(self, index: int) -> tuple[int, Consumed]:
        digest = self.digest[index]
        step, epoch, ticket, attempt, version = (int(getattr(self, name)[index]) for name in _NUMBERS)
        text = digest.tobytes().hex() if self.digest.ndim == 2 else str(digest)
        return int(self.number[index]), Consumed(
            step, epoch, ticket, attempt, version, text, self.rewards[int(self.reward[index])]
        )

    def lines(self) -> Iterator[tuple[int, Consumed]]:
        yield from (self.line(index) for index in range(len(self)))

    def reading(self) -> LogReading:
        return LogReading(tuple(self.lines()), self.problems, False)


def joined(parts: Sequence[FoldedLines]) -> FoldedLines:
    """Lines of several segments; what was wrong with them is left to whoever read them."""
    rewards: dict[str, int] = {}
    codes = [np.array([rewards.setdefault(text, len(rewards)) for text in part.rewards], np.int64) for part in parts]
    reward = [code[part.reward] for code, part in zip(codes, parts, strict=True) if len(part)]
    same = all(part.digest.ndim == 2 for part in parts)
    digests = [part.digest if same else part.digest_texts() for part in parts]
    return FoldedLines(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ("number", *_NUMBERS)},
        digest=np.concatenate(digests),
        reward=np.concatenate([np.zeros(0, np.int64), *reward]),
        rewards=tuple(rewards),
        problems=(),
    )


def plain_lines(content: bytes, *, first: int, after: str) -> FoldedLines | None:
    """Lines of a log as a learner writes them, in order; None where there is anything else: `read_lines` says what."""
    parsed = _plain(content, after)
    if parsed is None:
        return None
    columns, rewards, _, _ = parsed
    return FoldedLines(np.arange(first, first + len(columns["step"])), **columns, rewards=rewards, problems=())


def lines_as_columns(lines: Sequence[tuple[int, Consumed]]) -> FoldedLines:
    columns, rewards = _columns(lines)
    return FoldedLines(**columns, rewards=rewards, problems=())


def fold(path: Path, content: bytes, *, first: int, after: str) -> None:
    """Whole lines, from line number `first` on, into the next segment of the log at `path`."""
    columns, rewards, problems, last_sum = _plain(content, after) or _whatever(content, first, after)
    if "number" not in columns:
        columns["number"] = np.arange(first, first + len(columns["step"]))
    ticket, epoch = columns["ticket"], columns["epoch"]
    meta: dict[str, JsonValue] = {
        "first": first,
        "end": first + content.count(b"\n"),
        "first_ticket": int(ticket.min()) if len(ticket) else 0,
        "last_ticket": int(ticket.max(initial=0)),
        "last_epoch": int(epoch[-1]) if len(epoch) else 0,
        "after": after,
        "first_sum": first_sum(content),
        "last_sum": last_sum,
        "size_bytes": len(content),
        "rewards": list(rewards),
        "problems": [[number, text] for number, text in problems],
    }
    if columns["digest"].dtype == object:
        meta["digests"] = [str(digest) for digest in columns.pop("digest")]
    write_segment(path.with_name(f"{path.stem}-{first:012d}.seg"), meta, columns)


def folded(path: Path) -> list[Folded]:
    """The segments of a log, oldest first.

    Raises:
      BooksDamaged: naming one that has no header.
    """
    return [_folded(found) for found in _files(path)]


def newest_folded(path: Path) -> Folded | None:
    """Raises BooksDamaged: when it has no header."""
    files = _files(path)
    return _folded(files[-1]) if files else None


def read_folded(path: Path, segment: Folded) -> FoldedLines:
    """Raises BooksDamaged: naming the file, when it is not as it was written."""
    where = path.with_name(segment.file)
    meta, columns = read_segment(where)
    try:
        if "digests" in meta:
            columns["digest"] = np.array(meta["digests"], object)
        problems = tuple((int(number), str(text)) for number, text in cast(list[tuple[int, str]], meta["problems"]))
        return FoldedLines(**columns, rewards=tuple(cast(list[str], meta["rewards"])), problems=problems)
    except (KeyError, TypeError, ValueError) as error:
        raise BooksDamaged(f"{where}: not a segment of a consumption log: {error}") from None


def chain_problems(segments: list[Folded]) -> Iterator[tuple[int, str]]:
    """Lines at which a segment does not follow the one before it."""
    end, after = 1, ""
    for segment in segments:
        if (segment.first, segment.after) != (end, after):
            yield segment.first, MOVED
        end, after = segment.end, segment.last_sum


Parsed = tuple[dict[str, Array], tuple[str, ...], tuple[tuple[int, str], ...], str]


def _plain(content: bytes, after: str) -> Parsed | None:
    """Lines as a learner writes them, all of them in order; None where there is anything else."""
    rows = _PLAIN_LINE.findall(content)
    if len(rows) != content.count(b"\n"):
        return None
    last = after.encode()
    hashed = xxhash.xxh3_64_hexdigest
    for row in rows:
        if row[8] != last or hashed(row[0] + b"}").encode() != row[9]:
            return None
        last = row[9]
    try:
        rewards = {text.decode(): 0 for _, *_, text, _, _ in rows}
    except UnicodeDecodeError:
        return None
    rewards = {text: code for code, text in enumerate(rewards)}
    columns: dict[str, Array] = {
        name: np.array([row[at] for row in rows], "S20").astype(np.int64) for at, name in enumerate(_NUMBERS, start=1)
    }
    digests = b"".join(row[6] for row in rows)
    columns["digest"] = np.frombuffer(bytes.fromhex(digests.decode()), np.uint8).reshape(-1, 16)
    columns["reward"] = np.array([rewards[row[7].decode()] for row in rows], np.int64)
    return columns, tuple(rewards), (), last.decode()


def _whatever(content: bytes, first: int, after: str) -> Parsed:
    """Lines of which some may be foreign, changed or moved."""
    reading = read_lines(content.decode(errors="replace"), first=first, after=after)
    columns, rewards = _columns(reading.lines)
    return columns, rewards, reading.problems, reading.last_sum


def _columns(lines: Sequence[tuple[int, Consumed]]) -> tuple[dict[str, Array], tuple[str, ...]]:
    rewards = {text: code for code, text in enumerate(dict.fromkeys(line.reward_version for _, line in lines))}
    table = [(n, c.step, c.epoch, c.ticket_id, c.attempt, c.min_version) for n, c in lines]
    numbers = np.array(table, np.int64).reshape(-1, 6).T
    columns: dict[str, Array] = dict(zip(("number", *_NUMBERS), numbers, strict=True))
    columns["digest"] = np.array([line.digest for _, line in lines], object)
    columns["reward"] = np.array([rewards[line.reward_version] for _, line in lines], np.int64)
    return columns, tuple(rewards)


def _files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-????????????.seg"))


def _folded(path: Path) -> Folded:
    meta = read_meta(path)
    try:
        return Folded(path.name, **{name: meta[name] for name in Folded.__slots__ if name != "file"})  # type: ignore[arg-type]
    except KeyError as error:
        raise BooksDamaged(f"{path}: not a segment of a consumption log: it has no {error}") from None
