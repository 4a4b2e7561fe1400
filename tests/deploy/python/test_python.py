"""Rollcall as a Python package: what `import rollcall` offers, with objects in place of names, from scripts, notebooks
and loops that run already."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

import rollcall
from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs import given
from rollcall.cluster.inputs.content import fingerprint
from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.python.notebook import NotebookCell
from rollcall.deploy.python.rows import with_rows_kept
from tests import ROOT
from tests.needs import needs, require_module
from tests.runs import TWO_STEPS

SMALL: Mapping[str, Any] = yaml.safe_load(TWO_STEPS) | {"learner": {"learning_rate": 1e-3, "compile": "off"}}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLCALL_RUNS", raising=False)
    (tmp_path / "small.yaml").write_text(TWO_STEPS)
    return tmp_path


class Line(gym.Env[Any, Any]):
    """Walk to the right."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 4) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += int(action)
        ended = self.at >= self.length
        return np.full(1, self.at, np.float32), float(ended), ended, False, {}


class Told:
    """A recorder that keeps all."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, Any]] = []
        self.summary: Mapping[str, Any] = {}

    def on_start(self, info: Mapping[str, Any]) -> None: ...

    def on_step(self, record: Mapping[str, Any]) -> None:
        self.steps.append(record)

    def on_eval(self, record: Mapping[str, Any]) -> None: ...

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary


def test_the_package_offers_what_it_says_and_imports_nothing_heavy_for_it() -> None:
    code = (
        "import sys, time; began = time.process_time(); import rollcall; assert time.process_time() - began < 0.3; "
        "heavy = {'torch', 'ray', 'gymnasium', 'numpy', 'pydantic'} & set(sys.modules); assert not heavy, heavy; "
        "assert dir(rollcall) == sorted(rollcall.__all__); assert rollcall.__version__[0].isdigit(); "
        "[getattr(rollcall, name) for name in rollcall.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="module 'rollcall' has no attribute 'trian'"):
        rollcall.trian  # type: ignore[attr-defined]  # noqa: B018


def test_a_run_from_python_is_the_run_of_the_command_line() -> None:
    told = Told()
    result = rollcall.train("small.yaml", {"algorithm.clip_range": 0.1}, seed=3, recorders=[told])
    assert result.status == "completed" and result.run_directory == Path("runs/small")
    config = yaml.safe_load((result.run_directory / "config.yaml").read_text())
    assert config["algorithm"]["clip_range"] == 0.1 and config["seed"] == 3
    assert [record["step"] for record in told.steps] == [0, 1] == [record["step"] for record in result.metrics]
    assert told.summary["status"] == "completed" and result.score == result.evaluations[-1]["mean"]
    assert result.report.is_file() and "completed" in repr(result) and "<table>" in result._repr_html_()
    action = result.policy().act(np.zeros(4, np.float32))
    assert action in (0, 1)
    assert rollcall.evaluate(result, episodes=2, seed=5) == rollcall.evaluate("runs/small", episodes=2, seed=5)
    with pytest.raises(BadInput, match="a directory is for language models; its policy becomes an ONNX file"):
        rollcall.export(result.run_directory, "exported")


def test_a_dict_is_a_recipe_and_a_class_stands_for_its_name() -> None:
    recipe = {**SMALL, "env": {"id": Line, "kwargs": {"length": 3}}, "eval.episodes": 0}
    result = rollcall.train(recipe, name="line")
    config = yaml.safe_load((result.run_directory / "config.yaml").read_text())
    assert config["env"]["id"] == f"{__name__}:Line" and config["env"]["kwargs"] == {"length": 3}
    assert config["eval"]["episodes"] == 0 and recipe["env"] == {"id": Line, "kwargs": {"length": 3}}
    with pytest.raises(BadInput, match="empty dict"):
        rollcall.train({})
    with pytest.raises(BadInput, match=r"lr = 0\.1 \(train\(\.\.\.\)\): unknown key; Rollcall calls it"):
        rollcall.train(SMALL, lr=0.1)


def test_a_lambda_is_an_env_of_this_program_and_of_no_other() -> None:
    result = rollcall.train(SMALL, env=lambda: Line(2), name="mine")
    config = yaml.safe_load((result.run_directory / "config.yaml").read_text())
    assert re.fullmatch(r"rollcall\.cluster\.inputs\.given:env_[0-9a-f]{8}", config["env"]["id"])
    assert result.policy().act(np.zeros(1, np.float32)) in (0, 1)
    command = [sys.executable, "-m", "rollcall.deploy.cli", "eval", "runs/mine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "env was given as an object, and this process does not have it" in line
    assert "module:name" in line
    with pytest.raises(BadInput, match=r"env\.vectorization=async: no process can import the object env"):
        rollcall.train(SMALL, env={"id": lambda: Line(2), "vectorization": "async"})


def test_names_of_given_objects() -> None:
    class Inner: ...

    assert given.name_of(Line, kept_as="env") == f"{__name__}:Line"
    assert given.name_of(json.loads, kept_as="env") == "json:loads"
    path = given.name_of(Inner, kept_as="env")
    name = path.removeprefix(given.PREFIX)
    assert re.fullmatch("Inner_[0-9a-f]{8}", name) and given.name_of(Inner, kept_as="env") == path
    assert import_object(path) is Inner
    assert given.things_in(f'{{"a": "{path}"}}') == {name: Inner}
    assert given.things_in('{"a": "Inner"}') == {}
    with pytest.raises(BadInput, match="nosuch was given as an object"):
        import_object(f"{given.MODULE}:nosuch")


def test_another_object_of_the_same_name_is_another_and_a_run_goes_on_with_its_own() -> None:
    """Each env ends its episodes after as many steps as its length, and a policy that always walks has that return."""

    def walks(length: int) -> Any:
        return lambda: Line(length)

    settings = {"env.max_episode_steps": 9, "total_learner_steps": 1}
    short = rollcall.train(SMALL, settings, env=walks(2), name="short")
    other = rollcall.train(SMALL, settings, env=walks(7), name="long")
    ids = [yaml.safe_load((run.run_directory / "config.yaml").read_text())["env"]["id"] for run in (short, other)]
    assert ids[0] != ids[1]
    assert import_object(ids[0])().length == 2 and import_object(ids[1])().length == 7
    rollcall.resume(short, total_learner_steps=2)
    assert import_object(ids[0])().length == 2
    with pytest.raises(BadInput, match="not the object that the run began with"):
        rollcall.resume(short, env=walks(3), total_learner_steps=3)
    assert len(rollcall.resume(short, env=walks(2), total_learner_steps=3).metrics) == 3


AGAIN = """\
import sys
import rollcall
from tests.deploy.python.test_python import Line, SMALL

length = int(sys.argv[2])

def make():
    return Line(length)

if __name__ == "__main__":
    if sys.argv[1] == "train":
        rollcall.train(SMALL, env=make, name="mine", total_learner_steps=1)
    else:
        print(len(rollcall.resume("mine", env=make, total_learner_steps=2).metrics))
"""


def test_a_program_that_is_run_anew_goes_on_with_the_same_object_and_with_no_other(work: Path) -> None:
    (work / "again.py").write_text(AGAIN)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "again.py", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)

    assert run("train", "3").returncode == 0
    changed = run("resume", "4")  # a global that the function refers to is part of it
    assert changed.returncode == 1 and "this process does not have it" in changed.stderr.splitlines()[-1]
    same = run("resume", "3")
    assert (same.returncode, same.stdout.strip()) == (0, "2"), same.stderr


def test_an_object_is_told_from_another_by_its_content_and_not_by_its_place() -> None:
    def made(number: float, *, text: str = "a") -> Any:
        class Made:
            """Of no other content."""

            kept = np.arange(3)
            limit = number

            @property
            def double(self) -> float:
                return 2 * number

            def told(self, other: str = text) -> str:
                return other + text

        return Made

    assert fingerprint(made(1.0)) == fingerprint(made(1.0)) != fingerprint(made(2.0))
    assert fingerprint(made(1.0)) != fingerprint(made(1.0, text="b"))
    assert fingerprint(lambda: 1) == fingerprint(lambda: 1) != fingerprint(lambda: 2)
    lock = threading.Lock()
    assert fingerprint(lambda: lock) is None  # nobody else has this one
    names = {given.name_of(lambda: (lock, 1), kept_as="env"), given.name_of(lambda: (lock, 1), kept_as="env")}
    assert len(names) == 2

    def again() -> Any:
        return again

    assert fingerprint(again) == fingerprint(again)
    box = gym.spaces.Box(-1, 1, (2,), np.float32)
    same = gym.spaces.Box(-1, 1, (2,), np.float32)
    wider = gym.spaces.Box(-1, 1, (3,), np.float32)
    assert fingerprint(box) == fingerprint(same) != fingerprint(wider)


def test_weights_and_arrays_that_an_object_holds_are_part_of_its_content() -> None:
    def holding(thing: Any) -> Any:
        return lambda: thing

    one, same, other = torch.zeros(2, requires_grad=True), torch.zeros(2), torch.ones(2)
    assert fingerprint(holding(one)) == fingerprint(holding(same)) != fingerprint(holding(other))
    frozen, again = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    again.load_state_dict(frozen.state_dict())
    assert fingerprint(holding(frozen)) == fingerprint(holding(again)) is not None
    with torch.no_grad():
        again.weight += 1
    assert fingerprint(holding(frozen)) != fingerprint(holding(again))
    words = [np.array([{"a": number}], object) for number in (1, 1, 2)]
    assert fingerprint(holding(words[0])) == fingerprint(holding(words[1])) != fingerprint(holding(words[2]))
    assert fingerprint(holding(torch.zeros(2, dtype=torch.bfloat16))) is None  # numpy has no such numbers


SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]


def test_rows_stand_in_place_of_the_file_that_would_hold_them(work: Path) -> None:
    kept = with_rows_kept({"task": {"name": "jsonl", "path": SUMS}, "seed": 1})
    assert kept["task.name"] == "jsonl" and kept["seed"] == 1
    path = Path(kept["task.path"])
    assert path.parent == Path("runs/.data") and [json.loads(line) for line in path.read_text().splitlines()] == SUMS
    assert with_rows_kept({"task.path": tuple(SUMS)}) == {"task.path": str(path)}  # the same rows, the same file
    assert with_rows_kept({"task.path": SUMS[1:]}) != {"task.path": str(path)}
    assert with_rows_kept({"task.path": "sums.jsonl", "data.train": Path("x")})["task.path"] == "sums.jsonl"
    rows = [row.prompt for row in Jsonl(JsonlConfig(path=path)).rows("train")]
    assert rows == [row["prompt"] for row in SUMS]
    for wrong, line in (
        ([], r"task\.path \(train\(\.\.\.\)\): has no rows"),
        (["a"], r"task\.path \(train\(\.\.\.\)\):1: is a str: a row is a dict"),
        ([{"prompt": object()}], ":1: a row that is no JSON"),
        ((row for row in SUMS), r"task\.path \(train\(\.\.\.\)\): a generator is read once"),
    ):
        with pytest.raises(BadInput, match=line):
            with_rows_kept({"task.path": wrong})


class Polars:
    """As polars' DataFrame has them. Pandas' and pyarrow's have the methods below."""

    columns = ("prompt", "answer")

    def to_dict(self) -> dict[str, list[str]]:
        raise AssertionError("columns, and no rows")

    def to_dicts(self) -> list[dict[str, str]]:
        return SUMS


class Pandas:
    columns = ("prompt", "answer")

    def to_dict(self, orient: str) -> list[dict[str, str]]:
        assert orient == "records"
        return SUMS


class Pyarrow:
    column_names = ("prompt", "answer")

    def to_pylist(self) -> list[dict[str, str]]:
        return SUMS


@pytest.mark.parametrize("kind", [Polars, Pandas, Pyarrow])
def test_tables_are_known_by_the_methods_that_give_their_rows(kind: type[Any], work: Path) -> None:
    assert with_rows_kept({"task.path": kind()}) == with_rows_kept({"task.path": SUMS})


def test_a_data_set_of_the_package_datasets_stands_in_place_of_a_file() -> None:
    datasets = require_module("datasets")
    data = datasets.Dataset.from_list(SUMS)
    assert with_rows_kept({"task.path": data}) == with_rows_kept({"task.path": SUMS})
    splits = datasets.DatasetDict({"train": data})
    with pytest.raises(BadInput, match=r"task\.path .*several splits: give one of them, task\.path=dataset\['train'\]"):
        with_rows_kept({"task": {"path": splits}})
    with pytest.raises(BadInput, match=r"IterableDataset .* is read once"):
        with_rows_kept({"task.path": data.to_iterable_dataset()})


def test_a_reward_model_learns_from_rows_that_a_program_has() -> None:
    rows = [{"prompt": f"{n}:", "chosen": "yes" * (1 + n % 3), "rejected": "no" * (1 + n % 2)} for n in range(40)]
    recipe = {
        "data": {"train": rows, "eval_fraction": 0.25},
        "model": {"kind": "text", "start": "words"},
        "total_learner_steps": 2,
    }
    assert rollcall.train(recipe, name="rows").status == "completed"


def test_an_algorithm_is_a_class() -> None:
    from rollcall.learners.algorithms.control.ppo import PPO

    class Louder(PPO):
        """Reports more."""

    result = rollcall.train(SMALL, algorithm={"name": Louder, "epochs": 1, "num_minibatches": 2}, name="louder")
    assert re.fullmatch(rf"{given.MODULE}:Louder_[0-9a-f]{{8}}", result.summary["algorithm"])
    again = rollcall.resume(result, algorithm=Louder, total_learner_steps=3)  # it has settings of its own by now
    assert len(again.metrics) == 3


def test_a_run_stops_by_a_function_of_its_records_and_goes_on() -> None:
    stopped = rollcall.train(SMALL, total_learner_steps=50, stop=lambda record: record["step"] >= 2, name="stops")
    assert stopped.status == "stopped" and 3 <= len(stopped.metrics) < 10
    event = threading.Event()
    event.set()
    assert rollcall.resume(stopped, stop=event).status == "stopped"
    done = rollcall.resume("stops", {"learner.learning_rate": 1e-4}, total_learner_steps=8)
    assert done.status == "completed" and len(done.metrics) == 8
    assert rollcall.resume(done).summary == done.summary
    with pytest.raises(BadInput, match="has done 8 already"):
        rollcall.resume(done, total_learner_steps=4)
    with pytest.raises(BadInput, match="made with 0, so it stays"):
        rollcall.resume(done, seed=4)
    with pytest.raises(BadInput, match=r"env \(resume\(...\)\): is a type, and not the object that the run began with"):
        rollcall.resume(done, env=dict)
    assert rollcall.resume(done, total_learner_steps=np.int64(8)).summary == done.summary


def test_a_stop_function_that_fails_ends_the_run_and_is_raised() -> None:
    def fails(record: Mapping[str, Any]) -> bool:
        raise KeyError("no such metric")

    with pytest.raises(KeyError, match="no such metric"):
        rollcall.train(SMALL, stop=fails, name="fails")
    assert json.loads(Path("runs/fails/summary.json").read_text())["status"] == "failed"
    with pytest.raises(ValueError, match="stop is a int"):
        rollcall.train(SMALL, stop=3)  # type: ignore[arg-type]


def test_it_trains_where_an_event_loop_runs_already_as_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    async def cell() -> rollcall.Result:
        return rollcall.train(SMALL, name="cell", progress=True)

    assert asyncio.run(cell()).status == "completed"
    out = capsys.readouterr().out
    assert out.startswith("run directory: runs/cell\n") and "completed in" in out


CELL = """\
import asyncio
import rollcall
assert asyncio.get_running_loop().is_running()
result = rollcall.train("small.yaml", name="cell", progress=True)
"""


JUPYTER = """\
import json, sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in json.loads(sys.argv[1])])
NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
print(json.dumps([cell.outputs for cell in notebook.cells]))
"""


@needs("nbclient")
def test_in_a_notebook_a_run_is_one_cell_that_is_redrawn(work: Path) -> None:
    """A real kernel, in which an event loop runs."""
    command = [sys.executable, "-c", JUPYTER, json.dumps([CELL, "result"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (shown,), (result,) = json.loads(done.stdout.splitlines()[-1])  # one: nothing is printed beside it
    html = shown["data"]["text/html"]
    assert '<progress max="2" value="2"' in html and "step 2/2" in html
    assert "run directory: runs/cell" in html and "completed in" in html
    assert "step 2/2" in shown["data"]["text/plain"]
    assert "completed" in result["data"]["text/html"]


def test_what_a_cell_shows_is_text_and_never_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("IPython.display")
    shown: list[str] = []

    class Handle:
        def update(self, cell: Any) -> None:
            shown.append(cell._repr_html_())

    module.display = lambda cell, display_id: Handle()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    cell = NotebookCell()
    cell.on_start({"start_step": 0, "total_learner_steps": 40})
    print("step 3/40  return 1", file=cell.stream)
    print("step 7/40  return 2", file=cell.stream)
    print("sample: <b>2+2</b>", file=cell.stream)
    assert "return 2" in shown[-1] and "return 1" not in shown[-1]  # it takes the place of the one before
    assert "&lt;b&gt;2+2&lt;/b&gt;" in shown[-1] and '<progress max="40" value="0"' in shown[-1]
    for number in range(30):
        print(f"eval {number}", file=cell.stream)
    assert "eval 29" in shown[-1] and "eval 3\n" not in shown[-1]
    drawn = len(shown)
    for step in range(1000):
        cell.on_step({"step": step % 40})
    assert len(shown) < drawn + 100  # not for each step
    cell.close({})
    assert "step 40/40" in repr(cell)


def test_evaluations_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="episodes is 0"):
        rollcall.evaluate("anything", episodes=0)
    with pytest.raises(BadInput, match="no run 'anything'"):
        rollcall.evaluate("anything")


SCRIPT = """\
import sys, threading
import gymnasium as gym, numpy as np
import rollcall
from rollcall.learners.algorithms.control.ppo import PPO

class Mine(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)
    def __init__(self, bonus=0.0):
        self.bonus = bonus
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), self.bonus, self.t == 5, False, {}

class MyPPO(PPO):
    pass

lock = threading.Lock()

def locked():
    return lock and Mine()

if __name__ == "__main__":
    settings = dict(runtime="ray", actors={"num": 1, "num_envs": 2, "num_shards": 2, "unroll_length": 8})
    if sys.argv[1] == "locked":
        rollcall.train("small.yaml", env=locked, **settings)
    algorithm = {"name": MyPPO, "epochs": 1, "num_minibatches": 2}
    result = rollcall.train("small.yaml", env={"id": Mine, "kwargs": {"bonus": 2.0}}, algorithm=algorithm, **settings)
    print(result.status, result.score, result.summary["env_steps"])
"""


def test_classes_of_a_script_are_sent_to_the_runs_own_processes(work: Path) -> None:
    (work / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "sent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["completed", "10.0", "32"]


def test_what_cannot_be_sent_is_one_line_and_leaves_no_run(work: Path) -> None:
    (work / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py", "locked"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "locked cannot be sent to the run's processes" in last and "runtime='serial'" in last
    assert not list(work.glob("runs/*"))


def test_a_wheel_has_the_package_itself_typed_and_with_its_rooms(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("actors", "cluster", "deploy", "learners", "reward_service"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, timeout=120, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert "rollcall/deploy/config/catalogue/known_settings.json" in names
    assert {"rollcall/__init__.py", "rollcall/py.typed", "rollcall/deploy/python/running.py"} <= names
    assert not any(name.startswith(("actors", "deploy", "cluster", "rollcall/deploy/package")) for name in names)
    code = textwrap.dedent(f"""\
        import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]
        sys.path.insert(0, {str(tmp_path / "site")!r})
        import rollcall, rollcall.deploy.cli.main as main
        assert rollcall.__file__.startswith({str(tmp_path)!r}) and main.__file__.startswith({str(tmp_path)!r})
        assert main.main(['recipes']) == 0
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "cartpole-ppo" in done.stdout, done.stderr


def test_the_module_of_given_objects_can_be_looked_at() -> None:
    module = importlib.import_module(given.MODULE)  # torch's compiler asks every module for names
    assert getattr(module, "torch", None) is None and not hasattr(module, "__path__")
