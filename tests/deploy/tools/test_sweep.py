"""Sweeps: what is varied, trials as runs of their own, going on with one that was cut off, and a search that gives up
what falls behind."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.kinds.recipes import load_recipe
from rollcall.deploy.tools.sweep import sweeping
from rollcall.deploy.tools.sweep.proposing import Grid, OptunaSearch, Proposal
from rollcall.deploy.tools.sweep.space import Choices, Range, grid, parse_dimension
from rollcall.deploy.tools.sweep.trials import Outcome, Trials
from tests.needs import needs
from tests.runs import TWO_STEPS


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLCALL_RUNS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "small.yaml").write_text(TWO_STEPS)
    return tmp_path


# What is varied.


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("learner.learning_rate=1e-4..1e-2:log", Range("learner.learning_rate", 1e-4, 1e-2, True)),
        ("algorithm.epochs=2..10", Range("algorithm.epochs", 2, 10, False)),
        ("algorithm.clip_range=0.1,0.2", Choices("algorithm.clip_range", (0.1, 0.2))),
        ("policy.activation=tanh,relu", Choices("policy.activation", ("tanh", "relu"))),
        ("policy.hidden_sizes=[[64, 64], [32]]", Choices("policy.hidden_sizes", ([64, 64], [32]))),
    ],
)
def test_dimensions_are_read_as_they_are_written(text: str, dimension: Any) -> None:
    assert parse_dimension(text) == dimension


@pytest.mark.parametrize(
    "text", ["a", "=1,2", "a=", "a=1", "a=2..1", "a=0..1:log", "a=x..y", "a=1..2:cubic", "a=true..3"]
)
def test_what_is_no_dimension_is_refused_with_how_one_is_written(text: str) -> None:
    with pytest.raises(BadInput, match=r"write learner\.learning_rate=1e-4\.\.1e-2:log"):
        parse_dimension(text)


def test_a_grid_is_every_combination_once_and_has_no_ranges() -> None:
    two = [Choices("a", (1, 2)), Choices("b", ("x", "y", "z"))]
    assert len(list(grid(two))) == 6 and next(grid(two)) == {"a": 1, "b": "x"}
    assert list(grid([])) == [{}]
    with pytest.raises(BadInput, match="a is a range: say how many values of it to try, with --trials N"):
        list(grid([Range("a", 0, 1, False)]))


# Trials.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["small.yaml"], "nothing varies"),
        (["small.yaml", "--search", "lr=1e-3,1e-4"], "Rollcall calls it learner.learning_rate"),
        (["small.yaml", "--search", "learner.learning_rate=-1,1"], "learner.learning_rate = -1"),
        (["small.yaml", "--seeds", "0"], "--seeds = 0"),
        (["nosuch", "--seeds", "2"], "unknown recipe 'nosuch'"),
        (["small.yaml", "--seeds", "2", "--name", "../away"], "--name '../away': a directory below runs/"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(
    arguments: list[str], said: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["sweep", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (work / "runs").exists()


def test_a_grid_over_two_seeds_is_run_compared_and_gone_on_with(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "small.yaml", "--search", "learner.learning_rate=1e-3,1e-2", "--seeds", "2", "--jobs", "2"]
    assert main.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["directory"] == "runs/sweep-small" and len(found["trials"]) == 2
    assert found["trials"][0]["score"] >= found["trials"][1]["score"]
    runs = sorted(path.name for path in Path("runs/sweep-small/trials").iterdir())
    assert runs == ["000-s0", "000-s1", "001-s0", "001-s1"]
    page = Path("runs/sweep-small/comparison.html").read_text()
    assert "learner.learning_rate=0.001" in page and "95 % t interval" in page

    stamps = {path: path.stat().st_mtime_ns for path in Path("runs/sweep-small/trials").glob("*/summary.json")}
    assert main.main([*command, "-q"]) == 0  # nothing is trained again
    assert capsys.readouterr().out.startswith("best: 00")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert main.main(["sweep", "small.yaml", "total_learner_steps=3", *command[2:]]) == 2
    assert "has another sweep (it differs in overrides)" in capsys.readouterr().err


def test_a_trial_that_is_stopped_goes_on_and_one_that_fails_says_why(work: Path) -> None:
    folder = work / "trials"
    folder.mkdir()
    stop = threading.Event()
    trials = Trials("small.yaml", ["total_learner_steps=100000"], [0], folder, stop)
    timer = threading.Timer(4.0, stop.set)
    timer.start()
    outcome = trials.carry_out(Proposal(0, {}), lambda value, at: False)
    timer.join()
    assert outcome.stopped and outcome.score is None
    assert not list(folder.glob("*.errors"))
    failing = Trials("small.yaml", ["env=NoSuch-v1"], [0], folder, threading.Event())
    outcome = failing.carry_out(Proposal(1, {}), lambda value, at: False)
    assert "NoSuch" in outcome.error and "failed (" in sweeping.line_of(outcome)
    bare = Trials("small.yaml", ["eval.episodes=0"], [0], folder, threading.Event())
    assert "set eval.episodes above 0" in bare.carry_out(Proposal(2, {}), lambda value, at: False).error


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word that a parent has died")
def test_a_sweep_that_is_killed_leaves_no_trial_behind(work: Path) -> None:
    command = [sys.executable, "-m", "rollcall.deploy.cli", "sweep", "small.yaml", "total_learner_steps=100000"]
    command += ["--search", "learner.learning_rate=1e-3,1e-4", "--jobs", "1", "--name", "killed"]
    sweep = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not (work / "runs" / "killed" / "trials" / "000-s0" / "metrics.jsonl").exists():
            assert sweep.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        trials = psutil.Process(sweep.pid).children()
        assert trials
    finally:
        sweep.kill()
        sweep.wait()
    assert not psutil.wait_procs(trials, timeout=15)[1]


def test_a_trial_that_is_given_up_at_its_first_seed_has_no_others(work: Path) -> None:
    folder = work / "trials"
    folder.mkdir()
    trials = Trials("small.yaml", ["total_learner_steps=3000"], [0, 1], folder, threading.Event())
    asked: list[tuple[float, int]] = []

    def hopeless(value: float, milestone: int) -> bool:
        asked.append((value, milestone))
        return True

    outcome = trials.carry_out(Proposal(0, {}), hopeless)
    assert outcome.pruned and [run.name for run in outcome.runs] == ["000-s0"]
    assert len(asked) == 1 and 1 <= asked[0][1] < 10 and asked[0][0] > 0
    assert "given up" in sweeping.line_of(outcome)


def swept(work: Path, jobs: int) -> dict[int, Any]:
    """A sweep of three trials, of which trial 1 is an error of the sweep itself; what is written of it, by number."""
    values = "learner.learning_rate=1e-3,1e-4,1e-5"
    with pytest.raises(RuntimeError, match="no disk"):
        sweeping.sweep(sweeping.Sweep("small.yaml", [], [values], 1, None, jobs, work / "swept"), lambda text: None)
    return {trial["number"]: trial for trial in json.loads((work / "swept" / "results.json").read_text())["trials"]}


def test_a_trial_is_written_down_as_it_ends_whatever_becomes_of_the_sweep(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(self: Trials, proposal: Proposal, hopeless: Any) -> Outcome:
        if proposal.number == 1:
            raise RuntimeError("no disk")
        return Outcome(proposal, 7.0, [7.0], [])

    monkeypatch.setattr(Trials, "carry_out", carry_out)
    found = swept(work, jobs=1)
    assert found.keys() == {0} and found[0]["score"] == 7.0


def test_an_error_of_the_sweep_stops_the_trials_that_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def carry_out(self: Trials, proposal: Proposal, hopeless: Any) -> Outcome:
        if proposal.number == 1:
            raise RuntimeError("no disk")
        return Outcome(proposal, None, [], [], stopped=self.stop.wait(60))

    monkeypatch.setattr(Trials, "carry_out", carry_out)
    assert swept(work, jobs=2)[0]["stopped"]


def test_runs_go_on_side_by_side_as_cores_allow_and_language_models_take_all_gpus() -> None:
    def jobs(recipe: str, *overrides: str, cores: int = 8, num_gpus: int = 0) -> int:
        return sweeping.side_by_side(load_recipe(recipe, overrides), cores=cores, num_gpus=num_gpus)

    assert jobs("cartpole-ppo", "runtime=serial") == 8
    assert jobs("cartpole-ppo", "total_env_steps=20_000") == 8  # one process each, as it is so short
    assert jobs("cartpole-ppo", "actors.num=3") == 2
    assert jobs("cartpole-ppo", "actors.num=3", cores=2) == 1
    assert jobs("cartpole-ppo", "actors.num=1", num_gpus=2) == 4
    assert jobs("arithmetic-grpo", "actors.num=1") == 4
    assert jobs("arithmetic-grpo", "actors.num=1", num_gpus=2) == 1


def test_a_line_has_the_mean_over_seeds_with_its_interval() -> None:
    outcome = Outcome(Proposal(3, {"a": 0.000123456, "b": "x"}), 495.0, (490.0, 500.0, 495.0), ())
    assert sweeping.line_of(outcome) == "003  495.0 [482.6, 507.4]  a=0.0001235 b=x"
    assert Grid([]).next() == Proposal(0, {})


# The search.


@needs("optuna")
def test_a_search_goes_on_where_it_was_cut_off_and_gives_up_what_falls_behind(tmp_path: Path) -> None:
    dimensions: list[Choices | Range] = [Range("x", 0.0, 1.0, False), Choices("y", ([1], [2]))]

    def begin(trials: int = 6) -> OptunaSearch:
        return OptunaSearch(dimensions, trials=trials, seed=0, directory=tmp_path)

    first = begin()
    cut_off = first.next()
    assert cut_off is not None and 0 <= cut_off.settings["x"] <= 1 and cut_off.settings["y"] in ([1], [2])
    second = begin()
    assert second.next() == cut_off
    second.told(cut_off, 1.0, pruned=False)
    for number in range(1, 5):
        proposal = second.next()
        assert proposal is not None and proposal.number == number
        for milestone in (1, 2, 3):
            assert not second.hopeless(proposal, 100.0, milestone)
        second.told(proposal, 100.0, pruned=False)
    last = second.next()
    assert last is not None and not second.hopeless(last, 1.0, 1) and second.hopeless(last, 1.0, 2)
    second.told(last, None, pruned=True)
    assert second.next() is None and begin().next() is None
    more = begin(7).next()
    assert more is not None and more.number == 6


@needs("optuna")
def test_a_search_of_real_runs_finds_its_best(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["--search", "learner.learning_rate=1e-4..1e-2:log", "--trials", "2", "--jobs", "1", "--name", "found"]
    assert main.main(["sweep", "small.yaml", *search]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 at a time; runs in runs/found/trials" and lines[-1] == "runs/found/comparison.html"
    assert lines[-2].startswith("best: 00") and "learner.learning_rate=" in lines[-2]


def test_without_optuna_a_search_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BadInput, match=r"pip install 'rollcall-rl\[sweep\]'"):
        OptunaSearch([], trials=1, seed=0, directory=tmp_path)
