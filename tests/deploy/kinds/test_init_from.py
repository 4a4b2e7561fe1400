"""A run that begins with the weights of another: the same policy with its statistics, new books; refused where the
policy is another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.checkpoint import list_checkpoints, load_weights
from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.drive.training import train
from rollcall.deploy.kinds.beginning import Beginning
from rollcall.deploy.kinds.beginning import beginning_of as beginning_of_recipe
from rollcall.deploy.kinds.recipes import Recipe, kind_of_config, load_config
from tests import EARLIER
from tests.needs import require
from tests.runs import trained


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a run of two steps to begin from, runs/source."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "own_env.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "class Own(gym.Env):\n"
        "    observation_space = gym.spaces.Box(-9, 9, (4,), np.float32)\n"
        "    action_space = gym.spaces.Discrete(3)\n"
        "    def reset(self, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        return np.zeros(4, np.float32), {}\n"
        "    def step(self, action):\n"
        "        return np.zeros(4, np.float32), 0.0, True, False, {}\n"
        "def make():\n"
        "    return Own()\n"
    )
    with trained(folder, "source"):
        yield folder


def beginning_of(config: RootConfig) -> Beginning | None:
    return beginning_of_recipe(Recipe(kind_of_config(config), config))


def tensors(checkpoint: Path) -> dict[str, Any]:
    return {name: np.array(array) for name, array in load_weights(checkpoint).tensors()}


def test_a_run_begins_with_the_weights_and_the_statistics_of_another_and_with_books_of_its_own(
    work: Path, tmp_path: Path
) -> None:
    assert main.main(["train", "small.yaml", "name=second", "policy.init_from=source", "seed=5"]) == 0
    source, second = Path("runs/source"), Path("runs/second")
    ended = tensors(list_checkpoints(source)[-1])
    begun = tensors(list_checkpoints(second)[0])
    assert list_checkpoints(second)[0].name == "step-00000000"
    assert begun.keys() == ended.keys()
    assert all(np.array_equal(begun[name], ended[name]) for name in ended)
    assert any("observation_normaliser" in name and name.endswith("count") and begun[name] > 0 for name in begun)
    assert audit_run(second) == []
    origin = json.loads((second / "run.json").read_text())["init_from"]
    assert origin["checkpoint"].endswith("runs/source/checkpoints/step-00000002")
    assert (origin["policy_version"], origin["weights"]) == (2, load_weights(list_checkpoints(source)[-1]).checksum)
    assert "begun from" in (second / "report.html").read_text()
    # From then on the other run is not needed.
    shutil.move(source, tmp_path / "away")
    try:
        assert main.main(["resume", "second", "total_learner_steps=3"]) == 0
    finally:
        shutil.move(tmp_path / "away", source)


def test_one_checkpoint_may_be_named_and_python_takes_it_too(work: Path) -> None:
    first = list_checkpoints(Path("runs/source"))[1]
    summary = train("small.yaml", name="third", total_learner_steps=1, policy={"init_from": str(first)})
    begun = tensors(list_checkpoints(Path(summary["run_directory"]))[0])
    assert all(np.array_equal(begun[name], array) for name, array in tensors(first).items())


def test_a_policy_without_a_critic_begins_one_that_learns_with_a_fresh_critic(work: Path) -> None:
    for name, settings in (
        ("actor", ["algorithm=reinforce", "algorithm.baseline=none", "total_env_steps=60"]),
        ("critic", ["policy.init_from=actor"]),
    ):
        assert main.main(["train", "small.yaml", f"name={name}", *settings]) == 0
    ended, begun = (tensors(list_checkpoints(Path("runs") / name)[at]) for name, at in (("actor", -1), ("critic", 0)))
    shared = ended.keys() & begun.keys()
    assert not any("value" in name for name in ended) and any("value" in name for name in begun)
    assert all(np.array_equal(begun[name], ended[name]) for name in shared if name.startswith("actor_critic."))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["policy.init_from=sauce"], "policy.init_from = 'sauce': no run 'sauce' (command line); did you mean source?"),
        (
            ["policy.hidden_sizes=[16]"],
            "its policy.hidden_sizes is [8], and this run's [16]: write policy.hidden_sizes=[8]",
        ),
        (["policy.activation=relu"], 'its policy.activation is "tanh", and this run\'s "relu"'),
        (["policy.normalise_observations=false"], "write policy.normalise_observations=true"),
        (["env=Acrobot-v1"], "and this env shows Box"),
        (["env=own_env:make"], "its actions are Discrete(2), and this env takes Discrete(3)"),
    ],
)
def test_a_policy_that_is_another_one_is_refused_in_one_line_and_no_run_is_left(
    work: Path, overrides: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(work))
    before = sorted(Path("runs").iterdir())
    assert main.main(["train", "small.yaml", "name=refused", "policy.init_from=source", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert sorted(Path("runs").iterdir()) == before


def test_weights_of_the_other_half_are_refused(work: Path) -> None:
    with pytest.raises(BadInput, match=r"^policy\.init_from = .*a language run"):
        beginning_of(load_config("small.yaml", [f"policy.init_from={EARLIER / 'language'}"]))


def language(*overrides: str) -> LanguageConfig:
    require("vllm")
    settings = ["runtime=serial", "task.digits=1", "task.num_eval_rows=4", f"policy.init_from={EARLIER / 'language'}"]
    config = load_config("arithmetic-grpo", [*settings, *overrides])
    assert isinstance(config, LanguageConfig)
    return config


def test_another_runs_language_model_takes_the_place_of_the_recipes_model_and_warm_start(tmp_path: Path) -> None:
    config = language()
    assert config.policy.warm_start is None
    beginning = beginning_of(config)
    assert beginning is not None
    beginning.loaded.write_beginning(tmp_path, beginning.origin)
    from safetensors.numpy import load_file

    ended = tensors(list_checkpoints(EARLIER / "language")[-1])
    begun = load_file(tmp_path / "init_from" / "model.safetensors")
    assert {f"policy.model.{name}" for name in begun} == set(ended)
    assert all(np.array_equal(array, ended[f"policy.model.{name}"]) for name, array in begun.items())
    assert (tmp_path / "init_from" / "tokenizer.json").is_file()


def test_a_warm_start_on_top_of_it_is_made_where_it_is_asked_for_and_two_models_are_not() -> None:
    assert language("policy.warm_start={steps: 3}").policy.warm_start is not None
    with pytest.raises(BadInput, match=r"policy\.model = 'some/model'.*policy\.init_from gives the model"):
        language("policy.model=some/model")


def test_a_tokenizer_that_lacks_what_the_task_writes_is_refused() -> None:
    with pytest.raises(BadInput, match=r"its tokenizer does not know '\*'"):
        beginning_of(language("task.operations=[+, '*']"))
