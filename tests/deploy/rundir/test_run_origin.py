"""Where a run came from: the state of the user's project, and which settings somebody chose."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.recipes import Recipe, load_recipe
from rollcall.deploy.report.page import write_report
from rollcall.deploy.rundir import project
from rollcall.deploy.rundir.project import project_here


def git(directory: Path, *arguments: str) -> str:
    who = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")
    command = ["git", *who, "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    directory = tmp_path / "robots"
    directory.mkdir()
    git(directory, "init", "-q")
    (directory / "env.py").write_text("one\n")
    git(directory, "add", "env.py")
    git(directory, "commit", "-qm", "first")
    return directory


def test_a_run_knows_the_commit_of_the_project_and_whether_it_was_changed_since(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "runs").mkdir()
    assert project_here(checkout / "runs") == {"name": "robots", "commit": commit, "changed": False}
    (checkout / "notes.txt").write_text("of no meaning: Git does not know it")
    assert project_here(checkout) == {"name": "robots", "commit": commit, "changed": False}
    (checkout / "env.py").write_text("two\n")
    assert project_here(checkout) == {"name": "robots", "commit": commit, "changed": True}


def test_without_a_checkout_a_commit_or_git_there_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert project_here(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert project_here(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert project_here(tmp_path) is None


def test_a_checkout_that_is_slow_to_look_through_leaves_open_whether_it_was_changed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = checkout.parent / "bin" / "git"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ncase "$*" in *status*) exec sleep 30;; *top*) echo /a/robots;; *) echo abc;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(project, "_PATIENCE_S", 0.5)
    assert project_here(checkout) == {"name": "robots", "commit": "abc", "changed": None}


def test_what_is_written_over_a_recipe_is_known_beside_what_the_recipe_had() -> None:
    found = load_recipe("cartpole-ppo", ["seed=7", "algorithm.epochs=3", "algorithm.discount=0.98", "name=mine"])
    assert found.over == {"algorithm.epochs": (10, 3), "seed": (None, 7)}  # the discount is as the recipe has it
    assert load_recipe("cartpole-ppo").over == {}


def test_a_total_that_takes_the_place_of_the_recipes_is_a_change_of_both() -> None:
    over = load_recipe("cartpole-ppo", ["total_learner_steps=5"]).over
    assert over == {"total_env_steps": (150_000, None), "total_learner_steps": (None, 5)}


def test_settings_of_a_program_alone_are_no_change_of_any_recipe() -> None:
    settings = {"name": "mine", "env": "CartPole-v1", "algorithm": "ppo", "total_env_steps": 1000, "seed": 3}
    found = recipe_of_program(settings)
    assert found.over == {}
    assert found.chosen == {"seed": 3, "env.id": "CartPole-v1", "total_env_steps": 1000}


def recipe_of_program(settings: dict[str, object]) -> Recipe:
    from rollcall.deploy.config.settings import CALLER, Settings

    return load_recipe(Settings(source=CALLER), values=settings)


def test_what_somebody_wrote_and_is_no_default_is_chosen() -> None:
    chosen = load_recipe("cartpole-ppo", ["algorithm.clip_range=0.2", "algorithm.entropy_coef=0.01"]).chosen
    assert chosen["algorithm.entropy_coef"] == 0.01
    assert chosen["algorithm.discount"] == 0.98
    assert "algorithm.clip_range" not in chosen, "which is the default"
    assert "learner.compile" not in chosen, "which nobody wrote"


def test_run_json_has_both_and_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    service = "reward.url=http://me:geheim@127.0.0.1:9"
    overrides = ["redis.url=redis://:geheim@127.0.0.1:6379/0", "algorithm.epochs=3", service]
    run = new_run(load_recipe("cartpole-ppo", overrides), named="cartpole-ppo", explicit=False)
    text = (run.directory / "run.json").read_text()
    assert "geheim" not in text
    written = json.loads(text)["written"]
    assert written["over"]["algorithm.epochs"] == [10, 3]
    assert written["chosen"]["algorithm.epochs"] == 3
    assert written["chosen"]["reward.url"] == "http://me:***@127.0.0.1:9"


def test_a_page_that_is_passed_on_has_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    service = "reward.url=http://me:geheim@127.0.0.1:9"
    run = new_run(load_recipe("cartpole-ppo", [service]), named="cartpole-ppo", explicit=False)
    page = write_report(run.directory).read_text()
    assert "geheim" not in page and "http://me:***@127.0.0.1:9" in page
