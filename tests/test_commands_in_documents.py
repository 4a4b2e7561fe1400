"""The commands that the README and the pages of docs/ show: those of the README are run as they stand, in an empty
folder, and all have settings that there are. (Those of docs/ are run by tests/pages.) Where a run would take minutes it
is made shorter by settings at the end of its command, which is how the README says that any setting is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rollcall.deploy.cli.main import build_parser
from rollcall.deploy.config.catalogue.known_settings import refuse_unknown
from rollcall.deploy.config.settings import preference_recipes, shipped_recipes
from tests import ROOT
from tests.needs import require
from tests.pages.blocks import NAMES, commands

README = (ROOT / "README.md").read_text()
SHORT_CONTROL = ("total_env_steps=4096", "eval.episodes=2")
# One learner step of two prompts, of a model that is imitating for two steps.
SHORT_LANGUAGE = (
    *("total_learner_steps=1", "eval.num_rows=4", "actors.prompts_per_batch=2", "actors.samples_per_prompt=2"),
    *("algorithm.num_minibatches=1", "actors.sampling.max_tokens=6"),
)
WARM_START = ("policy.warm_start.steps=2", "policy.warm_start.batch_size=4")


def commands_of(page: str) -> list[str]:
    """Those of this program, alone or in a Ray job, in their order; without those that are shown with an answer."""
    found = [command.text for command in commands(page).values() if command.answer is None]
    return [text for text in found if text.startswith(("rollcall ", "ray job "))]


def words_of(command: str) -> list[str]:
    """Without its comment, and without what is piped or put elsewhere."""
    return [*shlex.split(re.split(r"\s[|>&]\s", re.sub(r"\s#.*", "", command))[0])]


@pytest.mark.parametrize("page", NAMES)
def test_a_page_shows_commands_and_settings_that_there_are(page: str) -> None:
    for command in commands_of(page):
        program, *words = words_of(command)
        if program != "rollcall" or "--version" in words or any(word.startswith("[") for word in words):
            continue
        parsed = build_parser().parse_args(words)
        recipe = getattr(parsed, "recipe", None)
        if isinstance(recipe, str) and recipe in shipped_recipes() | preference_recipes():
            refuse_unknown(recipe, getattr(parsed, "overrides", []))


def test_the_readme_has_the_commands_that_are_run_here() -> None:
    """Who adds one to the README adds it here; none is left out of one of the two lists."""
    found = [" ".join(words_of(command)) for command in commands_of("README.md")]
    assert sorted(found) == sorted([*CONTROL, *LANGUAGE, *ELSEWHERE])


CONTROL = {
    "rollcall recipes": (),
    "rollcall train cartpole-ppo seed=1 actors.num=2": SHORT_CONTROL,
    "rollcall train my_recipe.yaml": SHORT_CONTROL,
    "rollcall train cartpole-ppo env=my_module:make_env": SHORT_CONTROL,
    "rollcall config cartpole-ppo": (),
    "rollcall doctor": (),
    "rollcall new env my_env": (),
    "rollcall eval runs/cartpole-ppo --video out.gif": ("--episodes", "2"),
    "rollcall report runs/cartpole-ppo": (),
    "rollcall runs": (),
    "rollcall sweep cartpole-ppo --seeds 3": (),
    "rollcall audit runs/cartpole-ppo": (),
    "rollcall resume runs/cartpole-ppo": (),
    "rollcall export runs/cartpole-ppo policy.onnx": (),
}
# What comments of those lines say that one can do as well.
ALSO = {
    "rollcall config cartpole-ppo": (
        "rollcall config --explain algorithm.discount",
        "rollcall config --schema",
    ),
    "rollcall new env my_env": ("rollcall check my_env:MyEnv",),
    "rollcall runs": ("rollcall compare runs/cartpole-ppo runs/cartpole-ppo-3",),
    "rollcall resume runs/cartpole-ppo": ("rollcall resume runs/cartpole-ppo total_env_steps=6_000",),
}
LANGUAGE = {
    "rollcall train arithmetic-grpo": (*SHORT_LANGUAGE, *WARM_START),
    "rollcall train my_math.yaml reward=my_module:score": SHORT_LANGUAGE,
    "rollcall train my_math.yaml policy.lora.rank=16": SHORT_LANGUAGE,
    "rollcall sft arithmetic-grpo": ("eval.num_rows=4", *WARM_START),
    "rollcall train synthetic-dpo": (
        *("total_learner_steps=1", "data.generate.pairs=20", "data.generate.eval_pairs=4", "batch_size=4"),
        *("kl_prompts=0", *WARM_START),
    ),
    "rollcall export runs/arithmetic-grpo": (),
    "rollcall plan arithmetic-grpo policy.model=DIR": (),
}
# Run by other tests: a Ray cluster's jobs, trackers' stores.
ELSEWHERE = (
    "ray job submit --working-dir . -- rollcall train cartpole-ppo name=mine",  # end_to_end/test_jobs.py
    "rollcall train my_math.yaml recorders=[wandb]",  # deploy/test_trackers.py
)
MODULE = """\
import gymnasium as gym

def make_env(**settings):
    return gym.make("CartPole-v1", **settings)

def score(completion, answer):
    return float(answer in completion)
"""
PROBLEMS = "".join(f'{{"prompt": "{a}+{b}=", "answer": "{a + b}"}}\n' for a in range(5) for b in range(5))


def recipes_of_the_readme() -> dict[str, str]:
    """The two that it shows, by what they are called."""
    blocks = re.findall(r"((?:^    \w+:.*\n)+)", README, re.MULTILINE)
    texts = ["".join(line[4:] + "\n" for line in block.splitlines()) for block in blocks]
    return {text.split()[1]: text for text in texts if text.startswith("name: ")}


def run(folder: Path, command: str, *more: str) -> str:
    words = [*words_of(command), *more]
    if "-m" not in words and words[0] == "rollcall":
        words = [sys.executable, "-m", "rollcall.deploy.cli", *words[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.long
def test_the_readmes_commands_for_control_run_in_their_order_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(MODULE)
    (tmp_path / "my_recipe.yaml").write_text(recipes_of_the_readme()["cartpole-ppo"])
    for command in map(" ".join, map(words_of, commands_of("README.md"))):
        if command in CONTROL:
            if "export" in command:
                require("onnxruntime")  # the last of them
            more = SHORT_CONTROL if " sweep " in command else CONTROL[command]
            output = run(tmp_path, _settings_before_options(command, more))
            assert output.strip()
            for also in ALSO.get(command, ()):
                assert run(tmp_path, also).strip()
    assert (tmp_path / "out.gif").is_file() and (tmp_path / "policy.onnx").is_file()


def _settings_before_options(command: str, more: tuple[str, ...]) -> str:
    """Settings stand before the options, as the command line asks for."""
    head, dash, options = command.partition(" --")
    settings, others = [word for word in more if "=" in word], [word for word in more if "=" not in word]
    return " ".join([head, *settings, *([f"{dash.strip()}{options}"] if dash else []), *others])


@pytest.mark.long
def test_the_readmes_python_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(MODULE)
    (code,) = re.findall(r"((?:^    (?:import rollcall|if __name__|    ).*\n)+)", README, re.MULTILINE)
    lines = [line[4:] for line in code.splitlines()]
    assert lines[0] == "import rollcall" and "seed=1" in code
    short = "\n".join(lines).replace("seed=1", "seed=1, total_env_steps=2048")
    (tmp_path / "script.py").write_text(
        f"import numpy\nobservation = numpy.zeros(4, 'float32')\n{short}\nprint(action)\n"
    )
    assert run(tmp_path, f"{sys.executable} script.py").strip() in ("0", "1")


@pytest.mark.long
@pytest.mark.parametrize("command", LANGUAGE)
def test_the_readmes_commands_for_language_run_in_an_empty_folder(command: str, tmp_path: Path) -> None:
    """Each alone, after what it needs: a run to export, a model to begin with."""
    require("vllm", "transformers", "peft")
    (tmp_path / "my_module.py").write_text(MODULE)
    (tmp_path / "problems.jsonl").write_text(PROBLEMS)
    model = (
        *("policy.init_from=runs/arithmetic-grpo", "task.num_eval_rows=4", "task.chat=false", "algorithm=grpo"),
        "actors.engine.max_model_len=64",  # the small model takes less than the README's
    )
    recipe = recipes_of_the_readme()["my-math"]
    (tmp_path / "my_math.yaml").write_text(re.sub(r"policy: .*", "policy: {}", recipe))
    if "my_math" in command or "export" in command or "plan" in command:
        run(tmp_path, "rollcall sft arithmetic-grpo name=arithmetic-grpo", *LANGUAGE["rollcall sft arithmetic-grpo"])
    if "my_math" in command:
        command += " " + " ".join(model)
    if "DIR" in command:
        run(tmp_path, "rollcall export runs/arithmetic-grpo exported")
    command = command.replace("DIR", "exported")
    assert run(tmp_path, command, *LANGUAGE.get(command, SHORT_LANGUAGE if "my_math" in command else ())).strip()
