"""Whole searches for a reward through the command line: a coding model on a real port, real training, the real sandbox.
Ended in every way that we know, and gone on with: nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.deploy.rundir.candidates import JOURNAL, read_candidates, run_of
from tests.deploy.drive.design.coding_server import (
    ENDLESS,
    ESCAPE,
    FALLING,
    HOG,
    LATER,
    NAN,
    NO_CODE,
    SHELL,
    UPRIGHT,
    WRONG_SIGNATURE,
    CodingServer,
    Fault,
    answer,
)
from tests.runs import Bench, Run

KEY = "sk-nobody-may-read-this"
# A candidate's run of two learner steps.
TINY = (
    *("total_env_steps=128", "actors.num_envs=2", "actors.num_shards=1", "actors.unroll_length=32"),
    *("algorithm.num_minibatches=2", "algorithm.epochs=1", "eval.episodes=2", "metrics.enabled=false"),
    *("design.videos=false", "supervision.max_failures=3"),
)
# One that takes a few seconds, with a checkpoint at every fourth step.
SLOW = (*TINY, "total_env_steps=2560", "algorithm.epochs=4", "checkpoint.every_steps=4", "design.side_by_side=2")
GOOD = [answer(UPRIGHT.replace("5.0", f"{5 + n}.0")) for n in range(6)]  # six that are not the same


def begin(bench: Bench, url: str, *overrides: str) -> Run:
    return bench.start("train", "cartpole-eureka", f"design.url={url}", *overrides, "name=run")


def terminal_lines(run: Run) -> Counter[str]:
    """How often each candidate was settled."""
    lines = read_jsonl(run.directory / JOURNAL)
    return Counter(line["candidate"] for line in lines if line["event"] in ("trained", "failed"))


def wait_until(holds: Callable[[], bool], run: Run, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline, (run.directory / JOURNAL).read_text()
        time.sleep(0.01)


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.long
def test_a_reward_is_found_among_good_bad_endless_and_hostile_ones_and_the_policy_balances(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CartPole-v1 counts as solved at 475 of 500 (gymnasium). The candidates are trained by their own rewards alone;
    the env's own is the measure. Seed 0, and a margin: by this reward it is 500 after 20,000 steps already."""
    monkeypatch.setenv("CODER_KEY", KEY)
    mark = bench.folder / "mark"
    escape = answer(ESCAPE.replace("MARK", str(mark)).replace("kill -9 1", f"kill -9 {os.getpid()}"))
    first = [answer(FALLING), answer(ENDLESS), answer(HOG), answer(SHELL), answer(NAN), NO_CODE, WRONG_SIGNATURE]
    script: list[str | Fault] = [
        Fault(503),
        *first,
        Fault(200, "<html>"),
        answer(LATER),
        escape,
        *[answer(UPRIGHT)] * 9,
    ]
    with CodingServer(script) as server:
        run = begin(
            *(bench, server.url, "design.key_variable=CODER_KEY", "design.iterations=2", "design.candidates=8"),
            *("total_env_steps=24_576", "supervision.max_failures=5"),
        ).wait(560)
        assert run.process.returncode == 0, run.output + run.errors
        requests = server.requests
        assert server.keys == [f"Bearer {KEY}"] * 17
    candidates = read_candidates(run.directory)
    assert len(candidates) == 16 and all(found.settled for found in candidates.values())
    assert terminal_lines(run) == dict.fromkeys(candidates, 1)
    reasons = " | ".join(found.problem or "" for found in candidates.values())
    for said in (
        *("calls took longer than", "MemoryError", "os cannot be imported", "the reward is nan", "has no function"),
        *("must take (observation,", "not of the OpenAI protocol", "ZeroDivisionError", "the same as candidate"),
    ):
        assert said in reasons
    assert not mark.exists()

    best = candidates[run.summary["best"]]
    assert best.code is not None and "centred" in best.code and best.fitness is not None
    evaluated = bench.start("eval", "run", "--episodes", "100", "--seed", "12345", "--json").wait()
    result = json.loads(evaluated.output)
    assert result["mode"] == "greedy" and result["n"] == 100
    assert result["mean"] >= 475 and run.summary["final_eval"]["mean"] == best.fitness >= 475

    later = requests[-1]["messages"]
    assert [message["role"] for message in later] == ["system", "user", "assistant", "user"]
    assert "the reward is nan" in later[-1]["content"] and "Its fitness" in later[-1]["content"]
    assert "reward" not in later[1]["content"].replace("Write the reward function.", "")
    page = (run.directory / "report.html").read_text()
    assert "Tree of candidates" in page and "data:image/gif;base64," in page and "compute_reward" in page
    assert "Candidate 1-" in page and "<html>'" not in page.partition("<body>")[2]
    assert KEY.encode() not in everything_written(bench.folder)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["while the model answers", "in the first training", "in the second iteration's"])
def test_a_search_that_was_killed_goes_on_and_trains_nothing_twice(bench: Bench, moment: str) -> None:
    """What is done by then is not touched again; what was under way goes on from its checkpoint."""
    iteration = 2 if "second" in moment else 1

    def has_come() -> bool:
        if "answers" in moment:
            return bool(read_candidates(run.directory))
        return any(len(steps_of(run, f"{iteration}-{n}")) > 10 for n in (1, 2))

    with CodingServer([GOOD[0], NO_CODE, *GOOD[1:3]]) as server:
        run = begin(bench, server.url, *SLOW, "design.iterations=2", "design.candidates=2")
        wait_until(has_come, run)
        children = psutil.Process(run.process.pid).children(recursive=True)
        run.process.kill()
        run.process.wait()
        before, asked = read_candidates(run.directory), len(server.requests)
        untouched = {name: steps_of(run, name) for name, found in before.items() if found.fitness is not None}
        began = {name: began_at(run, name) for name in untouched}
        assert not psutil.wait_procs(children, timeout=15)[1], "a search that is killed leaves nobody behind"

        again = bench.start("resume", "run").wait(500)
        assert again.process.returncode == 0, again.output + again.errors
        candidates = read_candidates(run.directory)
        assert len(candidates) == 4
        assert asked <= len(server.requests) <= 4 + (asked - len(before))  # those that no answer had come of
    for name, found in before.items():
        assert (candidates[name].text, candidates[name].code) == (found.text, found.code)
        assert not found.settled or candidates[name] == found
    assert terminal_lines(run) == dict.fromkeys(candidates, 1)
    trained = [name for name, found in candidates.items() if found.fitness is not None]
    assert len(trained) == 3 and len(untouched) == (iteration == 2)
    for name in trained:
        steps = [record["step"] for record in steps_of(run, name)]
        assert steps == list(range(40))
        assert bench.audit(f"runs/run/candidates/{name}") == (0, f"runs/run/candidates/{name}: the books balance\n")
    assert untouched == {name: steps_of(run, name) for name in untouched}
    assert began == {name: began_at(run, name) for name in untouched}


def steps_of(run: Run, name: str) -> list[dict[str, Any]]:
    return read_jsonl(run_of(run.directory, name) / "metrics.jsonl")


def began_at(run: Run, name: str) -> tuple[str, int]:
    """When a candidate's run began, and when it was last summed up."""
    directory = run_of(run.directory, name)
    return (directory / "run.json").read_text(), (directory / "summary.json").stat().st_mtime_ns


@pytest.mark.long
def test_a_stop_ends_a_search_with_checkpoints_and_it_goes_on_to_the_same_end(bench: Bench) -> None:
    with CodingServer(GOOD[:1]) as server:
        run = begin(bench, server.url, *SLOW, "design.iterations=1", "design.candidates=1")
        wait_until(lambda: len(steps_of(run, "1-1")) > 10, run)
        run.process.send_signal(signal.SIGTERM)
        run.wait(90)
        assert run.process.returncode == 130, run.output + run.errors
        assert "go on with: rollcall resume runs/run" in run.output
        done = len(steps_of(run, "1-1"))
        assert done < 40 and not read_candidates(run.directory)["1-1"].settled
        again = bench.start("resume", "run").wait()
        assert again.process.returncode == 0 and len(server.requests) == 1
        whole = bench.start("train", str(run.directory / "candidates" / "1-1.yaml"), "name=whole", name="whole").wait()
        assert whole.process.returncode == 0
        keys = ("policy_loss", "reward_up", "reward_mean", "return_mean")
        assert [tuple(record[key] for key in keys) for record in steps_of(run, "1-1")] == [
            tuple(record[key] for key in keys) for record in whole.steps()
        ]


@pytest.mark.long
def test_a_model_that_goes_away_ends_a_search_in_one_line_and_it_goes_on_when_the_model_is_back(bench: Bench) -> None:
    with CodingServer([GOOD[0], Fault(500)]) as server:
        short = ("design.patience_s=1.5", "design.iterations=2", "design.candidates=1")
        run = begin(bench, server.url, *TINY, *short).wait()
        port = server.port
    assert run.process.returncode == 1
    assert run.errors.count("rollcall: error:") == 1
    assert "it said 500" in run.errors and "go on with: rollcall resume" in run.errors
    assert read_candidates(run.directory)["1-1"].fitness is not None
    with CodingServer(GOOD[1:2], port=port) as server:
        again = bench.start("resume", "run").wait()
        assert again.process.returncode == 0, again.output + again.errors
        assert len(server.requests) == 1
    assert terminal_lines(run) == {"1-1": 1, "2-1": 1}
    assert "nothing to go on with" in bench.start("resume", "run").wait().output


@pytest.mark.long
def test_a_search_in_which_nothing_was_of_use_says_so_and_why(bench: Bench) -> None:
    with CodingServer([NO_CODE]) as server:
        other = bench.start("train", "cartpole-eureka", f"design.url={server.url}", *TINY, "name=none", name="none")
        other.wait()
        assert len(server.requests) == 16
    assert other.process.returncode == 1
    assert "none of 16 candidates could be used (the last one: the answer has no function" in other.errors
    assert other.errors.count("rollcall: error:") == 1 and other.summary["status"] == "failed"
    assert "Tree of candidates" in (other.directory / "report.html").read_text()


@pytest.mark.long
def test_the_users_own_measure_chooses(bench: Bench) -> None:
    """By it the shortest code is the fittest."""
    (bench.folder / "own_fitness.py").write_text(
        "import yaml\n"
        "def short(run):\n"
        "    code = yaml.safe_load((run / 'config.yaml').read_text())['reward']['scorer']['code']\n"
        "    if 'fallen' in code:\n        raise ValueError('too long')\n"
        "    return -len(code)\n"
    )
    with CodingServer([answer(FALLING), answer(UPRIGHT), answer("return 1.0, {'one': 1.0}")]) as server:
        more = ("design.fitness=own_fitness:short", "design.candidates=3", "design.iterations=1", "eval.episodes=0")
        run = begin(bench, server.url, *TINY, *more).wait()
    assert run.process.returncode == 0, run.output + run.errors
    found = read_candidates(run.directory)
    assert "'one'" in (found[run.summary["best"]].code or "")
    (problem,) = [c.problem for c in found.values() if c.problem]
    assert problem.startswith("design.fitness: ValueError: too long (") and "own_fitness.py, line 5" in problem


def test_what_cannot_begin_is_one_line_and_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODER_KEY", raising=False)
    run = begin(bench, "http://127.0.0.1:9/v1", *TINY, "design.key_variable=CODER_KEY").wait()
    assert run.process.returncode == 2
    assert run.errors.strip() == (
        "rollcall: error: design.key_variable = 'CODER_KEY': no key in this environment variable"
    )
    assert not run.directory.exists()
