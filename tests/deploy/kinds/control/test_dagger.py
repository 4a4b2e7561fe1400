"""Runs that are taught: by a function, or by another run's policy. The same bits however they are run, books that
balance, and experts that cannot be had, or fail, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.deploy.cli import main
from rollcall.deploy.report.run_lines import read_jsonl
from tests.runs import TWO_STEPS

TAUGHT = """\
total_env_steps: 1600
runtime: serial
env: CartPole-v1
algorithm: {name: dagger, expert: "tests.experts:balances"}
replay: {capacity: 4000, batch_size: 64, updates_per_env_step: 0.5, learning_starts: 0}
actors: {num_envs: 4, num_shards: 2, unroll_length: 50}
policy: {hidden_sizes: [32]}
learner: {learning_rate: 3.0e-3, compile: "off"}
max_policy_lag: 0
checkpoint: {every_steps: 2, keep: 10}
eval: {episodes: 10}
metrics: {enabled: false}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with runs/taught, by a function, and runs/source, a small PPO run."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "small.yaml").write_text(TWO_STEPS)
    (folder / "taught.yaml").write_text(TAUGHT)
    with chdir(folder):
        assert main.main(["train", "taught.yaml", "name=taught"]) == 0
        assert main.main(["train", "small.yaml", "name=source"]) == 0
        yield folder


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path("runs") / name / "summary.json").read_text())
    return found


def test_a_learner_does_as_well_as_the_function_that_teaches_it(work: Path) -> None:
    found = summary("taught")
    assert (found["status"], found["env_steps"]) == ("completed", 1600)
    assert found["final_eval"]["mean"] > 400
    records = read_jsonl(Path("runs/taught/metrics.jsonl"))
    assert records[-1]["agreement"] > max(0.9, records[0]["agreement"])
    assert sum(record["gradient_steps"] for record in records) == 800
    assert audit_run(Path("runs/taught")) == []


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(work: Path) -> None:
    from rollcall.deploy.drive.lifecycle import carry_out
    from rollcall.deploy.kinds.beginning import new_run
    from rollcall.deploy.kinds.recipes import load_recipe

    run = new_run(load_recipe("taught.yaml", ["name=halves"]), named="halves", explicit=True)
    stopped = carry_out(run, stop_requested=lambda: len(list_checkpoints(run.directory)) > 1)
    assert stopped["status"] == "stopped" and 0 < stopped["learner_steps"] < 8
    assert main.main(["resume", "halves"]) == 0
    assert summary("halves")["weights_hash"] == summary("taught")["weights_hash"]
    assert audit_run(Path("runs/halves")) == []


def test_another_runs_policy_teaches_and_is_not_needed_after_the_beginning(work: Path, tmp_path: Path) -> None:
    settings = ["algorithm.expert=taught", "total_env_steps=400", "name=pupil"]
    assert main.main(["train", "taught.yaml", *settings]) == 0
    shutil.move("runs/taught", tmp_path / "away")
    try:
        assert main.main(["resume", "pupil", "total_env_steps=1600"]) == 0
    finally:
        shutil.move(tmp_path / "away", "runs/taught")
    assert summary("pupil")["final_eval"]["mean"] > 350
    assert audit_run(Path("runs/pupil")) == []


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["algorithm.expert=sauce"], "algorithm.expert = 'sauce': no run 'sauce' (command line); did you mean source?"),
        (["algorithm.expert=tests.experts:swims"], "tests.experts"),
        (["algorithm.expert=nowhere:it"], "there is no module 'nowhere'"),
        (["algorithm.expert=source", "env=Acrobot-v1"], "algorithm.expert = 'source': it sees Box"),
        (["algorithm.loss=mse"], "dagger has no distance between discrete actions: use nll"),
        (["policy.recurrent=gru"], "use none"),
        (["actors.outside={num_shards: 1}"], "dagger's expert labels what the run's own actors see: leave it out"),
    ],
)
def test_an_expert_that_cannot_teach_is_refused_in_one_line_and_no_run_is_left(
    work: Path, overrides: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path("runs").iterdir())
    assert main.main(["train", "taught.yaml", "name=refused", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert sorted(Path("runs").iterdir()) == before


def test_an_expert_that_fails_ends_the_run_in_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "taught.yaml", "name=broken", "algorithm.expert=tests.experts:fails"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "expert tests.experts:fails: KeyError: 'no label for this' (" in line and "experts.py, line" in line
    assert audit_run(Path("runs/broken")) == []
