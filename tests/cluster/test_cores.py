"""A container's share of the cores counts, where it has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollcall.cluster.cores import usable_cores


@pytest.mark.parametrize(
    ("written", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # a core and a half: two can be kept busy for most of the time
        ("10000 100000", 1),
        ("6400000 100000", 8),
        ("nonsense", 8),
        ("", 8),
    ],
)
def test_it_is_the_smaller_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    quota = tmp_path / "cpu.max"
    quota.write_text(written)
    assert usable_cores(quota) == cores


def test_without_control_groups_it_is_what_the_process_may_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7})
    assert usable_cores(tmp_path / "not there") == 3
