"""Runs with kept experience: the same bits on Ray, and after a kill; books that balance; bad settings in one line."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.sampled import SAMPLED_NAME, Misread, read_sampled
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.run_config import cpp_compiler
from rollcall.deploy.kinds.control.factory import ControlFactory
from tests.runs import Bench, Run, config_of

# Two shards of two envs, 32 env steps and so 8 gradient steps a learner step; rings that are full after a third of it.
SMALL = (
    "runtime=ray",
    "total_env_steps=960",
    "max_policy_lag=0",
    "policy.hidden_sizes=[16]",
    "actors.num_envs=4",
    "actors.num_shards=2",
    "actors.unroll_length=8",
    "learner.compile=off",
    "eval.episodes=0",
    "metrics.enabled=false",
)
REPLAY = "replay={capacity: 320, batch_size: 16, updates_per_env_step: 0.25, learning_starts: 64, prioritised: %s}"
RECIPES = {
    "cartpole-dqn": (REPLAY % "{}", "algorithm.target_every=20", "algorithm.epsilon_steps=500"),
    # Three optimisers, target copies, a temperature; its gradient step is one program, where there is a compiler.
    "pendulum-sac": (REPLAY % "null", f"learner.compile={'on' if cpp_compiler() else 'off'}"),
}


def _train(bench: Bench, recipe: str, *overrides: str) -> Run:
    return bench.start("train", recipe, *SMALL, *RECIPES[recipe], *overrides, "name=run")


def _final(run: Run) -> str:
    run.wait()
    assert run.process.returncode == 0, run.errors
    return str(run.summary["weights_hash"])


@pytest.fixture(scope="module", params=RECIPES)
def serial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """A recipe, and its run that nobody interrupts."""
    recipe: str = request.param
    with closing(Bench(tmp_path_factory.mktemp("serial"))) as bench:
        run = _train(bench, recipe, "runtime=serial")
        _final(run)
        assert audit_run(run.directory) == []
    return recipe, run


def test_a_run_counts_its_gradient_steps_and_says_what_they_were_drawn_from(serial: tuple[str, Run]) -> None:
    _, run = serial
    steps = run.steps()
    assert len(steps) == 30
    done = np.cumsum([step["gradient_steps"] for step in steps])
    assert done.tolist() == [max(0, step["env_steps"] - 64) // 4 for step in steps], "a quarter, from the 64th on"
    assert 0 < steps[-1]["replay_age_env_steps"] < 320
    drawn = list(read_sampled(run.directory / "logs" / SAMPLED_NAME))
    assert len(drawn) == 30 and not any(isinstance(line, Misread) for line in drawn)


def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(bench: Bench, serial: tuple[str, Run]) -> None:
    recipe, uninterrupted = serial
    run = _train(bench, recipe, "runtime=serial", "checkpoint.every_steps=4")
    run.wait_for_step(14)
    run.process.kill()
    run.wait()
    assert not (run.directory / "summary.json").exists(), "it was over before it was killed"
    assert _final(bench.start("resume", "run")) == uninterrupted.summary["weights_hash"]
    assert audit_run(run.directory) == []


@pytest.mark.long
def test_a_run_on_ray_ends_with_the_weights_of_a_serial_one(bench: Bench, serial: tuple[str, Run]) -> None:
    recipe, in_one_process = serial
    run = _train(bench, recipe, "actors.num=2")
    assert _final(run) == in_one_process.summary["weights_hash"]
    assert audit_run(run.directory) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["replay.capacity=10"], "capacity=10 holds no batch of batch_size=64: raise it"),
        (["replay.updates_per_env_step=0"], "replay.updates_per_env_step = 0.*greater than 0"),
        (["replay.updates_per_env_step=65"], "replay.updates_per_env_step = 65.*less than or equal to 64"),
        (
            ["replay.learning_starts=99", "replay.capacity=300"],
            "replay.capacity = 300.*less than two learner steps' experience.*raise it to 520",
        ),
        (["replay.learning_starts=99999", "total_env_steps=5000"], "replay.learning_starts = 99999.*ends after 5000"),
        (["policy.q=null"], "policy.q = null.*dqn learns the values of actions"),
        (["env=Pendulum-v1"], "q: values of single actions are had of a Discrete space alone"),
        (["replay=null"], "replay = null.*learns from kept experience"),
        (["policy.normalise_rewards=true"], "policy.normalise_rewards = true.*of another scale"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        config_of("cartpole-dqn", overrides)
    assert len(str(error.value).splitlines()) == 1


def test_a_ring_that_memory_has_no_room_for_is_in_the_plan(tmp_path: Path) -> None:
    """By which a run is refused; on disk it takes none."""
    config = config_of("cartpole-dqn", ["replay.capacity=10000000000"])
    (role,) = [role for role in ControlFactory(config, tmp_path).needs().roles if role.unit == "learner"]
    (ring,) = [part for part in role.parts if part.name == "replay"]
    assert ring.size_bytes > 10**10 * (4 * 4 + 24) and "replay.capacity" in ring.shrink
    needs = ControlFactory(config_of("cartpole-dqn", ["replay.storage=disk"]), tmp_path).needs()
    assert needs.disk_bytes > 2 * 100_000 * 40
    assert not any(part.name == "replay" for role in needs.roles for part in role.parts)


def test_an_algorithm_that_keeps_nothing_has_no_replay(tmp_path: Path) -> None:
    assert config_of("cartpole-ppo").replay is None
    with pytest.raises(BadInput, match="ppo learns from fresh experience and keeps none: remove the section"):
        config_of("cartpole-ppo", ["replay={}"])
