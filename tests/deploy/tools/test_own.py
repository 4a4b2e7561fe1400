"""What users write themselves: the files of `rollcall new` and their tests, `rollcall check` on right and wrong ones,
and tasks and algorithms in ten lines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rollcall
from rollcall.actors.tasks.own_task import SettledTask, TextTask, judgement_of, row_of
from rollcall.actors.tasks.text_task import Judgement, Row
from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.config import plugins
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.tools.own import looking
from rollcall.deploy.tools.own.looking import look_at, what_it_is
from tests import ROOT
from tests.runs import TWO_STEPS


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ROLLCALL_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def module(work: Path) -> Callable[[str, str], str]:
    """Writes a module of the user's, and forgets those of other tests."""

    def write(name: str, text: str) -> str:
        sys.modules.pop(name, None)
        (work / f"{name}.py").write_text(text)
        return name

    return write


# rollcall new.


@pytest.mark.parametrize("what", ["env", "reward", "task", "algorithm", "recipe"])
def test_a_new_file_comes_with_a_test_that_passes(what: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["new", what, f"my_{what}"]) == 0
    file, test, line = capsys.readouterr().out.splitlines()
    assert line == f"run the test: python -m pytest {test}" and Path(file).is_file()
    for leftover in ("NAME", "CLASS", "FILE"):
        assert leftover not in Path(file).read_text() + Path(test).read_text()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_what_is_there_is_not_written_over(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("test_mine.py").write_text("mine")
    for arguments, said in (
        (["env", "mine"], "test_mine.py is there already"),
        (["env", "Mine!"], "small letters, digits and _"),
        (["env", "class"], "small letters"),
        (["env", "random"], "Python has a module of that name"),
        (["env", "a_b", "--into", "nosuch"], "cannot write nosuch/a_b.py"),
        (["thing", "a"], "invalid choice: 'thing'"),
    ):
        assert main.main(["new", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert sorted(path.name for path in work.iterdir()) == ["test_mine.py"]


# rollcall check.

ENVS = """\
import gymnasium as gym, numpy as np
BOX = gym.spaces.Box(-1, 1, (2,), np.float32)

class Right(gym.Env):
    observation_space, action_space = BOX, gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); self.t = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), float(action), self.t == 9, False, {}

class Old(Right):
    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, {}

class Shape(Right):
    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}

class NaN(Right):
    def step(self, action):
        return np.zeros(2, np.float32), float("nan"), False, False, {}

class Outside(Right):
    def step(self, action):
        return np.full(2, 5, np.float32), float(action), False, False, {}

class Random(Right):
    def step(self, action):
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32), float(action), False, True, {}

class Raises(Right):
    def step(self, action):
        raise KeyError("price")

class NoSpace(gym.Env):
    action_space = gym.spaces.Discrete(2)

class Endless(Right):
    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}
"""


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("Old", "step returned four values, as gym did before 0.26"),
        ("Shape", "shape"),
        ("NaN", "a reward is not finite"),
        ("Outside", "an observation outside its space: step 1: "),
        ("Raises", "KeyError"),
        ("NoSpace", "observation_space"),
    ],
)
def test_a_wrong_env_is_told_before_a_run(
    env: str, said: str, module: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    module("envs_to_look_at", ENVS)
    assert main.main(["check", f"envs_to_look_at:{env}"]) == 2
    out = capsys.readouterr().out
    (problem,) = (line for line in out.splitlines() if line.startswith("  PROBLEM: "))
    assert said.lower() in problem.lower() and out.endswith("to be fixed\n")


@pytest.mark.parametrize("name", ["hanging:Hangs", "hanging:Begins", "hanging:score", "hanging:Judge"])
def test_what_hangs_is_named_with_its_line(
    name: str,
    module: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(looking, "DEADLINE_S", 0.5)
    module("hanging", ENVS + HANGING)
    before = signal.getsignal(signal.SIGALRM)
    assert main.main(["check", name]) == 2
    out = capsys.readouterr().out
    assert "hanging.py, line" in out and "TimeoutError: it has not come back within 0.5 s" in out
    assert signal.getsignal(signal.SIGALRM) is before


HANGING = """
from rollcall.actors.tasks.own_task import TextTask

class Hangs(Right):
    def step(self, action):
        while True:
            pass

class Begins(Right):
    def __init__(self):
        while True:
            pass

def score(response):
    while True:
        pass

class Judge(TextTask):
    def rows(self, split):
        while True:
            pass

    def judge(self, row, completion):
        return 1.0
"""


def test_an_argument_of_an_env_has_no_dots(
    module: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    module("envs_to_look_at", ENVS)
    assert main.main(["check", "envs_to_look_at:Right", "arm.length=1"]) == 2
    assert "argument arm.length (command line): a name without dots" in capsys.readouterr().err


def test_a_right_env_is_described(module: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]) -> None:
    module("envs_to_look_at", ENVS)
    assert main.main(["check", "envs_to_look_at:Right", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["ok"] and seen["what"] == "env" and seen["notes"] == []
    assert "actions: Discrete(2)" in seen["facts"]
    assert any("episodes of random actions: 9 to 9 steps" in fact for fact in seen["facts"])
    endless = look_at("envs_to_look_at:Endless", {})
    assert [note.partition(":")[0] for note in endless.notes] == [
        "no episode ended within 1000 random steps",
        "every reward was 0",
    ]
    (note,) = look_at("envs_to_look_at:Random", {}).notes
    assert "the same seed and actions came apart at step 1" in note
    assert look_at("CartPole-v1", {}).problems == []
    masked = look_at("tests.deploy.kinds.control.masked_env:Masked", {})  # it refuses what its mask forbids
    assert masked.problems == [] and masked.notes == []
    (problem,) = look_at("CartPole-v1", {"nosuch": 3}).problems
    assert "nosuch" in problem
    assert main.main(["check", "envs_to_look_at:Gone"]) == 2


REWARDS = """\
def score(prompt, response, answer):
    return float(response.strip() == answer)

def in_trls_form(completions, answer, **columns):
    return [len(text) / 10 for text in completions]

def too_few(prompts, completions):
    return [1.0]

def wants(response, rubric):
    return 1.0

def text(response):
    return "good"

def always(response):
    return 0.5

def drawn(response):
    import random
    return random.random()
"""


@pytest.mark.parametrize(
    ("name", "problem", "note"),
    [
        ("score", "", ""),
        ("in_trls_form", "", ""),
        ("too_few", "gave 1 scores for 4 items", ""),
        ("wants", "needs 'rubric', and the data have no such column (they have answer)", ""),
        ("text", "gave the text 'good' for one text", ""),
        ("always", "", "every completion scored 0.5"),
        ("drawn", "", "scored differently the second time"),
    ],
)
def test_a_reward_is_called_as_a_run_would_call_it(
    name: str, problem: str, note: str, module: Callable[[str, str], str]
) -> None:
    module("rewards_to_look_at", REWARDS)
    assert what_it_is(f"rewards_to_look_at:{name}") == "reward"
    seen = look_at(f"rewards_to_look_at:{name}", {})
    assert bool(seen.problems) == bool(problem) and problem in " ".join(seen.problems)
    assert bool(seen.notes) == bool(note) and note in " ".join(seen.notes)
    if name == "wants":
        assert look_at("rewards_to_look_at:wants", {"rubric": "kind"}).problems == []


TASKS = """\
import itertools, random
from rollcall.actors.tasks.own_task import TextTask

class Sums(TextTask):
    def rows(self, split):
        numbers = range(20) if split == "train" else range(20, 25)
        return [{"prompt": f"{n} + 1 =", "answer": n + 1, "level": "easy"} for n in numbers]

class Drawn(Sums):
    def rows(self, split):
        return [{"prompt": str(random.random()), "answer": "1"}]

class NoAnswer(Sums):
    def rows(self, split):
        return [{"prompt": "1 + 1 =", "anwser": "2"}]

class BadJudge(Sums):
    def judge(self, row, completion):
        return "yes"

class Lenient(Sums):
    def judge(self, row, completion):
        return True

class Leaks(Sums):
    def rows(self, split):
        return super().rows("train")
"""


def test_a_task_of_five_lines_is_a_task(module: Callable[[str, str], str]) -> None:
    module("tasks_to_look_at", TASKS)
    config: Any = load_config("arithmetic-grpo", values={"task": "tasks_to_look_at:Sums", "policy.warm_start": None})
    task = config.build_task()
    row = task.rows("train")[3]
    assert row == Row("3 + 1 =", "4", "tasks_to_look_at:Sums train 3", {"answer": 4, "level": "easy"})
    assert task.judge(row, " 4\n") == Judgement(reward=1.0, correct=True, parsed=True)
    assert task.judge(row, "") == Judgement(reward=0.0, correct=False, parsed=False)
    assert task.environment(row) is None and task.chat is False
    assert [segment.text for segment in task.demonstration(row)] == ["3 + 1 =", "4"]


@pytest.mark.parametrize(
    ("name", "problem", "note"),
    [
        ("Sums", "", ""),
        ("Drawn", "rows differ from one time to the next", ""),
        ("NoAnswer", "a row without 'answer' (it has 'prompt', 'anwser')", ""),
        ("BadJudge", "its judge gave 'yes' (str): give true or false", ""),
        ("Lenient", "", "an empty or meaningless completion is judged right"),
        ("Leaks", "", "20 held-out prompts are among those trained on"),
    ],
)
def test_a_task_is_looked_at(name: str, problem: str, note: str, module: Callable[[str, str], str]) -> None:
    module("tasks_to_look_at", TASKS)
    seen = look_at(f"tasks_to_look_at:{name}", {})
    assert bool(seen.problems) == bool(problem) and problem in " ".join(seen.problems), seen
    assert bool(seen.notes) == bool(note) and note in " ".join(seen.notes), seen
    assert "extra" in " ".join(look_at("tasks_to_look_at:Sums", {"nosuch": 1}).problems).lower()


@pytest.mark.parametrize(
    ("said", "reward", "correct"),
    [(True, 1.0, True), (False, 0.0, False), (0.25, 0.25, False), (1, 1.0, True), (np.float32(2), 2.0, True)],
)
def test_a_judge_gives_a_bool_or_a_number(said: Any, reward: float, correct: bool) -> None:
    assert judgement_of(said, "x", "mine") == Judgement(reward=reward, correct=correct, parsed=True)


@pytest.mark.parametrize("said", [None, "1", float("nan"), float("inf"), [1.0]])
def test_a_judge_gives_nothing_else(said: Any) -> None:
    with pytest.raises(ValueError, match="give true or false, a finite number, or a Judgement"):
        judgement_of(said, "x", "mine")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text", "a row is 'text'"),
        ({"prompt": "", "answer": "1"}, "prompt is ''"),
        ({"prompt": "a", "answer": None}, "None"),
    ],
)
def test_a_row_is_a_dict_of_prompt_and_answer(given: Any, said: str) -> None:
    with pytest.raises(BadInput, match=f"mine 0: .*{said}"):
        row_of(given, "mine 0")


def test_a_tasks_rows_are_a_list() -> None:
    class Wrong(TextTask):
        def rows(self, split: Any) -> Any:
            return "rows"

    with pytest.raises(BadInput, match=r"rows\('train'\) gave 'rows'"):
        SettledTask(Wrong(), "mine").rows("train")


# Algorithms without settings of their own.


def test_an_algorithm_that_derives_from_another_needs_no_settings(module: Callable[[str, str], str]) -> None:
    name = module(
        "algorithms_to_derive", "from rollcall.learners.algorithms.control.ppo import PPO\nclass Mine(PPO): ...\n"
    )
    found = plugins.find(plugins.ALGORITHM, f"{name}:Mine")
    assert found.Config.model_fields["clip_range"].default == 0.2
    assert found.Config(name=f"{name}:Mine", clip_range=0.1).clip_range == 0.1
    assert plugins.find(plugins.ALGORITHM, f"{name}:Mine").Config is found.Config
    with pytest.raises(ValueError, match="Input should be 'ppo'"):  # the one that it derives from stays as it is
        plugins.find(plugins.ALGORITHM, "ppo").Config(name="another")
    Path("small.yaml").write_text(TWO_STEPS)
    result = rollcall.train("small.yaml", algorithm={"name": f"{name}:Mine", "epochs": 1, "num_minibatches": 2})
    assert result.summary["algorithm"] == f"{name}:Mine" and result.policy() is not None


# What docs/commands.md says.


def documented(beginning: str) -> str:
    """The block of code in docs/commands.md in which a line begins so."""
    text = (ROOT / "docs" / "commands.md").read_text()
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    (block,) = (block for block in blocks if re.search(rf"^ +{re.escape(beginning)}", block, re.MULTILINE))
    return textwrap.dedent(block)


def test_the_documented_task_is_one_and_the_documented_algorithm_is_one(module: Callable[[str, str], str]) -> None:
    name = module("documented_task", documented("class Sums"))
    seen = look_at(f"{name}:Sums", {})
    assert seen.problems == seen.notes == [] and "1,000 rows to train on, 100 held out" in seen.facts
    name = module("documented_algorithm", documented("class Mine(PPO)"))
    assert plugins.find(plugins.ALGORITHM, f"{name}:Mine").Config(name="x:Mine").gae_lambda == 0.95


def test_the_documented_error_is_the_one_that_is_printed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, line = documented("$ rollcall train cartpole-ppo n_envs=8").strip().splitlines()
    assert main.main(command.split()[2:]) == 2
    assert capsys.readouterr().err.strip() == line
