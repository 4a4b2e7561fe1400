"""Runs of an earlier release load in this one. tests/runs_of_earlier_releases/ holds what release 0.1.0 wrote (stopped
after two of its steps), kept as it is: a later release must read it, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.checkpoint import latest_checkpoint
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.cli import main
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig
from rollcall.deploy.config.recipe.preference_settings import PreferencesConfig
from rollcall.deploy.kinds.kind import EvalOptions
from rollcall.deploy.kinds.loading import evaluate, export_policy, load, load_policy
from rollcall.deploy.kinds.recipes import load_run
from rollcall.deploy.rundir import earlier_runs
from rollcall.deploy.rundir.earlier_runs import read_run, run_hash
from rollcall.deploy.rundir.resubmission import find_to_go_on_with
from rollcall.reward_service.raters.true_rewards import upright_and_centred
from tests import EARLIER
from tests.needs import require
from tests.runs import config_of


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the runs, at runs/control and runs/language of the working directory."""
    shutil.copytree(EARLIER, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize("half", ["control", "language"])
def test_the_hash_is_of_what_was_written_whatever_settings_there_are_now(half: str) -> None:
    run = EARLIER / half
    config_hash = load_run(run).config_hash
    assert load_run(run).config.config_hash != config_hash  # this release has settings that the run's had not
    assert config_hash == latest_checkpoint(run)[1].config_hash
    assert config_hash == json.loads((run / "run.json").read_text())["config_hash"]


@pytest.mark.usefixtures("earlier")
def test_an_audit_of_a_run_with_rollouts_imports_no_torch() -> None:
    code = (
        "import sys; from rollcall.deploy.cli import main;"
        "assert main.main(['audit', 'control']) == 0; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_earlier_control_run_is_evaluated_loaded_and_audited(earlier: Path) -> None:
    result = evaluate("control", EvalOptions())[1]
    assert result["returns"] == [9.0, 10.0]  # as that release gave
    policy = load_policy("control")
    assert policy.version == 2
    assert policy.act(np.zeros(4, np.float32)) in (0, 1)
    assert audit_run(earlier / "control") == []


def test_an_earlier_run_goes_on_to_its_end_under_the_settings_it_was_written_with(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (earlier / "control" / "config.yaml").read_text()
    assert main.main(["resume", "control"]) == 0
    assert (earlier / "control" / "config.yaml").read_text() == before
    assert not (earlier / "control" / "segments.json").exists()
    summary = json.loads((earlier / "control" / "summary.json").read_text())
    assert (summary["status"], summary["learner_steps"]) == ("completed", 4)
    assert summary["config_hash"] == run_hash(earlier / "control")
    assert main.main(["audit", "control"]) == 0
    assert main.main(["eval", "control"]) == 0
    assert "step-00000004" in capsys.readouterr().out


def test_a_command_that_is_submitted_again_under_a_new_release_goes_on_with_its_run(earlier: Path) -> None:
    def found(overrides: list[str]) -> Path | None:
        again = config_of(read_run(earlier / "control")[0], overrides)
        return find_to_go_on_with(again, explicit=True, wanted=True, read=lambda path: load_run(path).config)

    assert load_run(earlier / "control").config.name == "control"
    assert found([]) == Path("runs/control")
    assert found(["metrics.port=9999"]) == Path("runs/control")
    with pytest.raises(BadInput, match=r"other settings \(seed was 0, is 3\).*rollcall resume"):
        found(["seed=3"])


def with_settings(run: Path, *lines: tuple[str, str]) -> None:
    """As a release would have written them that had these settings."""
    path = run / "config.yaml"
    text = path.read_text()
    for old, new in lines:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    manifest_path = latest_checkpoint(run)[0] / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest_path.write_text(json.dumps(manifest | {"config_hash": run_hash(run)}))


def test_a_setting_of_a_later_release_is_named_with_the_version_that_has_it(earlier: Path) -> None:
    with_settings(earlier / "control", ("  squash: clip\n", "  squash: clip\n  shine: 3\n"))
    with pytest.raises(BadInput) as caught:
        load("control")
    line = str(caught.value)
    assert "\n" not in line
    assert "policy.shine = 3 (runs/control/config.yaml:" in line
    assert "this version does not know this setting" in line and "rollcall-rl 0.1.0" in line


def test_settings_that_were_renamed_removed_or_added_are_read_as_the_run_had_them(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = earlier / "control"
    with_settings(run, ("  squash: clip\n", "  crush: tanh\n"), ("  log_std_init: 0.0\n", ""))
    monkeypatch.setattr(earlier_runs, "RENAMED", {("policy", "crush"): ("policy", "squash")})
    monkeypatch.setattr(earlier_runs, "BEFORE", {("policy", "log_std_init"): -1.0, ("preferences", "none"): 3})
    loaded: Any = load("control")
    assert (loaded.config.policy.squash, loaded.config.policy.log_std_init) == ("tanh", -1.0)
    monkeypatch.setattr(earlier_runs, "REMOVED", {("policy", "crush"): "train it anew"})
    with pytest.raises(
        BadInput, match=r"policy\.crush \(.*config\.yaml:\d+\): this version has no such setting: train"
    ):
        load("control")


def test_a_reward_model_of_an_earlier_release_goes_on_as_it_began(tmp_path: Path) -> None:
    text = config_of("hh-reward", ["data.train=hh.jsonl"]).to_yaml()
    lines = [
        line for line in text.splitlines() if not line.strip().startswith(("keep: auto", "patience:", "weight_decay:"))
    ]
    assert len(lines) == len(text.splitlines()) - 3
    (tmp_path / "config.yaml").write_text("\n".join(lines) + "\n")
    config = config_of(read_run(tmp_path)[0])
    assert isinstance(config, RewardTrainConfig)
    assert (config.keep, config.patience, config.learner.optimizer.weight_decay) == ("last", None, 0.0)


@pytest.mark.parametrize("module", ["rollcall.reward_service.tastes", "rollcall.reward_service.raters.tastes"])
def test_a_run_from_preferences_of_an_earlier_release_knows_its_true_reward(tmp_path: Path, module: str) -> None:
    text = config_of("cartpole-preferences").to_yaml()
    now = "true_reward: rollcall.reward_service.raters.true_rewards:"
    assert now in text
    (tmp_path / "config.yaml").write_text(text.replace(now, f"taste: {module}:"))
    config = config_of(read_run(tmp_path)[0])
    assert config.preferences is not None and isinstance(config.preferences, PreferencesConfig)
    assert config.preferences.true_reward is not None
    assert import_object(config.preferences.true_reward) is upright_and_centred


@pytest.mark.parametrize(
    ("name", "of_class", "room"),
    [
        ("bc", "BC", "imitation"),
        ("dagger", "DAgger", "imitation"),
        ("dqn", "DQN", "off_policy"),
        ("iql", "IQL", "off_policy"),
        ("sac", "SAC", "off_policy"),
        ("td3", "TD3", "off_policy"),
    ],
)
def test_a_run_that_names_an_algorithm_by_its_place_in_an_earlier_release_finds_it(
    name: str, of_class: str, room: str
) -> None:
    control = "rollcall.learners.algorithms.control"
    found = import_object(f"{control}.{name}:{of_class}")
    assert (found.__module__, found.__name__) == (f"{control}.{room}.{name}", of_class)


def test_a_config_that_somebody_edited_is_refused(earlier: Path) -> None:
    path = earlier / "control" / "config.yaml"
    path.write_text(path.read_text().replace("squash: clip", "squash: tanh"))
    with pytest.raises(CheckpointDamaged, match="put back the file that the run wrote"):
        load("control")


def test_an_earlier_language_run_loads_with_all_its_settings(earlier: Path) -> None:
    require("vllm")
    loaded: Any = load("language")
    assert loaded.config.learner.optimizer.eps == 1e-5  # whatever the default is now
    assert loaded.weights.version == 2
    assert audit_run(earlier / "language") == []
    exported: Any = export_policy("language", earlier / "exported")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in exported.iterdir()}
