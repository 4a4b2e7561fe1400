"""A command that is submitted again, elsewhere: what was decided when its run began stays decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.recipes import load_recipe, load_run
from rollcall.deploy.rundir.resubmission import as_begun, find_to_go_on_with


def test_a_run_begun_in_a_job_goes_on_outside_of_it_in_the_runtime_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("total_env_steps=1000", "actors.num_envs=2", "actors.num_shards=2", "name=mine")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    in_a_job = load_recipe("cartpole-ppo", short)
    run = new_run(in_a_job, named="cartpole-ppo", explicit=True)
    monkeypatch.delenv("RAY_ADDRESS")
    outside = load_recipe("cartpole-ppo", short)
    on_with = as_begun(outside.config, run.config, chosen=outside.chosen)
    runtimes = [getattr(config, "runtime", None) for config in (in_a_job.config, outside.config, on_with)]
    assert runtimes == ["ray", "serial", "ray"]

    def found(*more: str) -> Path | None:
        again = load_recipe("cartpole-ppo", [*short, *more])
        return find_to_go_on_with(
            again.config,
            explicit=True,
            wanted=True,
            read=lambda path: load_run(path).config,
            chosen=again.chosen,
        )

    assert found() == Path("runs/mine")
    with pytest.raises(BadInput, match=r"other settings \(runtime was 'ray', is 'serial'\)"):
        found("runtime=serial")


def test_a_command_that_goes_on_keeps_the_runtime_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    short = ("total_env_steps=256", "actors.unroll_length=32", "eval.episodes=1", "name=mine")
    new_run(load_recipe("cartpole-ppo", short), named="cartpole-ppo", explicit=True)  # and killed before its first step
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main.main(["train", "cartpole-ppo", *short, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "the run has no checkpoint yet: it begins again" in told and "completed in" in told
