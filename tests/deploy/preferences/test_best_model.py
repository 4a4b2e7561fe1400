"""Which reward model is kept: the best on what is held out, where enough is held out to tell, and the same one whether
or not the run was interrupted."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig
from rollcall.deploy.config.settings import Settings
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.kind import EvalOptions, StoredRun
from rollcall.deploy.kinds.loading import evaluate
from rollcall.deploy.kinds.preferences.reward_model import ENOUGH_HELD_OUT, REWARD_MODEL, RewardModelRun
from rollcall.deploy.kinds.recipes import Recipe, load_config
from rollcall.deploy.preferences.best_model import BestModel
from rollcall.reward_service.preferences.files import SegmentPair, write_preferences
from rollcall.reward_service.protocol import ArrayField, Segment

NOISY = 0.35  # of the labels are wrong: what is learnt of them by heart is wrong on others


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_pairs(path: Path, count: int, *, seed: int) -> None:
    """Of two steps each, seen as six numbers of which the first tells which is better; a third of the labels lie."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        seen = generator.normal(size=(2, 2, 6)).astype(np.float32)
        actions = ArrayField.of(np.zeros((2, 1), np.float32))
        left, right = (Segment(observations=ArrayField.of(each), actions=actions) for each in seen)
        better = bool(seen[0, :, 0].sum() > seen[1, :, 0].sum()) != bool(generator.random() < NOISY)
        made.append(SegmentPair((left, right), "left" if better else "right"))
    write_preferences(path, made)


def config_of(name: str, *, pairs: int = 240, held_out: int = 200, **settings: Any) -> RewardTrainConfig:
    write_pairs(Path("train.jsonl"), pairs, seed=1)
    write_pairs(Path("eval.jsonl"), held_out, seed=2)
    tree = {
        "name": name,
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "model": {"kind": "segment", "members": 1, "bootstrap": False, "hidden_sizes": [64]},
        "batch_size": 60,
        "epochs": 50,
        "learner": {"learning_rate": 3e-3},
        **settings,
    }
    config = load_config(Settings(tree=tree, origins={}, source="test"))
    assert isinstance(config, RewardTrainConfig)
    return config


def begun(config: RewardTrainConfig) -> StoredRun:
    return new_run(Recipe(REWARD_MODEL, config), named="test", explicit=True)


def evaluations(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "evals.jsonl").read_text().splitlines()]


def test_the_model_that_is_kept_is_the_best_on_held_out_pairs_and_training_ends_when_none_is_better() -> None:
    config = config_of("r", patience=3)
    run = begun(config)
    directory, summary = run.directory, carry_out(run)
    found = evaluations(directory)
    trained = found[1:]  # the first is of a model that has learnt nothing
    best = min(trained, key=lambda record: record["eval_loss"])
    assert summary["kept"] == {"which": "best", "step": best["step"]}
    assert summary["held_out"]["loss"] == pytest.approx(best["eval_loss"])
    assert summary["held_out_last"]["loss"] == pytest.approx(found[-1]["eval_loss"])
    assert summary["held_out"]["loss"] < summary["held_out_last"]["loss"]
    assert summary["status"] == "completed" and summary["learner_steps"] == found[-1]["step"] < 200
    assert found[-4]["step"] == best["step"]  # and three that were no better
    # What is served, and what `rollcall eval` judges, is that model.
    assert evaluate(directory, EvalOptions())[1]["eval_loss"] == pytest.approx(best["eval_loss"])
    report = (directory / "report.html").read_text()
    assert "by the model of the last step" in report and f"of step {best['step']}" in report


def test_with_few_held_out_pairs_the_best_would_be_the_luckiest_and_the_last_is_kept() -> None:
    config = config_of("few", held_out=ENOUGH_HELD_OUT - 1, epochs=10)
    summary = carry_out(begun(config))
    assert summary["kept"] == {"which": "last"} and "held_out_last" not in summary
    assert summary["learner_steps"] == 40
    config = config_of("asked", held_out=ENOUGH_HELD_OUT - 1, epochs=10, keep="best")
    assert carry_out(begun(config))["kept"]["which"] == "best"


class StopsAt:
    """A recorder that asks for the end after a step."""

    def __init__(self, step: int, stop: threading.Event) -> None:
        self._step, self._stop = step, stop

    def on_step(self, record: Any) -> None:
        if record["step"] == self._step:
            self._stop.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize("when", ["before its best", "after it"])
def test_an_interrupted_run_keeps_the_same_model_to_the_bit(when: str) -> None:
    config = config_of("whole", patience=3)
    whole = begun(config)
    summary = carry_out(whole)
    config = config.model_copy(update={"name": "parted"})
    parted, stop = begun(config), threading.Event()
    step = summary["kept"]["step"] // 2 if when == "before its best" else summary["learner_steps"] - 3
    stopped = carry_out(parted, stop_requested=stop.is_set, console=[StopsAt(step, stop)])
    assert stopped["status"] == "stopped"
    again = carry_out(parted, resume=True)
    assert (again["kept"], again["learner_steps"]) == (summary["kept"], summary["learner_steps"])
    one, other = (load_file(path / "model" / "model.safetensors") for path in (whole.directory, parted.directory))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_best_model_is_a_copy_that_ties_leave_alone(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 1)
    best = BestModel(module, patience=2)
    best.judge(step=0, loss=-1.0)  # nobody has trained it yet
    assert best.step == 0 and not best.gave_up
    losses = {10: 0.7, 20: 0.5, 30: 0.5, 40: 0.6}
    for step, loss in losses.items():
        with torch.no_grad():
            module.weight.fill_(step)
        best.judge(step=step, loss=loss)
    assert best.step == 20 and best.gave_up
    (tmp_path / "checkpoint").mkdir()
    best.save(tmp_path / "checkpoint")
    other = torch.nn.Linear(2, 1)
    restored = BestModel(other, patience=2)
    restored.restore(tmp_path / "checkpoint")
    restored.put_back()
    assert restored.step == 20 and restored.gave_up and (other.weight == 20).all()


def test_weight_decay_of_reward_models_has_a_default_that_is_written_out() -> None:
    config = config_of("w")
    assert config.learner.optimizer.weight_decay == 0.1 and config.learner.learning_rate == 3e-3
    assert config_of("w", learner={"weight_decay": 0.0}).learner.optimizer.weight_decay == 0.0
    assert "weight_decay: 0.1" in config.to_yaml()


def test_a_checkpoint_of_an_earlier_release_has_no_best_model_yet() -> None:
    job = RewardModelRun(config_of("old"), Path())
    job.restore(Path())
    assert job.keep() == {"kept": {"which": "last"}}
