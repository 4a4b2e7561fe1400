"""The files of a run that lasts for weeks: read and cut without being in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from rollcall.deploy.report import run_lines
from rollcall.deploy.report.page import write_report
from rollcall.deploy.report.run_lines import iter_jsonl, last_record, read_jsonl, thinned, truncate_after


def written(path: Path, steps: int, end: str = "") -> Path:
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(steps)) + end)
    return path


@pytest.mark.parametrize("block", [1, 7, 26, 1 << 20])
def test_truncate_after_keeps_the_step_and_drops_later_ones_and_half_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(run_lines, "_BLOCK_BYTES", block)
    path = written(tmp_path / "metrics.jsonl", 10, '{"step": 10, "up')
    assert last_record(path) == {"step": 9, "loss": 1.0}, "the last one that is whole"
    assert truncate_after(path, 6) == 4
    assert [record["step"] for record in read_jsonl(path)] == list(range(7))
    assert truncate_after(path, 6) == 0
    assert path.read_bytes() == written(tmp_path / "as-if", 7).read_bytes()
    assert truncate_after(path, -1) == 7 and path.read_bytes() == b"" and last_record(path) is None
    absent = tmp_path / "absent.jsonl"
    assert (truncate_after(absent, 6), last_record(absent), read_jsonl(absent)) == (0, None, [])


@pytest.mark.parametrize("number", [0, 1, 7, 20, 21, 22, 40, 41, 100, 1000])
def test_of_too_many_records_each_so_manieth_stays_and_the_last_one(number: int) -> None:
    kept = thinned(iter(range(number)), most=10)
    assert len(kept) <= 21
    if number <= 20:
        assert kept == list(range(number))
        return
    assert kept[0] == 0 and kept[-1] == number - 1
    every = kept[1]
    assert kept == [*range(0, number, every), *([] if (number - 1) % every == 0 else [number - 1])]
    assert len(kept) >= 10


def test_the_page_of_a_long_run_does_not_hold_all_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinned, "__defaults__", (200,))
    (tmp_path / "config.yaml").write_text("env: CartPole-v1\n")
    path = written(tmp_path / "metrics.jsonl", 30_000)
    tracemalloc.start()
    try:
        write_report(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000 < sum(len(str(record)) for record in iter_jsonl(path)) * 8
    assert "30,000" in (tmp_path / "report.html").read_text(), "learner steps"
