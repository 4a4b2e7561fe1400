"""The pool of killable workers, and a user's function in it: real processes, every way we know to misbehave."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Score
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.function_config import FunctionConfig
from rollcall.reward_service.scorers.function_scorer import FunctionScorer
from rollcall.reward_service.workers.pool import Done, WorkerPool
from rollcall.reward_service.workers.printed_output import PrintedOutput
from rollcall.reward_service.workers.workers_config import WorkersConfig
from tests.waiting import eventually

SCORERS = """
import os, subprocess, sys, time

def good(item):
    return len(item.response)

def detailed(item):
    return {"score": 0.5, "components": {"length": len(item.response)}}

def by_response(item):
    what = item.response
    if what == "raise": raise KeyError("no such thing")
    if what == "exit": sys.exit(0)
    if what == "hard exit": os._exit(3)
    if what == "hang": time.sleep(1000)
    if what == "spin":
        while True: pass
    if what == "fork":
        os.fork()
        return 1
    if what == "fork and hang":
        if os.fork() == 0:
            os.setsid()
        time.sleep(1000)
    if what == "memory": return len(bytearray(50 << 30))
    if what == "print":
        while True: print("x" * 10000)
    if what == "NaN": return float("nan")
    if what == "nothing": return None
    if what == "text": return "much"
    if what == "numpy":
        import numpy
        return numpy.float32(0.25)
    if what == "token": return float(any("ROLLCALL_REWARD_TOKEN" in name for name in os.environ))
    return 1.0

calls = 0
def batch(items):
    global calls
    calls += 1
    if any(item.response == "bad" for item in items): raise ValueError("bad item")
    return [len(items) + calls / 10 for item in items]
batch.batched = True

broken = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_scorers.py").write_text(SCORERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    return tmp_path


@pytest.fixture
def build(folder: Path) -> Iterator[Callable[..., FunctionScorer]]:
    built: list[FunctionScorer] = []

    def make(name: str, timeout_s: float = 30, **settings: Any) -> FunctionScorer:
        workers = WorkersConfig(num=2, timeout_s=timeout_s, memory_bytes=4 << 30)
        scorer = build_scorer(FunctionConfig(path=f"my_scorers:{name}", workers=workers, **settings))
        assert isinstance(scorer, FunctionScorer)
        built.append(scorer)
        return scorer

    yield make
    for scorer in built:
        scorer.close()
    assert not worker_processes()


def worker_processes() -> list[psutil.Process]:
    """Workers of this process. What other tests left unreaped has no command line to read."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "worker_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


def items(*responses: str) -> list[ScoreItem]:
    return [ScoreItem(id=str(n), prompt="p", response=response) for n, response in enumerate(responses)]


def test_a_users_function_scores_items(build: Callable[..., FunctionScorer]) -> None:
    assert build("good").score(items("a", "bcd", "")) == [Score(1.0), Score(3.0), Score(0.0)]
    assert build("detailed").score(items("ab")) == [Score(0.5, {"length": 2.0})]


def test_a_batched_function_gets_many_items_and_a_bad_one_fails_alone(build: Callable[..., FunctionScorer]) -> None:
    scorer = build("batch", batch_size=3)
    sizes = [int(outcome.value) for outcome in scorer.score(items("a", "b", "c", "d")) if isinstance(outcome, Score)]
    assert sizes == [3, 3, 3, 1]
    first, second, third = scorer.score(items("a", "bad", "c"))
    assert isinstance(first, Score) and isinstance(third, Score) and int(first.value) == 1
    assert isinstance(second, Failure) and second.kind == "scorer_failed"
    assert second.message.startswith("ValueError: bad item (")


def test_its_version_follows_its_source(build: Callable[..., FunctionScorer], folder: Path) -> None:
    before = build("good").version
    assert build("good").version == before
    assert build("detailed").version != before
    (folder / "my_scorers.py").write_text(SCORERS + "\n# changed\n")
    assert build("good").version != before


MISBEHAVIOUR = {
    "raise": ("scorer_failed", "KeyError"),
    "exit": ("scorer_failed", "SystemExit"),
    "hard exit": ("scorer_failed", "ended with 3"),
    "hang": ("timeout", "took longer"),
    "spin": ("timeout", "took longer"),
    "fork and hang": ("timeout", "took longer"),
    "memory": ("scorer_failed", "out of memory"),
    "print": ("timeout", "took longer"),
    "NaN": ("non_finite", "nan"),
    "nothing": ("scorer_failed", "no score"),
    "text": ("scorer_failed", "gave the text 'much' for one text"),
}


def test_what_misbehaves_fails_alone_and_the_next_is_scored(build: Callable[..., FunctionScorer]) -> None:
    scorer = build("by_response", timeout_s=1.5)
    given = [what for bad in MISBEHAVIOUR for what in (bad, "good")]
    outcomes = scorer.score(items(*given))
    for what, outcome in zip(given, outcomes, strict=True):
        if what == "good":
            assert outcome == Score(1.0), what
        else:
            kind, said = MISBEHAVIOUR[what]
            assert isinstance(outcome, Failure) and outcome.kind == kind and said in outcome.message, (what, outcome)
    assert scorer.score(items("fork", "good", "numpy")) == [Score(1.0), Score(1.0), Score(0.25)]


def test_what_raises_is_told_with_the_users_own_line_and_what_it_prints_goes_to_standard_error(
    build: Callable[..., FunctionScorer], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "my_scorers.py").write_text(
        "import json\ndef good(item):\n    print('looked at', item.response)\n    return json.loads(item.response)\n"
    )
    scorer = build("good")
    failure, score = scorer.score(items("no JSON", "7"))
    assert score == Score(7.0)
    assert isinstance(failure, Failure)
    first, *trace = failure.message.splitlines()
    assert first.startswith("JSONDecodeError: Expecting value")
    assert first.endswith(f"({folder / 'my_scorers.py'}, line 4, in good)")
    assert "    return json.loads(item.response)" in trace
    assert not any("worker_process.py" in line or "user_function.py" in line for line in trace)
    scorer.close()
    time.sleep(0.5)
    printed = capfd.readouterr().err
    assert "looked at no JSON" in printed and "looked at 7" in printed and "JSONDecodeError" in printed


def test_a_function_that_prints_without_an_end_does_not_fill_the_disk(capfd: pytest.CaptureFixture[str]) -> None:
    output = PrintedOutput(burst_bytes=1000, bytes_per_s=0.0)
    for _ in range(50):
        os.write(output.descriptor, b"x" * 99 + b"\n")
        time.sleep(0.002)
    output.close()
    time.sleep(0.2)
    printed = capfd.readouterr().err
    assert printed.count("x" * 99) == 10 and "[4,000 bytes of output are left out]" in printed


def test_the_services_token_does_not_reach_a_function(
    build: Callable[..., FunctionScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN", "secret")
    assert build("by_response").score(items("token")) == [Score(0.0)]


def test_a_function_that_is_not_there_is_refused_when_it_is_built(build: Callable[..., FunctionScorer]) -> None:
    with pytest.raises(BadInput, match="did you mean good"):
        build("goood")
    with pytest.raises(BadInput, match="not a function"):
        build("broken")
    with pytest.raises(BadInput, match="no module 'elsewhere'"):
        build_scorer(FunctionConfig(path="elsewhere:f"))


def test_a_text_scorer_is_given_no_segment(build: Callable[..., FunctionScorer]) -> None:
    array = {"dtype": "uint8", "shape": [1], "content": "AA=="}
    segment = ScoreItem.model_validate({"id": "1", "segment": {"observations": array, "actions": array}})
    (outcome,) = build("good", takes=frozenset({"text"})).score([segment])
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported"


def test_a_worker_that_died_while_idle_is_replaced_unnoticed(build: Callable[..., FunctionScorer]) -> None:
    scorer = build("good")
    assert scorer.score(items("a")) == [Score(1.0)]
    for worker in worker_processes():
        worker.kill()
        psutil.wait_procs([worker], timeout=0)
    time.sleep(0.2)
    assert scorer.score(items("a", "bb")) == [Score(1.0), Score(2.0)]


def test_after_close_nothing_is_scored(folder: Path) -> None:
    pool = WorkerPool("rollcall.reward_service.scorers.function_scorer:make_worker", "my_scorers:good", WorkersConfig())
    pool.close()
    (result,) = pool.map([[]])
    assert isinstance(result, Failure) and result.kind == "unavailable"


def test_results_come_in_the_order_of_the_jobs(folder: Path) -> None:
    (folder / "my_pool.py").write_text(
        "import time\ndef make(s):\n    return lambda n: time.sleep((5 - n) / 50) or n * s\n"
    )
    pool = WorkerPool("my_pool:make", 10, WorkersConfig(num=2, memory_bytes=1 << 30), trusted=True)
    assert pool.map([0, 1, 2, 3, 4, 5]) == [Done(0), Done(10), Done(20), Done(30), Done(40), Done(50)]
    pool.close()


def test_workers_end_with_a_killed_service(folder: Path) -> None:
    service = """
    import time
    from rollcall.reward_service.scorers.function_scorer import FunctionConfig, build_function_scorer
    scorer = build_function_scorer(FunctionConfig(path="my_scorers:good"))
    print("ready", flush=True)
    time.sleep(100)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(service)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("worker_process" in " ".join(child.cmdline()) for child in family)
    process.kill()
    process.communicate()
    eventually(lambda: not any(child.is_running() for child in family), 10)


def test_the_version_of_a_function_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Python orders sets anew in each process, and a service that was started again must know its old scores."""
    (tmp_path / "mine.py").write_text("def score(item):\n    return 1.0\n")
    code = (
        "from rollcall.reward_service.scorers.function_scorer import FunctionConfig, build_function_scorer as build\n"
        "scorer = build(FunctionConfig(path='mine:score')); print(scorer.version); scorer.close()"
    )
    versions = set()
    for seed in range(4):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert found.returncode == 0, found.stderr
        versions.add(found.stdout)
    assert len(versions) == 1
