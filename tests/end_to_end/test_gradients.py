"""Runs on Ray whose actors compute gradients: equal to a serial one, and none the worse for an actor's death."""

from __future__ import annotations

import pytest

from tests.runs import SMALL, Bench, Run

A3C = tuple(setting for setting in SMALL if not setting.startswith("algorithm."))


def train(bench: Bench, *overrides: str, name: str = "run") -> Run:
    return bench.start("train", "cartpole-a3c", *A3C, *overrides, f"name={name}", name=name)


@pytest.mark.long
def test_at_lag_0_a_run_on_ray_ends_with_the_weights_of_a_serial_one(bench: Bench) -> None:
    settings = ("max_policy_lag=0", "algorithm.gradients_per_step=4", "total_learner_steps=12")
    serial = train(bench, *settings, "runtime=serial", name="serial").wait()
    run = train(bench, *settings, "actors.num=2").wait()
    assert run.process.returncode == 0, run.errors
    assert run.summary["weights_hash"] == serial.summary["weights_hash"]


@pytest.mark.long
def test_a_killed_actor_loses_the_gradients_that_it_was_asked_for_and_nothing_else(bench: Bench) -> None:
    run = train(bench, "actors.num=2", "total_learner_steps=300")
    run.wait_for_step(30)
    run.kill("GymActorProcess")
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert bench.audit()[0] == 0
    books = run.summary["ledger"]
    lost = books["dropped_by_reason"]
    assert lost.keys() == {"actor_died"} and 1 <= lost["actor_died"] <= 4  # max_policy_lag + 1 under way
    assert books["committed"] == 300 and books["issued"] == 300 + lost["actor_died"]
    assert run.summary["restarts"] == 1
    steps = run.steps()
    assert [record["step"] for record in steps] == list(range(300))
    assert max(record["lag_max"] for record in steps) == run.summary["policy_lag"]["max"] <= 3
    assert {record["epoch"] for record in steps} == {1}, "nothing was taken back"
