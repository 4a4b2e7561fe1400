"""What an evaluator was asked for outlives it, and one that cannot be had ends no run. With stand-ins for Ray and the
clock."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError

from rollcall.cluster.messages.events import EvalDone, Event
from rollcall.deploy.runtimes.on_ray.deaths import Deaths
from rollcall.deploy.runtimes.on_ray.evaluator import MAX_ASKED, RayEvaluator
from rollcall.deploy.runtimes.on_ray.trainer_calls import RayTrainerCalls
from rollcall.deploy.runtimes.preference_gate import TrainerLost
from tests.deploy.runtimes.on_ray.fake_ray import FakeRay, Spawner, raised


class Stage:
    def __init__(self, *, max_restarts: int = 10) -> None:
        self.ray = FakeRay()
        self.calls = self.ray.calls()
        self.spawn = Spawner("evaluator")
        self.failed_starts: list[str] = []
        self.evaluator = RayEvaluator(
            self.spawn,
            self.ray.budget("the evaluator", max_restarts=max_restarts),
            self.calls,
            episodes=5,
            deaths=Deaths(),
            tell_failed=self.failed_starts.append,
        )

    def pass_s(self, seconds: float) -> list[Event]:
        self.ray.now += seconds
        self.evaluator.tend()
        return self.calls.wait(0.2)


def test_an_evaluator_that_is_killed_while_it_starts_is_started_again_and_asked_again() -> None:
    stage = Stage()
    assert stage.spawn.handles == [], "not before it is needed"
    stage.evaluator.submit(step=3, env_steps=30, weights="weights of 3")
    stage.spawn.newest.dies()
    assert stage.pass_s(0) == [] and stage.evaluator.pending and len(stage.spawn.handles) == 1
    stage.evaluator.submit(step=4, env_steps=40, weights="weights of 4")
    stage.pass_s(1)
    assert stage.spawn.newest.asked_for("evaluate") == ["weights of 3", "weights of 4"]
    stage.spawn.newest.first("evaluate").answers("a report")
    assert stage.pass_s(0) == [EvalDone(3, 30, "a report")]  # type: ignore[arg-type]
    stage.spawn.newest.first("evaluate").answers("another")
    stage.pass_s(0)
    assert not stage.evaluator.pending and stage.evaluator.restarts == len(stage.failed_starts) == 1


def test_an_evaluation_at_which_it_dies_each_time_is_given_up_and_the_next_one_asked_for() -> None:
    stage = Stage()
    stage.evaluator.submit(step=3, env_steps=30, weights="weights of 3")
    events: list[Event] = []
    for _ in range(MAX_ASKED):
        stage.spawn.newest.dies()
        events += [*stage.pass_s(0), *stage.pass_s(2)]
    (event,) = events
    assert isinstance(event, EvalDone) and event.report is None and "the evaluator died" in event.error
    stage.evaluator.submit(step=4, env_steps=40, weights="weights of 4")
    assert stage.spawn.newest.asked_for("evaluate") == ["weights of 4"]


def test_an_evaluator_whose_budget_is_spent_ends_the_evaluations_and_not_the_run() -> None:
    stage = Stage(max_restarts=1)
    for step in (1, 2):
        stage.evaluator.submit(step=step, env_steps=0, weights="weights")
    stage.spawn.newest.dies()
    assert [*stage.pass_s(0), *stage.pass_s(1)] == []
    stage.spawn.newest.dies()
    events = stage.pass_s(0)
    assert [event.step for event in events if isinstance(event, EvalDone)] == [1, 2] and not stage.evaluator.pending


def test_an_evaluation_that_raises_is_told_and_not_asked_for_again() -> None:
    stage = Stage()
    stage.evaluator.submit(step=3, env_steps=30, weights="weights")
    stage.spawn.newest.first("evaluate").answers(raised(ValueError("no wheel")))
    (event,) = stage.pass_s(0)
    assert isinstance(event, EvalDone) and "no wheel" in event.error
    assert len(stage.spawn.handles) == 1


def test_a_preference_trainer_that_is_killed_while_it_starts_is_told_of_and_lost() -> None:
    ray, spawn, failed_starts = FakeRay(), Spawner("trainer"), list[str]()
    calls = ray.calls()
    trainer = RayTrainerCalls(spawn, calls, tell_failed=failed_starts.append)
    trainer.handle = spawn()  # as `start` does, and ends the one before by Ray itself
    trainer.advance(8)
    spawn.newest.first("advance").answers(ActorDiedError())
    calls.wait(0.2)
    with pytest.raises(TrainerLost, match="died"):
        trainer.report()
    assert len(failed_starts) == 1
