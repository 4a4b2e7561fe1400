"""What people look for on the command line: help, completion in a real shell, other frameworks' names of settings, what
a setting means, a dry run, and answers for programs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rollcall.deploy.cli import main
from rollcall.deploy.cli.completion import completions
from rollcall.deploy.cli.main import build_parser
from rollcall.deploy.config.catalogue import other_names
from rollcall.deploy.config.catalogue.explaining import _of_all, explanations
from rollcall.deploy.config.catalogue.explanation import type_text
from rollcall.deploy.config.catalogue.other_names import called_here, settings_called
from tests.runs import TWO_STEPS


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLCALL_RUNS", raising=False)
    (tmp_path / "small.yaml").write_text(TWO_STEPS)
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


# Help and completion.


def test_help_of_a_command_is_what_its_own_option_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["help", "bench", "gym"]) == 0
    helped = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.main(["bench", "gym", "--help"])
    assert helped == capsys.readouterr().out and "usage: rollcall bench gym" in helped
    assert main.main(["help"]) == 0
    assert "exit codes:" in capsys.readouterr().out
    assert main.main(["help", "bench", "nosuch"]) == 2
    assert "no command 'bench nosuch' (command line); there are gym, " in error_of(capsys)
    assert main.main(["help", "audit", "more"]) == 2
    assert "audit has no commands below it" in error_of(capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["re"], ["recipes", "report", "resume", "reward"]),
        (["reward", "s"], ["serve"]),
        (["train", "cartpole-pp"], ["cartpole-ppo", "cartpole-ppo-kl"]),
        (["train", "--d"], ["--dry-run"]),
        (["resume", ""], ["one", "two"]),
        (["compare", "one", "t"], ["two"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["nosuch", ""], []),
    ],
)
def test_a_shell_is_told_what_may_come_next(words: list[str], expected: list[str], work: Path) -> None:
    for name in ("one", "two"):
        (work / "runs" / name).mkdir(parents=True)
        (work / "runs" / name / "config.yaml").write_text("")
    asked = words[1:] if words[0] == "help" else words
    assert [
        word for word in completions(build_parser(), asked) if word in expected or words != ["resume", ""]
    ] == expected


def test_bash_completes_with_the_printed_script(work: Path) -> None:
    (work / "runs" / "my-run").mkdir(parents=True)
    (work / "runs" / "my-run" / "config.yaml").write_text("")
    (work / "bin").mkdir()
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rollcall.deploy.cli "$@"\n'
    (work / "bin" / "rollcall").write_text(script)
    (work / "bin" / "rollcall").chmod(0o755)
    code = (
        "source <(rollcall completion bash); "
        "for line in 'rollcall aud' 'rollcall eval my'; do "
        "COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _rollcall; "
        'echo "${COMPREPLY[@]}"; done'
    )
    environment = os.environ | {"PATH": f"{work / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["audit", "my-run"], done.stderr


def test_a_shell_gets_its_answer_without_anything_heavy() -> None:
    code = (
        "import sys, time; from rollcall.deploy.cli import main; main.main(['__complete', 'train', 'cart']); "
        "heavy = {'torch', 'ray', 'gymnasium', 'pydantic', 'numpy'} & set(sys.modules); assert not heavy, heavy; "
        "assert time.process_time() < 0.5, time.process_time()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cartpole-ppo" in done.stdout.splitlines()


# Other names.


@pytest.mark.parametrize(
    ("recipe", "typed", "setting"),
    [
        ("cartpole-ppo", "lr=1e-3", "learner.learning_rate"),
        ("cartpole-ppo", "gamma=0.9", "algorithm.discount"),
        ("cartpole-ppo", "n_envs=8", "actors.num_envs"),
        ("cartpole-ppo", "total_timesteps=8", "total_env_steps"),
        ("cartpole-ppo", "n_steps=8", "actors.unroll_length"),
        ("cartpole-ppo", "algorithm.ent_coef=0.1", "algorithm.entropy_coef"),
        ("cartpole-ppo", "algorithm.clip_coef=0.1", "algorithm.clip_range"),
        ("cartpole-ppo", "batch_size=64", "algorithm.num_minibatches (a batch of actors.num_envs"),
        ("cartpole-dqn", "buffer_size=64", "replay.capacity"),
        ("cartpole-dqn", "algorithm.tau=1", "algorithm.target_rate"),
        ("arithmetic-grpo", "num_generations=4", "actors.samples_per_prompt"),
        ("arithmetic-grpo", "beta=0.1", "algorithm.kl_coef"),
        ("arithmetic-grpo", "batch_size=4", "actors.prompts_per_batch (prompts, each with"),
        ("arithmetic-grpo", "max_completion_length=4", "actors.sampling.max_tokens"),
        ("arithmetic-grpo", "total_timesteps=4", "total_learner_steps (batches, not env steps)"),
        ("synthetic-dpo", "lr=4", "learner.learning_rate"),
    ],
)
def test_what_others_call_a_setting_is_answered_with_its_name_here(
    recipe: str, typed: str, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["config", recipe, typed]) == 2
    assert f"unknown key; Rollcall calls it {setting}" in error_of(capsys)


def test_what_is_no_setting_here_is_answered_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", "cartpole-ppo", "output_dir=x"]) == 2
    assert "in $ROLLCALL_RUNS; name=..." in error_of(capsys)
    assert called_here("nosuch", {"seed"}) == "" and called_here("LR", {"learner.learning_rate"}).endswith("rate")


def test_a_recipe_file_is_answered_too(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "mine.yaml").write_text(TWO_STEPS.replace("learning_rate", "lr"))
    assert main.main(["config", "mine.yaml"]) == 2
    assert "learner.lr = 0.001 (mine.yaml:7): unknown key; Rollcall calls it learner.learning_rate" in error_of(capsys)


def test_every_name_from_elsewhere_leads_to_a_setting_that_there_is() -> None:
    known = {".".join(path) for path, _ in _of_all()} | {"recorders"}
    named = {setting for settings in other_names._OTHER_NAMES.values() for setting in settings}
    assert sorted(named - known) == []
    assert settings_called("n-envs") == ("actors.num_envs",)


# What a setting means.


def test_a_setting_is_explained_with_where_the_recipe_has_it_from(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["config", "cartpole-ppo", "actors.num=2", "--explain", "actors.num", "--explain", "learner.threads"]
    assert main.main([*command, "--json"]) == 0
    num, threads = json.loads(capsys.readouterr().out)
    assert (num["value"], num["origin"]) == ("2", "command line") and "n_workers" in num["elsewhere"]
    assert (threads["origin"] == "default" and threads["type"] == "whole number or null") or threads["value"] == "1"
    assert main.main(["config", "cartpole-ppo", "--explain", "total_env_steps"]) == 0
    text = capsys.readouterr().out
    assert "here: 150000 (cartpole-ppo.yaml:" in text and "type: whole number or null, at least 1" in text


def test_a_setting_is_found_by_its_last_word_its_section_and_its_other_names() -> None:
    assert {one.setting for one in explanations("gamma")} == {"algorithm.discount"}
    assert {one.setting for one in explanations("unroll_length", "cartpole-ppo")} == {"actors.unroll_length"}
    inside = {one.setting for one in explanations("checkpoint", "cartpole-ppo")}
    assert inside == {"checkpoint.every_steps", "checkpoint.keep"}
    of = {one.of for one in explanations("algorithm.clip_range")}
    assert any("algorithm=ppo" in text for text in of)


def test_a_setting_that_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", "--explain", "actors.nun_envs"]) == 2
    assert "there is no such setting; did you mean actors.num_envs?" in error_of(capsys)
    assert main.main(["config"]) == 2
    assert "config needs a RECIPE, --explain KEY or --schema" in error_of(capsys)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "whole number or null"),
        (tuple[int, ...], "list of whole number"),
        (dict[str, Any], "section"),
        (float, "number"),
    ],
)
def test_types_are_said_in_plain_words(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


# A dry run, and answers for programs.


def test_a_dry_run_checks_what_the_run_would_and_leaves_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(work.iterdir())
    assert main.main(["train", "small.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "model: " in out and "plan: " in out and out.endswith("the run begins in runs/small\n")
    Path("runs/small").mkdir(parents=True)
    assert main.main(["train", "small.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("the run begins in runs/small-2\n")
    Path("runs/small").rmdir()
    Path("runs").rmdir()
    assert main.main(["train", "small.yaml", "env=NoSuch-v1", "--dry-run"]) == 2
    assert "NoSuch" in error_of(capsys)
    assert main.main(["train", "small.yaml", "policy.init_from=runs/gone", "--dry-run"]) == 2
    assert "policy.init_from = 'runs/gone': no run" in error_of(capsys)
    assert sorted(work.iterdir()) == before


def test_a_dry_run_reads_the_data_and_the_models_config(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "arithmetic-grpo", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and any(line.endswith(" rows to train on, 500 held out") for line in found["looked_at"])
    Path("sums.jsonl").write_text("{not json\n")
    recipe = ["train", "arithmetic-grpo", "task=jsonl", "task.path=sums.jsonl", "--dry-run"]
    assert main.main(recipe) == 2
    assert "sums.jsonl:1" in error_of(capsys)
    assert main.main(["train", "arithmetic-grpo", "policy.model=models/gone", "--dry-run"]) == 2
    assert "models/gone" in capsys.readouterr().err


def test_a_dry_run_on_preferences_reads_them(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "synthetic-dpo", "--dry-run", "--json"]) == 0
    (data,) = (line for line in json.loads(capsys.readouterr().out)["looked_at"] if line.startswith("data: read"))
    assert "learner steps" in data


def test_a_run_answers_programs_with_its_summary_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "small.yaml", "name=asked", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["status"] == "completed" and summary["run_directory"] == "runs/asked"
    assert summary["learner_steps"] == 2
    assert main.main(["audit", "asked", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["balanced"] is True
    assert main.main(["resume", "asked", "total_learner_steps=3", "-q"]) == 0
    assert capsys.readouterr().out == "run directory: runs/asked\ntotal_learner_steps: 2 -> 3\n"


def test_recipes_and_configs_answer_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cartpole-ppo"]
    assert main.main(["config", "cartpole-ppo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["total_env_steps"] == 150_000 and found["derived"] and len(found["config_hash"]) == 64
