"""Control runs on recorded sets: an expert is recorded, a clone learns from the file and does as well, a run learns on
from the clone; and what cannot be learnt from is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from rollcall.actors.control.recording import read_recorded, write_recorded
from rollcall.cluster.checkpoint import list_checkpoints, load_weights
from rollcall.deploy import load_policy
from rollcall.deploy.cli import main
from rollcall.deploy.report.run_lines import read_jsonl
from tests.experts import balances, recorded, swings
from tests.runs import TWO_STEPS

CLONE = [
    *("train", "cartpole-bc", "data.train=expert.safetensors", "data.episodes=3", "total_learner_steps=300"),
    *("eval.episodes=5", "eval.every_steps=100", "checkpoint.every_steps=100", "policy.hidden_sizes=[32]"),
    *("learner.learning_rate=5e-3", "batch_size=128"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with expert.safetensors, and runs/clone that has learnt from it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "small.yaml").write_text(TWO_STEPS)
    with chdir(folder):
        write_recorded("expert.safetensors", recorded("CartPole-v1", balances, episodes=5))
        write_recorded("pendulum.safetensors", recorded("Pendulum-v1", swings, episodes=3, steps=50))
        assert main.main([*CLONE, "name=clone"]) == 0
        yield folder


def test_a_clone_of_a_few_episodes_does_as_well_as_its_expert(work: Path) -> None:
    summary = json.loads(Path("runs/clone/summary.json").read_text())
    assert (summary["status"], summary["algorithm"]) == ("completed", "bc")
    assert summary["recorded"]["episodes"] == 3 and summary["recorded"]["held_out_episodes"] == 1
    assert summary["recorded"]["recorded_return_mean"] == 500
    assert summary["first_eval"]["mean"] < 150 < 400 < summary["final_eval"]["mean"]
    assert summary["final_eval"]["eval_loss"] < 0.5 * summary["first_eval"]["eval_loss"]
    evals = read_jsonl(Path("runs/clone/evals.jsonl"))
    assert [record["step"] for record in evals] == [0, 100, 200, 300]
    assert "bc on CartPole-v1" in Path("runs/clone/report.html").read_text()


def test_an_evaluation_of_the_command_line_is_the_runs_own(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["eval", "clone", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    final = json.loads(Path("runs/clone/summary.json").read_text())["final_eval"]
    assert (found["mean"], found["n"], found["unit"]) == (final["mean"], final["n"], "return")
    action = load_policy("runs/clone").act(np.array([0.0, 0.0, 0.1, 0.5], np.float32))
    assert int(action) == balances([0.0, 0.0, 0.1, 0.5])


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(work: Path) -> None:
    from rollcall.deploy.drive.lifecycle import carry_out
    from rollcall.deploy.kinds.beginning import new_run
    from rollcall.deploy.kinds.recipes import load_recipe

    asked = iter([False] * 150 + [True] * 1000)
    run = new_run(load_recipe("cartpole-bc", [*CLONE[2:], "name=halves"]), named="halves", explicit=True)
    assert carry_out(run, stop_requested=lambda: next(asked))["status"] == "stopped"
    assert main.main(["resume", "halves"]) == 0
    whole, halves = (load_weights(list_checkpoints(Path("runs") / name)[-1]) for name in ("clone", "halves"))
    assert (whole.version, whole.checksum) == (300, halves.checksum)


def test_a_clone_is_recorded_in_turn(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["eval", "clone", "--episodes", "2", "--record", "again.safetensors"]) == 0
    assert "recorded: again.safetensors, " in capsys.readouterr().out
    found = read_recorded("again.safetensors")
    assert (found.env, found.acted_by, found.num_episodes) == ("CartPole-v1", "greedy", 2)
    assert main.main(["eval", "clone", "--episodes", "2", "--record", "drawn.safetensors", "--stochastic"]) == 0
    assert read_recorded("drawn.safetensors").acted_by == "sampled"


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "impala", "reinforce", "trpo", "rnd", "a3c"])
def test_every_algorithm_learns_on_from_a_clone(work: Path, algorithm: str) -> None:
    settings = [f"algorithm={algorithm}", "policy.init_from=clone", "policy.hidden_sizes=[32]", f"name={algorithm}"]
    settings += ["policy.normalise_observations=false", "policy.normalise_rewards=false", "eval.episodes=5"]
    if algorithm != "ppo":  # settings of the recipe's own
        settings += [f"algorithm.name={algorithm}"]
    assert main.main(["train", "small.yaml", *settings]) == 0
    begun = dict(load_weights(list_checkpoints(Path("runs") / algorithm)[0]).tensors())
    for name, array in load_weights(list_checkpoints(Path("runs/clone"))[-1]).tensors():
        assert np.array_equal(begun[name], array)


SWING = [
    *("data.train=pendulum.safetensors", "data.episodes=2", "env=Pendulum-v1", "total_learner_steps=20"),
    *("policy.hidden_sizes=[16]", "policy.activation=relu", "eval.episodes=1"),
]
KEPT = [
    *("runtime=serial", "total_env_steps=300", "replay.learning_starts=150", "replay.batch_size=16"),
    *("policy.hidden_sizes=[16]", "policy.activation=relu", "eval.episodes=0"),
    *("checkpoint.every_steps=1", "checkpoint.keep=100"),
]


@pytest.mark.parametrize(
    ("recipe", "head", "loss"),
    [
        ("pendulum-sac", ("policy.squash=tanh", "policy.state_dependent_std=true"), "nll"),
        ("pendulum-td3", ("policy.exploration_noise=0.2",), "mse"),  # of another strength: that is free
    ],
)
def test_an_algorithm_with_kept_experience_follows_its_clone_from_the_first_step_on(
    work: Path, recipe: str, head: tuple[str, ...], loss: str
) -> None:
    """Not at random until it learns, as it would without."""
    clone = f"clone-for-{recipe}"
    assert main.main(["train", "cartpole-bc", *SWING, *head, f"algorithm.loss={loss}", f"name={clone}"]) == 0
    cloned = dict(load_weights(list_checkpoints(Path("runs") / clone)[-1]).tensors())
    warm = f"policy.warm_start={{data: pendulum.safetensors, steps: 20, batch_size: 16, loss: {loss}}}"
    for name, beginning in (("from", f"policy.init_from={clone}"), ("warm", warm)):
        run = Path("runs") / f"{name}-{recipe}"
        assert main.main(["train", recipe, *KEPT, beginning, f"name={run.name}"]) == 0
        first = dict(load_weights(list_checkpoints(run)[0]).tensors())
        assert not any("random_start" in tensor for tensor in first)
        assert cloned.keys() <= first.keys()
        if name == "from":
            assert all(np.array_equal(first[tensor], array) for tensor, array in cloned.items())


def test_values_of_actions_are_learnt_on_and_what_explores_begins_anew(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*KEPT, "algorithm.epsilon_steps=200"]
    assert main.main(["train", "cartpole-dqn", *settings, "name=values"]) == 0
    begun = ["policy.init_from=values", "policy.q.epsilons=2", "name=values-on"]
    assert main.main(["train", "cartpole-dqn", *settings, *begun]) == 0
    last = dict(load_weights(list_checkpoints(Path("runs/values"))[-1]).tensors())
    first = dict(load_weights(list_checkpoints(Path("runs/values-on"))[0]).tensors())
    epsilons = "actor_critic.exploration.epsilons"
    assert last[epsilons].tolist() == pytest.approx([0.04]) and first[epsilons].tolist() == [1.0, 1.0]
    values = [name for name in last if name.startswith("actor_critic.") and name != epsilons]
    assert values and all(np.array_equal(first[name], last[name]) for name in values)
    capsys.readouterr()
    refused = ["policy.init_from=values", "policy.q.dueling=true", "name=refused"]
    assert main.main(["train", "cartpole-dqn", *settings, *refused]) == 2
    assert "its policy.q.dueling is false" in capsys.readouterr().err


def test_a_continuous_clone_learns_and_keeps_what_normalises_its_observations(work: Path) -> None:
    settings = ["env=Pendulum-v1", "data.train=pendulum.safetensors", "data.episodes=2", "total_learner_steps=60"]
    settings += ["policy.normalise_observations=true", "policy.squash=tanh", "eval.episodes=1", "name=swing"]
    assert main.main(["train", "cartpole-bc", *settings]) == 0
    records = read_jsonl(Path("runs/swing/metrics.jsonl"))
    assert records[-1]["negative_log_likelihood"] < 0.5 * records[0]["negative_log_likelihood"]
    first, last = (dict(load_weights(path).tensors()) for path in list_checkpoints(Path("runs/swing"))[::2])
    statistics = [name for name in first if "observation_normaliser" in name]
    assert statistics and all(np.array_equal(first[name], last[name]) for name in statistics)
    (count,) = (array for name, array in first.items() if name.endswith("count"))
    assert int(count) == 100


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.train=none.safetensors"], "none.safetensors: No such file or directory"),
        (["data.train=small.yaml"], "small.yaml: no recorded set, or a damaged one"),
        (["data.train=pendulum.safetensors"], "pendulum.safetensors: recorded in Pendulum-v1, which shows Box"),
        (["data.episodes=5"], "data.episodes=5, and there are 4 to learn from beside 1 held out"),
        (["data.eval_fraction=0.99", "data.episodes=null"], "too few episodes (5)"),
        (["algorithm.loss=mse"], "bc has no distance between discrete actions: use nll"),
        (["policy.recurrent=gru"], "bc learns from single steps of a recorded set: use none"),
        (["algorithm=ppo"], "learns from what actors do, not from a recorded set: leave out data, or use bc"),
        (["env=Nowhere-v1"], "Nowhere"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_in_one_line_and_no_run_is_left(
    work: Path, overrides: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path("runs").iterdir())
    assert main.main([*CLONE, "name=refused", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert sorted(Path("runs").iterdir()) == before


def test_an_algorithm_for_recorded_sets_says_what_it_lacks(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "small.yaml", "algorithm=bc", "name=refused"]) == 2
    assert "learns from a recorded set: give the recipe data.train=FILE" in capsys.readouterr().err


def test_a_policy_imitates_first_where_it_is_asked_to(work: Path) -> None:
    settings = [
        "policy.warm_start={data: expert.safetensors, steps: 300, batch_size: 128, learning_rate: 5e-3}",
        "policy.hidden_sizes=[32]",
    ]
    settings += ["policy.normalise_rewards=true", "learner.learning_rate=1e-9", "eval.episodes=5"]
    assert main.main(["train", "small.yaml", "name=warm", *settings]) == 0
    summary = json.loads(Path("runs/warm/summary.json").read_text())
    assert summary["final_eval"]["mean"] > 400
    begun = dict(load_weights(list_checkpoints(Path("runs/warm"))[0]).tensors())
    for name, array in load_weights(list_checkpoints(Path("runs/warm/warm_start"))[-1]).tensors():
        assert np.array_equal(begun[name], array)
    assert main.main(["resume", "warm", "total_learner_steps=3"]) == 0  # and it does not imitate again


@pytest.mark.parametrize(
    ("warm_start", "text"),
    [
        ("{data: none.safetensors}", "policy.warm_start: none.safetensors: No such file or directory"),
        ("{data: expert.safetensors, episodes: 9}", "data.episodes=9, and there are 5 to learn from"),
        ("{data: expert.safetensors, loss: mse}", "policy.warm_start: algorithm.loss: bc has no distance"),
        ("{data: expert.safetensors}", "warm_start and init_from each say what the policy begins with"),
    ],
)
def test_a_warm_start_that_cannot_be_made_is_refused_in_one_line(
    work: Path, warm_start: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path("runs").iterdir())
    settings = [f"policy.warm_start={warm_start}", "policy.hidden_sizes=[32]", "name=refused"]
    settings += ["policy.init_from=clone"] if "init_from" in text else []
    assert main.main(["train", "small.yaml", *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert sorted(Path("runs").iterdir()) == before
