"""Runs with a table: the run directory, metrics, report, resume and evaluation that every run has; and bandits'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.deploy import load_policy, train
from rollcall.deploy.cli.main import main
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.recipes import load_recipe, load_run
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.learners.tabular.planning import optimum
from tests.learners.tabular.worlds import LAKE, model_of

SHORT = {"total_episodes": 60, "episodes_per_step": 10, "eval.episodes": 5}
FEW = {"total_learner_steps": 20, "bandit.problems": 50}


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint_of(run: str, name: str = "learner") -> bytes:
    return (list_checkpoints(Path("runs") / run)[-1] / f"{name}.safetensors").read_bytes()


def test_a_run_leaves_what_every_run_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"{key}={value}" for key, value in SHORT.items()]
    assert main(["train", "frozenlake-q-learning", "name=short", *overrides]) == 0
    text = capsys.readouterr().out
    best = float(model_of(LAKE).start @ optimum(model_of(LAKE), 0.99).values)
    assert f"the optimum is {best:.6g}" in text
    run = Path("runs/short")
    records, summary = read_jsonl(run / "metrics.jsonl"), json.loads((run / "summary.json").read_text())
    assert [record["episodes"] for record in records] == [10] * 6
    assert records[-1]["env_steps"] == summary["env_steps"] > 60
    assert 0 <= records[0]["return_mean"] <= 1 and records[-1]["epsilon"] < records[0]["epsilon"]
    assert summary["final_eval"]["optimal_value"] == summary["optimal_value"] == pytest.approx(best)
    page = (run / "report.html").read_text()
    assert "q_learning on FrozenLake-v1" in page and "Value error" in page
    assert main(["eval", "short", "--episodes", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] == summary["final_eval"]["mean"]
    assert main(["report", "short"]) == 0
    assert main(["resume", "short"]) == 0
    assert main(["plan", "frozenlake-q-learning"]) == 0


@pytest.mark.parametrize(
    ("recipe", "overrides", "steps"),
    [
        ("frozenlake-q-learning", SHORT, 6),
        ("frozenlake-q-learning", {**SHORT, "algorithm": {"name": "dyna_q"}}, 6),
        ("frozenlake-q-learning", {**SHORT, "algorithm": {"name": "differential_sarsa"}}, 6),
        ("bandit-ucb", FEW, 20),
        ("bandit-ucb", {**FEW, "algorithm": {"name": "gradient"}}, 20),
    ],
    ids=["q_learning", "dyna_q", "differential_sarsa", "ucb", "gradient"],
)
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    recipe: str, overrides: dict[str, Any], steps: int
) -> None:
    train(recipe, name="whole", **overrides)
    asked = iter([False] * 3 + [True] * 100)
    begun = new_run(load_recipe(recipe, values={**overrides, "name": "cut"}), named=recipe, explicit=True)
    assert carry_out(begun, stop_requested=lambda: next(asked))["status"] == "stopped"
    summary = carry_out(load_run(Path("runs/cut")), resume=True)
    assert (summary["status"], summary["learner_steps"]) == ("completed", steps)
    for name in ("learner", "weights"):
        assert checkpoint_of("cut", name) == checkpoint_of("whole", name)
    clocks = {"elapsed_s": 0, "update_s": 0}
    cut, whole = ([r | clocks for r in read_jsonl(Path("runs") / n / "metrics.jsonl")] for n in ("cut", "whole"))
    assert cut == whole


def test_the_policy_acts_from_python_as_its_table_says() -> None:
    train("frozenlake-q-learning", name="short", **SHORT)
    policy = load_policy("runs/short")
    values = policy._policy._values  # type: ignore[attr-defined]
    assert [int(policy.act(np.array(state))) for state in range(16)] == values.argmax(1).tolist()
    allowed = np.array([False, False, True, False])
    assert policy.act(np.array(0), action_mask=allowed) == 2


def test_what_is_proposed_after_a_run_is_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    few = [f"{key}={value}" for key, value in FEW.items()]
    assert main(["train", "bandit-ucb", "name=arms", *few]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: rollcall report arms"
    short = [f"{key}={value}" for key, value in SHORT.items()]
    assert main(["train", "frozenlake-q-learning", "name=table", *short]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: rollcall eval table · rollcall report table"


def test_a_bandits_regret_is_in_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    summary = train("bandit-ucb", name="short", **FEW)
    records = read_jsonl(Path("runs/short/metrics.jsonl"))
    assert summary["regret"] == records[-1]["regret"] > 0
    assert summary["regret_per_pull"] == pytest.approx(summary["regret"] / 20)
    assert main(["eval", "short"]) == 2
    assert "is judged while it learns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frozenlake-q-learning", "env=CartPole-v1"], "has Box observations: a table needs Discrete ones"),
        (["frozenlake-q-learning", "env=Taxi-v3"], "did you mean Taxi-v4"),
        (["frozenlake-q-learning", "algorithm.epsilon=2"], "algorithm.epsilon = 2 (command line)"),
        (["frozenlake-q-learning", "algorithm.lambda=0.5"], "unknown key"),
        (["frozenlake-q-learning", "learner.learning_rate=1"], "learner = "),
        (["frozenlake-q-learning", "env.reward_clip=1"], "learns from the env as it is"),
        (["frozenlake-q-learning", "total_learner_steps=5", "total_episodes=5"], "and not both"),
        (["bandit-ucb", "algorithm=sarsa"], "unknown bandit method; shipped are"),
        (["bandit-ucb", "bandit.arms=1"], "bandit.arms = 1 (command line)"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["train", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_commands_for_books_and_other_settings_refuse_such_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    train("frozenlake-q-learning", name="short", **SHORT)
    for command, words in (
        (["audit", "short"], "a run on a table: it has no actors"),
        (["prune", "short"], "a run on a table: it has no actors"),
        (["resume", "short", "total_episodes=100"], "goes on with the settings it began with"),
        (["export", "short"], "its policy is a table"),
        (["eval", "short", "--stochastic"], "judged by its greedy policy"),
        (["train", "frozenlake-a2c", "policy.init_from=runs/short"], "its policy is a table"),
    ):
        assert main(command) == 2
        assert words in capsys.readouterr().err
