"""What every test may ask for, which tests share a process of the suite, and which skips are failures."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.needs import refuse_unlisted_skip
from tests.runs import Bench

ENGINE_TESTS = "tests/actors/language/"

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that: the runs that tests
# interrupt would never hear of it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a developer's machine it may name a cluster: runs of tests are on their own, unless a test says otherwise.
os.environ.pop("RAY_ADDRESS", None)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return refuse_unlisted_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return refuse_unlisted_skip((yield))


@pytest.hookimpl(optionalhook=True)  # for pytest -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes whole files, as with `--dist loadfile`; those that share vLLM engines are one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope: str = super()._split_scope(nodeid)
            return ENGINE_TESTS if scope.startswith(ENGINE_TESTS) else scope

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path)) as bench:
        yield bench
