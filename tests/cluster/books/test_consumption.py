"""The consumption log: whole lines or none, and every change to it shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from rollcall.cluster.books.consumption import Consumed, ConsumptionLog, newest_epoch, read_log
from rollcall.cluster.messages.attempt import Header


@dataclass(frozen=True)
class Item:
    ticket_id: int
    min_policy_version: int = 0
    reward_model_version: str = ""

    @property
    def header(self) -> Header:
        return Header(self.ticket_id, 1, 1)

    def digest(self) -> str:
        return f"{self.ticket_id:032x}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = ConsumptionLog(tmp_path / "logs" / "consumption.jsonl")
    for step in range(3):
        log.append(step, 1, [Item(2 * step), Item(2 * step + 1, min_policy_version=step)])
    return tmp_path / "logs" / "consumption.jsonl"


def test_what_was_appended_is_read_back(path: Path) -> None:
    reading = read_log(path)
    assert reading.problems == ()
    assert not reading.torn
    assert [(number, line.step, line.ticket_id) for number, line in reading.lines] == [
        (n + 1, n // 2, n) for n in range(6)
    ]
    assert reading.lines[3][1] == Consumed(1, 1, 3, 1, 1, f"{3:032x}")
    assert newest_epoch(path) == 1


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_torn_last_line_is_tolerated_by_readers_and_cut_by_the_next_writer(path: Path, cut: int) -> None:
    text = path.read_bytes()
    path.write_bytes(text[:-cut])
    reading = read_log(path)
    assert (len(reading.lines), reading.problems, reading.torn) == (5, (), True)
    ConsumptionLog(path).append(2, 2, [Item(9)])
    after = read_log(path)
    assert [line.ticket_id for _, line in after.lines] == [0, 1, 2, 3, 4, 9]
    assert (after.problems, after.torn) == ((), False)
    assert newest_epoch(path) == 2


def test_a_log_of_one_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "consumption.jsonl"
    path.write_text('{"step": 0, "ep')
    ConsumptionLog(path).append(0, 1, [Item(0)])
    assert [line.ticket_id for _, line in read_log(path).lines] == [0]


def test_a_learner_that_finishes_its_step_beside_its_successor_leaves_a_whole_log(path: Path) -> None:
    old, new = ConsumptionLog(path), ConsumptionLog(path)
    new.append(3, 2, [Item(6)])
    old.append(3, 1, [Item(7)])
    new.append(4, 2, [Item(8)])
    reading = read_log(path)
    assert reading.problems == ()
    assert [line.ticket_id for _, line in reading.lines][-3:] == [6, 7, 8]


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none").lines == ()
    assert newest_epoch(tmp_path / "none") == 0


@pytest.mark.parametrize("name", ["step", "epoch", "ticket_id", "attempt", "min_version", "digest", "after", "sum"])
def test_a_change_of_any_field_shows_at_its_line(path: Path, name: str) -> None:
    lines = path.read_text().splitlines()
    record = json.loads(lines[2])
    record[name] = record[name] + 1 if isinstance(record[name], int) else record[name][::-1]
    lines[2] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    assert (3, "its content was changed: the checksum does not fit") in read_log(path).problems


def test_removed_doubled_moved_and_foreign_lines_show(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    follows = "does not follow the line before it: lines were removed, doubled or moved"

    def problems(changed: list[str]) -> list[tuple[int, str]]:
        path.write_text("".join(changed))
        return list(read_log(path).problems)

    assert problems(lines[:2] + lines[3:]) == [(3, follows)]
    assert problems(lines[:3] + lines[2:]) == [(4, follows)]
    assert problems([lines[1], lines[0], *lines[2:]]) == [(1, follows), (2, follows), (3, follows)]
    assert problems([*lines[:2], "null\n", *lines[3:]]) == [(3, "not a line of a consumption log")]
    assert problems([*lines[:2], lines[2].replace('"step": 1', '"step":1'), *lines[3:]]) == [
        (3, "its content was changed: the checksum does not fit")
    ]
