"""The Python of pages, run as it stands: the blocks of a page in their order, in one namespace. Runs are made short."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import rollcall
from rollcall.actors.tasks.own_task import SettledTask
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.reward_service.scorer import Score
from tests.needs import require
from tests.pages.blocks import NAMES, blocks
from tests.pages.elsewhere import WHOLE
from tests.pages.running import home_of_its_own, train, write
from tests.reward_service.scorers.test_code_reward import built, segment
from tests.runs import TWO_STEPS, config_of

SMALL: Mapping[str, Any] = {
    "total_env_steps": 256,
    "runtime": "serial",
    "actors": {"num": 1, "num_envs": 2, "num_shards": 2, "unroll_length": 8},
    "policy": {"hidden_sizes": [8]},
    "algorithm.epochs": 1,
    "algorithm.num_minibatches": 2,
    "learner.compile": "off",
    "eval.episodes": 1,
    "eval.every_steps": None,
    "metrics.enabled": False,
}
ENV = """\
import gymnasium as gym

class MyEnv(gym.Wrapper):
    def __init__(self, size=4):
        self.size = size
        super().__init__(gym.make("CartPole-v1"))
"""
# Pages whose Python is run elsewhere, and how each of the others is run here, by the name of a test.
ELSEWHERE = {
    "README.md": "tests/test_commands_in_documents.py::test_the_readmes_python_runs_as_it_stands",
    "docs/tasks.md": "tests/test_site.py::test_the_documents_own_task_is_one",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home_of_its_own(tmp_path, monkeypatch)
    return tmp_path


def python_of(page: str) -> list[str]:
    return [block.text for block in blocks(page) if block.sort == "python"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`rollcall.train` with settings that make a run short written over those of the page; what it was called with."""
    told: list[Any] = []
    train_as_shipped = rollcall.train

    def shortened(recipe: Any, overrides: Any = None, /, **settings: Any) -> Any:
        told.append((recipe, overrides, settings))
        of_runs = {name: settings.pop(name) for name in ("progress", "stop", "recorders") if name in settings}
        return train_as_shipped(recipe, {**merged(overrides or {}, settings), **SMALL}, **of_runs)

    def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in parts:
            for key, value in part.items():
                nested = isinstance(value, dict) and key not in ("env",)
                found |= {f"{key}.{name}": inner for name, inner in value.items()} if nested else {key: value}
        return {key: value for key, value in found.items() if key.partition(".")[0] not in ("actors", "policy")}

    monkeypatch.setattr(rollcall, "train", shortened)
    return told


def carried_out(texts: list[str], **names: Any) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__", "rollcall": rollcall, **names}
    for text in texts:
        exec(compile(text, "page", "exec"), namespace)
    return namespace


def test_the_python_of_every_page_is_run_by_a_test() -> None:
    source = Path(__file__).read_text()
    for name in NAMES:
        if python_of(name) and name not in WHOLE and name not in ELSEWHERE:
            assert f'python_of("{name}")' in source, name


def test_what_the_page_of_python_shows_trains(short: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    write("my_env.py", ENV)
    from my_env import MyEnv  # type: ignore[import-not-found]

    class MyPPO(PPO):
        pass

    first, *others, rows = python_of("docs/python.md")
    found = carried_out([first, *others], observation=np.zeros(4, np.float32), MyEnv=MyEnv, MyPPO=MyPPO)
    assert found["action"] in (0, 1) and found["result"].status == "completed"
    assert str(found["result"].run_directory) in capsys.readouterr().out
    assert len(short) == 6 and all(path.exists() for path in Path("runs").glob("*/summary.json"))
    ran = [yaml.safe_load(path.read_text()) for path in sorted(Path("runs").glob("*/config.yaml"))]
    assert len(ran) == 6 and {"algorithm.clip_range": 0.1} in [overrides for _, overrides, _ in short]
    assert any(config["env"]["kwargs"] == {"size": 8} for config in ran)
    assert rows.count("rollcall.train") == 1


def test_rows_of_the_page_of_python_stand_in_place_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by the recipe that they are given to. (A run with rows: examples/language.ipynb.)"""
    from rollcall.deploy.kinds.recipes import load_config
    from rollcall.deploy.python.rows import with_rows_kept

    *_, rows = python_of("docs/python.md")
    told: list[Any] = []
    monkeypatch.setattr(rollcall, "train", lambda recipe, settings: told.append((recipe, settings)))
    carried_out([rows])
    ((recipe, settings),) = told
    task = {"name": "jsonl", "path": "sums.jsonl", "judge": "exact"}
    write(
        recipe,
        yaml.safe_dump({"total_learner_steps": 1, "task": task, "policy": {"model": "tiny"}, "algorithm": "grpo"}),
    )
    config = load_config(recipe, values=with_rows_kept(settings)).model_dump()
    assert Path(config["task"]["path"]).read_text().count("\n") == 2


def test_the_ten_lines_of_the_page_of_commands_are_a_task_an_algorithm_and_two_rewards() -> None:
    task, algorithm, rewards = python_of("docs/commands.md")
    found = carried_out([task, algorithm, rewards])
    sums = SettledTask(found["Sums"](), "my_module:Sums")
    row = sums.rows("train")[2]
    assert (row.prompt, row.answer) == ("2 + 1 =", "3") and len(sums.rows("eval")) == 100
    assert sums.judge(row, " 3").correct and not sums.judge(row, "4").correct
    assert issubclass(found["Mine"], PPO) and "loss" in vars(found["Mine"])
    write("my_module.py", task + algorithm)
    with_task = config_of("arithmetic-grpo", ["task=my_module:Sums"])
    assert with_task.task.name == "my_module:Sums"
    with_algorithm = config_of("cartpole-ppo", ["algorithm.name=my_module:Mine"]).algorithm
    assert (
        with_algorithm == type(with_algorithm)(name="my_module:Mine") and with_algorithm.epochs == PPO.Config().epochs
    )
    assert list(inspect.signature(found["score"]).parameters) == ["prompts", "completions", "answer", "columns"]
    names = [list(inspect.signature(f).parameters) for f in functions(rewards)]
    assert names == [["prompt", "response", "answer"], ["prompts", "completions", "answer", "columns"]]


def functions(text: str) -> list[Callable[..., Any]]:
    """All of them, also those of one name."""
    found = []
    for node in ast.parse(text).body:
        namespace: dict[str, Any] = {}
        exec(compile(ast.Module([node], []), "page", "exec"), namespace)
        found.append(namespace[node.name])  # type: ignore[attr-defined]
    return found


def test_the_reward_of_the_page_of_reward_design_is_scored_in_the_sandbox() -> None:
    (code,) = python_of("docs/reward_design.md")
    with built(code) as scorer:
        (outcome,) = scorer.score([segment(0, steps=4)])
    assert isinstance(outcome, Score)
    compute_reward = functions(code)[0]
    reward, components = compute_reward([0.0, 0.0, 0.1, 0.0], 0, [0.0, 0.0, 0.2095, 0.0], True)
    assert (reward, components) == (-5.0, {"upright": 0.0, "fallen": -5.0})
    assert set(outcome.components) == {"upright", "fallen"}


def test_an_exported_file_acts_as_the_page_of_exporting_says() -> None:
    require("onnxruntime")
    write("small.yaml", TWO_STEPS)
    train("small.yaml", "name=mine")
    session, exported = python_of("docs/exporting.md")
    control = "\n".join(exported.splitlines()[:2])
    found = carried_out([control, session])
    assert found["action"].shape == (1,) and found["action"][0] in (0, 1)


def test_a_language_model_is_exported_as_the_page_of_exporting_says() -> None:
    require("peft", "transformers")
    from tests.deploy.kinds.language.test_export import RECIPE
    from tests.deploy.kinds.language.test_export_forms import trained

    write("sums.yaml", RECIPE)
    trained("name=sums")
    *_, exported = python_of("docs/exporting.md")
    carried_out([exported.splitlines()[-1]])
    assert '"dtype": "bfloat16"' in Path("runs/sums/policy/config.json").read_text()


def test_the_page_about_sb3_is_right_about_both(short: list[Any]) -> None:
    theirs, ours = python_of("docs/migration/sb3.md")
    found = carried_out([ours], observation=np.zeros(4, np.float32))
    assert found["action"] in (0, 1)
    assert short == [("cartpole-ppo", None, {"total_env_steps": 100_000, "algorithm": {"discount": 0.98}})]
    assert compile(theirs, "page", "exec") and "gamma=0.98" in theirs and "learn(100_000)" in theirs


def test_the_reward_of_the_page_about_trl_is_called_in_its_form() -> None:
    """TRL itself is not installed. A run of the page's recipe calls the same function (language_lines.py)."""
    (theirs,) = python_of("docs/migration/trl.md")
    tree = ast.parse(theirs)
    (reward,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    score = functions(ast.unparse(reward))[0]
    assert score(completions=[" 4", "5"], answer=["4", "4"], other=[1, 2]) == [1.0, 0.0]
