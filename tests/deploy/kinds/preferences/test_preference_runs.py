"""Runs on preferences, from a recipe to the model that they leave: in this process, with real models, small."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.checkpoint import list_checkpoints, load_weights
from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.main import main
from rollcall.deploy.config.settings import preference_recipes, recipe_title
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.kind import EvalOptions, StoredRun
from rollcall.deploy.kinds.loading import evaluate, export_policy
from rollcall.deploy.kinds.recipes import load_config, load_recipe
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.preferences.files import SegmentPair, read_preferences, write_preferences
from rollcall.reward_service.protocol import ArrayField, ScoreItem, Segment
from rollcall.reward_service.scorer import Score
from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer
from tests.needs import require_module

transformers = require_module("transformers")

TINY = "{vocab_size: 300, hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}"
REWARD = ("data.generate={pairs: 300, eval_pairs: 60}", f"model.tiny={TINY}", "epochs=2", "batch_size=50")
DIRECT = (
    "data.generate={pairs: 240, eval_pairs: 40, minority_share: 0.25}",
    f"policy.tiny={TINY}",
    "policy.warm_start={steps: 20, batch_size: 16, learning_rate: 5e-3, threads: 1}",
    "batch_size=30",
    "epochs=1",
    "learner.learning_rate=5e-3",
    "kl_prompts=4",
    "kl_max_tokens=12",
)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(preference_recipes()))
def test_every_shipped_recipe_of_a_preference_run_is_sound_titled_and_short(name: str) -> None:
    path = preference_recipes()[name]
    config = load_config(name)
    assert config.name == name
    assert recipe_title(path)
    assert "# Source" in path.read_text()
    assert len([line for line in path.read_text().splitlines() if ":" in line and not line.startswith("#")]) <= 28
    saved = Path("again.yaml")
    saved.write_text(config.to_yaml())
    assert load_config(saved) == config


# Reward models.


def test_a_reward_model_is_trained_judged_reported_and_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "train", "synthetic-reward", "name=r", *REWARD, "learner.learning_rate=1e-2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("run directory: runs/r\n")
    assert "rollcall reward serve --model r=runs/r/model" in shown
    summary = json.loads(Path("runs/r/summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["comparisons"] == {"train": 300, "held_out": 60, "left_out": 0}
    assert summary["train"]["loss"] < math.log(2)
    assert summary["held_out"]["n"] == 60
    assert sum(b["n"] for b in summary["calibration"]["bins"]) == 60
    assert [line["step"] for line in lines(Path("runs/r/metrics.jsonl"))] == list(range(12))
    assert lines(Path("runs/r/evals.jsonl"))[-1]["mean"] == pytest.approx(summary["held_out"]["accuracy"])
    report = Path("runs/r/report.html").read_text()
    assert "Calibration" in report and "http" not in report.replace("http://www.w3.org/2000/svg", "")

    # The service's scorer gives the very accuracy that the run told of.
    scorer = build_reward_model_scorer(RewardModelConfig(path="runs/r/model"))
    assert scorer.version == summary["model_version"]
    right = 0
    for pair in read_preferences(Path("runs/r/data/eval.jsonl")):
        texts = (pair.chosen, pair.rejected)  # type: ignore[union-attr]
        better, worse = scorer.score([ScoreItem(id=t, prompt=pair.prompt, response=t) for t in texts])  # type: ignore[union-attr, arg-type]
        assert isinstance(better, Score) and isinstance(worse, Score)
        right += better.value > worse.value
    assert right / 60 == pytest.approx(summary["held_out"]["accuracy"])


def write_segment_pairs(path: Path, count: int, *, seed: int = 0) -> None:
    """The true reward: the first observation near 0, and action 1."""
    generator = np.random.default_rng(seed)

    def segment() -> tuple[Segment, float]:
        observations = generator.normal(size=(8, 3)).astype(np.float32)
        actions = generator.integers(0, 2, size=8)
        reward = float(-np.abs(observations[:, 0]).sum() + actions.sum())
        return Segment(observations=ArrayField.of(observations), actions=ArrayField.of(actions)), reward

    made = []
    for _ in range(count):
        (left, a), (right, b) = segment(), segment()
        made.append(SegmentPair((left, right), "tie" if abs(a - b) < 0.2 else "left" if a > b else "right", env="E-v0"))
    write_preferences(path, made)


def test_a_file_of_segments_is_enough_and_its_model_knows_the_true_reward_step_by_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_segment_pairs(Path("pairs.jsonl"), 500)
    arguments = ("name=s", "epochs=25", "batch_size=64", "learner.learning_rate=3e-3", "loss.noise=0.1")
    assert main(["reward", "train", "pairs.jsonl", *arguments]) == 0
    summary = json.loads(Path("runs/s/summary.json").read_text())
    assert summary["held_out"]["accuracy"] > 0.8
    assert "held out:" in capsys.readouterr().out
    scorer = build_reward_model_scorer(RewardModelConfig(path="runs/s/model"))
    observations = np.zeros((4, 3), np.float32)
    observations[:2, 0] = 2.0
    segment = Segment(observations=ArrayField.of(observations), actions=ArrayField.of(np.array([0, 1, 0, 1])))
    (outcome,) = scorer.score([ScoreItem(id="a", segment=segment)])
    assert isinstance(outcome, Score) and outcome.step_values is not None
    far_0, far_1, near_0, near_1 = outcome.step_values
    assert far_0 < far_1 < near_1 and far_0 < near_0 < near_1


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.jsonl"], "missing.jsonl: cannot be read"),
        (["bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["synthetic-reward", "model.max_tokens=5", *REWARD], "none of 300 comparisons fits into max_tokens=5"),
        (["synthetic-reward", "model.tiny={vocab_size: 9}"], "vocab_size=9"),
        (["synthetic-reward", "model.start=no-such-directory/here"], "no-such-directory/here"),
        (["synthetic-reward", "model.kind=segment", "model.tiny=null"], "model.tiny"),
        (
            ["synthetic-reward", "loss.nois=0.1"],
            "loss.nois = 0.1 (command line): unknown key; did you mean loss.noise?",
        ),
        (["synthetic-reward", "learner.num_processes=65"], "more learner processes than the 64 comparisons"),
        (["synthetic-dpo"], "rollcall train synthetic-dpo"),
        (["cartpole-ppo"], "no recipe of a reward model"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line_and_leaves_no_run(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", \n')
    assert main(["reward", "train", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not list(Path().glob("runs/*"))


# The direct methods.


@pytest.mark.parametrize("algorithm", ["dpo", "ipo", "group_dpo"])
def test_a_policy_learns_from_comparisons_and_is_a_hugging_face_model_in_the_end(
    algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "synthetic-dpo", f"algorithm={algorithm}", "name=d", *DIRECT]) == 0
    summary = json.loads(Path("runs/d/summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["algorithm"] == algorithm
    assert summary["groups"] == {"critics": 60, "fans": 180}
    assert summary["first_eval"]["mean"] == 0.5  # policy and reference are one
    assert summary["final_eval"]["n"] == 40
    assert set(summary["held_out"]["groups"]) == {"critics", "fans"}
    assert abs(summary["first_eval"]["kl_reference"]) < 1e-6 < summary["final_eval"]["kl_reference"]
    records = lines(Path("runs/d/metrics.jsonl"))
    assert summary["train"]["eval_loss"] < records[0]["mean_loss"]  # where policy and reference are one
    policy = transformers.AutoModelForCausalLM.from_pretrained(summary["policy"])
    weights = dict(load_weights(list_checkpoints(Path("runs/d"))[-1]).tensors())
    found = policy.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(found, weights["policy.model.model.embed_tokens.weight"])
    capsys.readouterr()
    assert main(["eval", "d", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["mean"] == summary["final_eval"]["mean"]
    assert again["eval_loss"] == pytest.approx(summary["final_eval"]["eval_loss"])
    assert main(["export", "d", "elsewhere"]) == 0
    assert (Path("elsewhere") / "model.safetensors").read_bytes() == Path(
        "runs/d/policy/model.safetensors"
    ).read_bytes()
    assert main(["audit", "d"]) == 2
    assert "no books" in capsys.readouterr().err


def test_a_stopped_run_goes_on_to_the_same_weights() -> None:
    overrides = ("algorithm=group_dpo", *DIRECT, "kl_prompts=0", "eval_every=3")

    def begun(name: str) -> StoredRun:
        recipe = load_recipe("synthetic-dpo", [*overrides, f"name={name}"])
        return new_run(recipe, named="synthetic-dpo", explicit=True)

    class StopsAt:
        """A recorder that asks for the end after a step."""

        def __init__(self, step: int, stop: threading.Event) -> None:
            self._step, self._stop = step, stop

        def on_step(self, record: Any) -> None:
            if record["step"] == self._step:
                self._stop.set()

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    whole, parted = begun("whole"), begun("parted")
    carry_out(whole)
    stop = threading.Event()
    summary = carry_out(parted, stop_requested=stop.is_set, console=[StopsAt(4, stop)])  # type: ignore[list-item]
    assert (summary["status"], summary["learner_steps"]) == ("stopped", 5)
    summary = carry_out(parted, resume=True)
    assert (summary["status"], summary["learner_steps"]) == ("completed", 8)
    one, other = (load_weights(list_checkpoints(path)[-1]) for path in (whole.directory, parted.directory))
    assert one.checksum == other.checksum
    steps = [lines(path / "metrics.jsonl") for path in (whole.directory, parted.directory)]
    for a, b in zip(*steps, strict=True):
        assert (a["step"], a["loss"], a["tokens"], a["group_weight_0"]) == (
            b["step"],
            b["loss"],
            b["tokens"],
            b["group_weight_0"],
        )
    evals = [
        [(e["step"], e["eval_loss"]) for e in lines(path / "evals.jsonl")]
        for path in (whole.directory, parted.directory)
    ]
    assert evals[0] == evals[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["data.generate={pairs: 50, eval_pairs: 10}", "algorithm=group_dpo"], "needs two groups or more"),
        (["algorithm=dppo"], "did you mean dpo?"),
        (["algorithm.betta=1"], "did you mean algorithm.beta?"),
        (["data.generate=null"], "one of train=FILE.jsonl and generate is needed"),
        (["data.generate=null", "data.train=nothing.jsonl"], "nothing.jsonl: cannot be read"),
    ],
)
def test_a_direct_run_that_cannot_be_is_refused_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "synthetic-dpo", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert not list(Path().glob("runs/*"))


def test_recipes_of_all_kinds_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "synthetic-group-dpo"]) == 0
    assert "group_step" in capsys.readouterr().out
    assert main(["recipes"]) == 0
    assert "synthetic-ipo" in capsys.readouterr().out


def test_a_loss_that_stops_being_finite_ends_the_run_with_its_summary() -> None:
    recipe = load_recipe("synthetic-reward", [*REWARD, "name=n", "learner.learning_rate=1e30"])
    run = new_run(recipe, named="synthetic-reward", explicit=True)
    directory = run.directory
    with pytest.raises(Exception, match="not finite"):
        carry_out(run)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "NonFinite" in summary["error"]
    assert "Traceback" in (directory / "logs" / "driver.log").read_text()
    assert (directory / "report.html").exists()


def test_only_a_direct_run_has_a_policy_to_export() -> None:
    recipe = load_recipe("synthetic-reward", [*REWARD, "name=r", "total_learner_steps=2"])
    run = new_run(recipe, named="synthetic-reward", explicit=True)
    threads = torch.get_num_threads()
    carry_out(run)
    assert torch.get_num_threads() == threads
    with pytest.raises(BadInput, match="has no policy"):
        export_policy("r")
    assert evaluate("r", EvalOptions())[1]["n"] == 60
