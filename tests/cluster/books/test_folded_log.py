"""The consumption log in segments: as if it had never been folded, whoever is killed while it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollcall.cluster.books import consumption
from rollcall.cluster.books.consumption import ConsumptionLog, newest_epoch, read_log
from tests.cluster.books.test_consumption import Item


class Killed(BaseException):
    """As SIGKILL would: nobody cleans up."""


def write(path: Path, first: int, end: int, *, rotate_bytes: int, epoch: int = 1) -> None:
    log = ConsumptionLog(path, rotate_bytes=rotate_bytes)
    for step in range(first, end):
        log.append(step, epoch, [Item(2 * step), Item(2 * step + 1, step, "judge-1" if step % 2 else "")])


@pytest.mark.parametrize("rotate_bytes", [1, 500, 1500])
def test_a_folded_log_reads_as_one_that_is_not_and_stays_small(tmp_path: Path, rotate_bytes: int) -> None:
    plain, small = tmp_path / "plain.jsonl", tmp_path / "small.jsonl"
    write(plain, 0, 30, rotate_bytes=1 << 20)
    for first in range(0, 30, 5):  # a writer follows a writer
        write(small, first, first + 5, rotate_bytes=rotate_bytes)
        assert small.stat().st_size < rotate_bytes + 500
    assert read_log(small) == read_log(plain)
    assert len(list(tmp_path.glob("small-*.seg"))) > 3
    assert json.loads(plain.read_text().splitlines()[-1]) == json.loads(
        (small.read_text() or plain.read_text()).splitlines()[-1]
    )


def test_the_line_is_as_json_writes_it(tmp_path: Path) -> None:
    line = consumption.Consumed(1, 2, 3, 4, -1, 'a"b', "mödel\\").line("after")
    record = json.loads(line)
    total = record.pop("sum")
    assert line == json.dumps(record)[:-1] + f', "sum": "{total}"}}\n'


def test_lines_that_are_wrong_stay_wrong_when_they_are_folded(tmp_path: Path) -> None:
    path = tmp_path / "consumption.jsonl"
    write(path, 0, 6, rotate_bytes=1 << 20)
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"ticket_id": 2', '"ticket_id": 7')
    path.write_text("".join([*lines[:5], "null\n", *lines[6:8], *lines[9:]]))
    before = read_log(path)
    assert len(before.problems) == 3
    ConsumptionLog(path).rotate()
    assert path.stat().st_size == 0
    assert read_log(path) == before
    write(path, 6, 7, rotate_bytes=1 << 20)
    assert read_log(path).problems == before.problems


def test_a_writer_killed_between_its_segment_and_the_log_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "consumption.jsonl"
    write(path, 0, 6, rotate_bytes=1 << 20)
    before = read_log(path)
    beside = ConsumptionLog(path)

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("os.ftruncate", killed)
    with pytest.raises(Killed):
        ConsumptionLog(path).rotate()
    monkeypatch.undo()
    assert path.stat().st_size > 0 and len(list(tmp_path.glob("*.seg"))) == 1
    assert read_log(path) == before
    beside.append(6, 1, [Item(12)])  # of a learner that knows of no segment
    assert [line.ticket_id for _, line in read_log(path).lines] == list(range(13))
    write(path, 7, 8, rotate_bytes=1 << 20, epoch=2)
    reading = read_log(path)
    assert ([line.ticket_id for _, line in reading.lines], reading.problems) == ([*range(13), 14, 15], ())
    assert newest_epoch(path) == 2


def test_the_newest_epoch_is_known_of_a_log_that_was_just_folded(tmp_path: Path) -> None:
    path = tmp_path / "consumption.jsonl"
    write(path, 0, 3, rotate_bytes=1 << 20, epoch=4)
    ConsumptionLog(path).rotate()
    assert newest_epoch(path) == 4


def test_a_segment_that_is_gone_shows_where_the_next_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "consumption.jsonl"
    write(path, 0, 12, rotate_bytes=900)
    segments = sorted(tmp_path.glob("*.seg"))
    segments[1].unlink()
    number = int(segments[2].stem.rpartition("-")[2])
    assert (number, "does not follow the line before it: lines were removed, doubled or moved") in read_log(
        path
    ).problems
