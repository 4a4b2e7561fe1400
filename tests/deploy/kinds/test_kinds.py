"""The kinds of runs: every recipe is of one, and what a kind says of itself is all that the rest asks. A recipe of each
is trained from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rollcall.actors.control.recording import write_recorded
from rollcall.deploy import train
from rollcall.deploy.cli.main import main
from rollcall.deploy.config.claims import CLAIMS
from rollcall.deploy.config.settings import preference_recipes, read_recipe, shipped_recipes
from rollcall.deploy.drive.changes import changed
from rollcall.deploy.kinds.kind import EvalOptions
from rollcall.deploy.kinds.loading import evaluate, export_policy
from rollcall.deploy.kinds.recipes import load_run
from rollcall.deploy.kinds.registry import KINDS, kind_of
from tests import EARLIER
from tests.deploy.drive.design.coding_server import UPRIGHT, CodingServer, answer
from tests.experts import balances, recorded
from tests.needs import require_for
from tests.reward_service.scorers.judge_server import JudgeServer
from tests.runs import config_of

TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "intermediate_size": 64}
PAIRS = {"generate": {"pairs": 80, "eval_pairs": 20}}
SUPERVISED = {"name": "imitation", "task": "arithmetic", "algorithm": "sft", "eval": {"num_rows": 0}}
SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "control": (
        "cartpole-ppo",
        {"runtime": "serial", "total_learner_steps": 1, "actors": {"unroll_length": 16}, "eval": {"episodes": 1}},
    ),
    "language": (
        "arithmetic-grpo",
        {
            **{"runtime": "serial", "total_learner_steps": 1, "max_policy_lag": 0, "eval": {"num_rows": 4}},
            **{"policy.tiny": TINY, "policy.warm_start": {"steps": 2, "batch_size": 4, "threads": 1}},
            **{"actors.prompts_per_batch": 2, "actors.samples_per_prompt": 2, "actors.engine.enforce_eager": True},
        },
    ),
    "supervised": (
        "imitation.yaml",
        {"policy.tiny": TINY, "policy.warm_start": {"steps": 2, "batch_size": 4, "threads": 1}},
    ),
    "direct": (
        "synthetic-dpo",
        {
            **{"data": PAIRS, "policy.tiny": TINY, "policy.warm_start": {"steps": 2, "batch_size": 4, "threads": 1}},
            **{"total_learner_steps": 2, "batch_size": 20, "kl_prompts": 0},
        },
    ),
    "expert_iteration": (
        "arithmetic-expert-iteration",
        {
            **{"policy.tiny": TINY, "policy.warm_start": {"steps": 60, "batch_size": 16, "threads": 1}},
            **{"algorithm": {"rounds": 1, "steps": 2, "batch_size": 4}, "keep": {"best": 1, "at_least": None}},
            **{"actors.prompts_per_batch": 20, "actors.samples_per_prompt": 2, "eval": {"num_rows": 4}},
        },
    ),
    "constitutional": (
        "reviews-constitutional",
        {
            **{"policy.tiny": TINY, "policy.warm_start": {"steps": 60, "batch_size": 16, "threads": 1}},
            **{"algorithm.steps": 2, "algorithm.batch_size": 4, "eval": {"num_rows": 4}},
            "actors.prompts_per_batch": 20,
        },
    ),
    "offline": (
        "cartpole-bc",
        {"data": {"train": "expert.safetensors", "episodes": 1}, "total_learner_steps": 2, "eval": {"episodes": 1}},
    ),
    "reward_model": ("synthetic-reward", {"data": PAIRS, "model.tiny": TINY, "total_learner_steps": 2}),
    "tabular": ("frozenlake-q-learning", {"total_episodes": 20, "episodes_per_step": 10, "eval": {"episodes": 2}}),
    "design": ("cartpole-eureka", {"total_learner_steps": 2, "eval": {"episodes": 2}}),
    "bandit": ("bandit-ucb", {"total_learner_steps": 3, "bandit": {"problems": 5}}),
}


ENGINES = ("language", "expert_iteration", "constitutional")  # kinds that sample


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imitation.yaml").write_text(json.dumps(SUPERVISED))
    write_recorded("expert.safetensors", recorded("CartPole-v1", balances, episodes=2, steps=20))


@pytest.fixture
def in_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_python_trains_a_recipe_of_every_kind(kind: Any, in_the_end: ExitStack) -> None:
    if kind.name not in ("control", "design", "offline", "tabular", "bandit"):
        pytest.importorskip("vllm", reason="needs rollcall-rl[lm-cpu]")
    if kind.name == "design":
        server = in_the_end.enter_context(CodingServer([answer(UPRIGHT)]))
        SHORT["design"][1]["design"] = {"url": server.url, "iterations": 1, "candidates": 1, "videos": False}
    recipe, overrides = SHORT[kind.name]
    if kind.name == "constitutional":
        critic = JudgeServer()
        in_the_end.callback(critic.close)
        critic.reply = lambda body: "It is kind."
        overrides = overrides | {"algorithm.critic.url": critic.url}
    if kind.name in ENGINES:  # started in a process of its own: torch's own deprecations are its affair
        code = f"from rollcall.deploy import train; train({recipe!r}, name='short', **{overrides!r})"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
        summary = json.loads(Path("runs/short/summary.json").read_text())
    else:
        summary = train(recipe, name="short", **overrides)
        assert summary["run_directory"] == "runs/short"
    assert summary["status"] == "completed"
    directory = Path("runs/short")
    assert load_run(directory).kind is kind
    assert json.loads((directory / "summary.json").read_text())["learner_steps"] == summary["learner_steps"] > 0
    assert (directory / "report.html").exists()
    assert main(["resume", "short"]) == 0  # it is completed: nothing to go on with
    assert main(["report", "short"]) == 0
    without = kind.policy == "network" and find_spec("onnxruntime") is None  # the extra for ONNX
    assert main(["export", "short"]) == (0 if kind.exportable and not without else 2)


def test_the_kinds_whose_policy_can_be_exported_say_so() -> None:
    """Their last line names the command; each is exported above."""
    assert {kind.name for kind in KINDS if not kind.exportable} == {"reward_model", "tabular", "bandit"}


@pytest.mark.parametrize("name", sorted(shipped_recipes() | preference_recipes()))
def test_every_shipped_recipe_is_of_one_kind_and_has_its_settings(name: str) -> None:
    require_for(name)
    tree = read_recipe(name).tree
    assert sum(claims(tree) for claims in CLAIMS.values()) == 1
    assert type(config_of(name)) is kind_of(tree).config


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a file was read, by its name."""
    counts: Counter[str] = Counter()
    read_text = Path.read_text

    def counted(path: Path, *args: Any, **kwargs: Any) -> str:
        counts[path.name] += 1
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", counted)
    return counts


def test_a_file_of_settings_is_read_once(reads: Counter[str]) -> None:
    shutil.copytree(EARLIER, "runs")
    evaluate("control", EvalOptions(episodes=1))
    assert reads["config.yaml"] == 1
    reads.clear()
    changed(load_run(Path("runs/control")), ["learner.learning_rate=1e-5"])
    assert reads["config.yaml"] == 1
    reads.clear()
    config_of("cartpole-ppo", ["seed=3"])
    assert reads["cartpole-ppo.yaml"] == 1


def test_an_export_reads_the_settings_once(reads: Counter[str]) -> None:
    pytest.importorskip("vllm", reason="needs rollcall-rl[lm-cpu]")
    shutil.copytree(EARLIER, "runs")
    export_policy("language", "exported")
    assert reads["config.yaml"] == 1


PLUGIN = """
from pydantic import BaseModel, model_validator
from rollcall.learners.algorithms.control.ppo import PPO, PPOConfig

times = []

class Config(PPOConfig):
    name: str = "plugin:Algorithm"

    @model_validator(mode="after")
    def _count(self):
        times.append(1)
        return self

class Algorithm(PPO):
    Config = Config
"""


def test_the_section_of_a_plug_in_is_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(".")
    config = config_of("cartpole-ppo", ["algorithm=plugin:Algorithm", "algorithm.clip_range=0.3"])
    assert config.algorithm.clip_range == 0.3
    import plugin  # type: ignore[import-not-found]

    assert len(plugin.times) == 1


def test_a_renamed_setting_of_a_kind_is_read_by_its_old_name_wherever_it_is_written() -> None:
    pytest.importorskip("vllm", reason="needs rollcall-rl[lm-cpu]")
    old = Path("old.yaml")
    old.write_text(
        json.dumps({"task": "arithmetic", "algorithm": "grpo", "total_learner_steps": 1, "eval": {"episodes": 7}})
    )
    assert config_of("old.yaml").eval.num_rows == 7
    assert config_of("old.yaml", ["eval.episodes=8"]).eval.num_rows == 8
    assert config_of("old.yaml", ["eval.num_rows=9"]).eval.num_rows == 9
    assert config_of("old.yaml", values={"eval": {"episodes": 10}}).eval.num_rows == 10
    assert config_of("cartpole-ppo", ["eval.episodes=11"]).eval.episodes == 11
