"""The command line inside a Ray job, as far as its environment goes: where runs are kept, what they are called, and
that the same command goes on with what it began. Against a real cluster: tests/end_to_end/test_jobs.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.rundir import jobs
from rollcall.deploy.rundir.directories import claim_directory

RECIPE = """\
name: small
total_learner_steps: 3
runtime: serial
env: CartPole-v1
algorithm: {name: ppo, epochs: 1}
actors: {num_envs: 2, unroll_length: 16}
eval: {episodes: 0}
metrics: {enabled: false}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, in a job that names its run; runs are kept beside it."""
    found = {"metadata": {"job_submission_id": "raysubmit_1", "rollcall_run": "mine"}, "runtime_env": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(found))
    monkeypatch.setenv(jobs.RUNS_VARIABLE, str(tmp_path / "kept"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "small.yaml").write_text(RECIPE)
    return tmp_path / "kept"


def test_the_same_command_goes_on_and_other_settings_are_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "small.yaml"]
    assert main.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"run directory: {job / 'mine'}\n") and "Ray job: raysubmit_1, run mine" in said
    origin = json.loads((job / "mine" / "run.json").read_text())
    assert origin["ray_job"] == "raysubmit_1"
    assert main.main(command) == 0
    assert "nothing to go on with" in capsys.readouterr().out

    # As a driver leaves it that was killed after its first checkpoint, then before it.
    (job / "mine" / "summary.json").unlink()
    for later in list_checkpoints(job / "mine")[1:]:
        shutil.rmtree(later)
    assert main.main(command) == 0
    assert "going on with the run from step-00000001" in capsys.readouterr().out
    (job / "mine" / "summary.json").unlink()
    shutil.rmtree(job / "mine" / "checkpoints")
    assert main.main([*command, "redis.start_timeout_s=9", "cluster.placement=SPREAD"]) == 0
    assert "no checkpoint yet: it begins again" in capsys.readouterr().out
    assert main.main(["audit", "mine"]) == 0
    assert len((job / "mine" / "metrics.jsonl").read_text().splitlines()) == 3

    assert main.main([*command, "seed=5"]) == 2
    assert "begun with other settings" in capsys.readouterr().err
    assert main.main([*command, "name=other"]) == 2
    assert "rollcall_run=mine" in capsys.readouterr().err
    assert [path.name for path in job.iterdir()] == ["mine"]


def test_outside_a_job_going_on_has_to_be_asked_for(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    (job / "mine").mkdir(parents=True)  # of a driver that was killed at once
    assert main.main(["train", "small.yaml", "name=mine", "--resume"]) == 0
    assert main.main(["train", "small.yaml", "name=mine"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main.main(["train", "small.yaml", "--resume"]) == 2
    assert "name=..." in capsys.readouterr().err
    assert main.main(["train", "small.yaml", "name=mine", "--resume"]) == 0
    assert "nothing to go on with" in capsys.readouterr().out


def test_a_run_is_not_written_into_what_ray_deletes(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(jobs.RUNS_VARIABLE)
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(BadInput, match=r"a copy that Ray deletes.*ROLLCALL_RUNS"):
        claim_directory("mine", explicit=True)
    assert list(copy.iterdir()) == []


def test_a_run_directory_is_shut_to_others_whatever_the_umask(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have whatever mode the umask gives: the folder guards them all, until its owner opens it."""
    monkeypatch.setenv(jobs.RUNS_VARIABLE, str(job.parent / "new"))
    before = os.umask(0)
    try:
        made = claim_directory("mine", explicit=True)
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o700
    assert made.parent.stat().st_mode & 0o002 == 0, "nobody else can move it away"


def test_a_place_that_cannot_be_written_to_is_named(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in ("/proc/runs", "/nowhere/runs"):
        monkeypatch.setenv(jobs.RUNS_VARIABLE, root)
        with pytest.raises(BadInput, match=rf"cannot make {root}/mine: "):
            claim_directory("mine", explicit=True)


def test_a_stop_in_a_job_waits_no_longer_than_ray_does(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    assert jobs.stop_patience_s() == 1.5
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
    assert jobs.stop_patience_s() == 30
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert jobs.stop_patience_s() == float("inf")


def test_what_was_typed_is_kept_without_the_password_in_it(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/rollcall", "train", "x", "redis.url=redis://me:s3cret@10.0.0.1:6379/0"])
    assert main.main(["train", "small.yaml"]) == 0
    text = (job / "mine" / "run.json").read_text()
    assert "redis://me:***@10.0.0.1:6379/0" in text and "s3cret" not in text
