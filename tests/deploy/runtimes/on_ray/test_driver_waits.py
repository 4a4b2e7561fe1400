"""While the driver waits for a member of the run to start, to publish, to save or to come back, everybody else goes on,
and a stop is obeyed at the next poll. With stand-ins for Ray and the clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError

from rollcall.cluster.errors import BudgetSpent, RollcallError
from rollcall.cluster.messages.attempt import Header, Produced, Timing
from rollcall.cluster.messages.events import (
    Event,
    LearnerLost,
    LearnerSaved,
    StepDone,
    TicketFailed,
    TicketScored,
    VersionMade,
)
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.deploy.runtimes.on_ray.faults import CONTROL_TIMEOUT_S, START_TIMEOUT_S
from rollcall.deploy.runtimes.on_ray.learner import RayLearner
from rollcall.deploy.runtimes.on_ray.parameter_server import RayParameterServer
from rollcall.deploy.runtimes.on_ray.scoring_calls import RayScoring
from tests.deploy.runtimes.on_ray.fake_ray import FakeRay, Handle, Spawner, raised


class Stage:
    """A learner of so many processes, and its parameter server."""

    def __init__(self, num_processes: int = 1, *, max_restarts: int = 10) -> None:
        self.ray = FakeRay()
        self.calls = self.ray.calls()
        self.failed_starts: list[str] = []
        self.servers, self.processes = Spawner("server"), Spawner("learner")
        budget = self.ray.budget("the parameter server", max_restarts=max_restarts)
        self.server = RayParameterServer(self.servers, budget, self.calls, tell_failed=self.failed_starts.append)
        self.learner = RayLearner(
            lambda: [self.processes() for _ in range(num_processes)],
            self.ray.budget("the learner", max_restarts=max_restarts),
            self.calls,
            self.server,
            device="cpu",
            sends_weights=False,
            tell_up=lambda member, seconds: None,
            tell_failed=self.failed_starts.append,
        )

    def poll(self) -> list[Event]:
        self.server.tend()
        return self.learner.tend() or self.calls.wait(0.2)

    def pass_s(self, seconds: float) -> list[Event]:
        self.ray.now += seconds
        return [*self.poll(), *self.poll()]

    def begin(self, *, is_large: bool = False) -> Handle:
        self.learner.start(None)
        self.learner.publish_initial(epoch=1, version=0)
        self.processes.newest.first("start").answers("node")
        self.poll()
        self.servers.newest.first("publish").answers(is_large)
        self.poll()
        assert self.learner.is_up
        return self.processes.newest

    def step(self, number: int) -> StepOrder:
        order = StepOrder(number, 1, 0.0)
        self.learner.submit(order, ["a trajectory"])
        return order


def report(order: StepOrder, *, interrupted: bool = False) -> StepReport:
    return StepReport(order.step, order.epoch, False, 0.1, 0.0, 1e-3, interrupted=interrupted)


def test_a_step_is_done_when_its_weights_are_published() -> None:
    stage = Stage()
    learner = stage.begin()
    order = stage.step(0)
    learner.first("step").answers(report(order))
    assert stage.poll() == [VersionMade(1, 1)], "its weights are on their way, and it is not done"
    stage.ray.now += 2
    stage.servers.newest.first("publish").answers(1)
    assert stage.poll() == [StepDone(report(order), publish_s=2)]


def test_small_weights_go_to_the_parameter_server_as_they_are_and_large_ones_with_their_reference() -> None:
    for is_large in (False, True):
        stage = Stage()
        learner = stage.begin(is_large=is_large)
        for number in range(2):
            order = stage.step(number)
            learner.first("step").answers(report(order))
            stage.poll()
            stage.servers.newest.first("publish").answers(is_large)
            stage.poll()
        first, *others = [call.arguments for call in stage.servers.newest.asked if call.method == "publish"]
        assert first[1] == [first[0]], "how large they are is not known yet"
        assert [references == ([weights] if is_large else []) for weights, references, _ in others] == [True, True]


def test_steps_end_in_their_order_each_with_its_own_weights() -> None:
    stage = Stage()
    learner = stage.begin()
    orders = [stage.step(0), stage.step(1)]
    for order in orders:
        learner.first("step").answers(report(order))
    assert stage.poll() == [VersionMade(1, 1), VersionMade(1, 2)]
    assert len(stage.servers.newest.asked_for("publish")) == 2, "the initial one, and one more"
    events = []
    for version in (1, 2):
        stage.servers.newest.first("publish").answers(version)
        events += stage.poll()
    assert [event.report.step for event in events if isinstance(event, StepDone)] == [0, 1]


def test_a_parameter_server_that_dies_is_replaced_and_gets_the_weights_that_it_lacked() -> None:
    stage = Stage()
    learner = stage.begin()
    order = stage.step(0)
    learner.first("step").answers(report(order))
    stage.poll()
    stage.servers.newest.dies()
    assert stage.poll() == [] and not stage.server.is_up
    assert stage.server.doing() == ["the parameter server to be started again"]
    stage.pass_s(1)
    assert len(stage.servers.handles) == 2 and stage.server.restarts == 1
    stage.servers.newest.first("publish").answers(1)
    assert [type(event) for event in stage.poll()] == [StepDone]


def test_one_that_had_all_weights_already_is_missed_when_somebody_asks_for_it() -> None:
    stage = Stage()
    stage.begin()
    stage.server.check()
    assert not stage.server.is_up, "until it has answered"
    stage.servers.newest.dies()
    stage.poll()
    stage.pass_s(1)
    assert len(stage.servers.handles) == 2 and len(stage.servers.newest.asked_for("publish")) == 1


def test_one_that_does_not_answer_in_time_is_replaced_too() -> None:
    stage = Stage()
    stage.begin()
    stage.server.check()
    stage.pass_s(CONTROL_TIMEOUT_S + 1)
    stage.pass_s(1)
    assert stage.servers.handles[0].killed and len(stage.servers.handles) == 2


def test_a_parameter_server_that_dies_too_often_ends_the_run() -> None:
    stage = Stage(max_restarts=1)
    stage.begin()
    stage.server.check()
    stage.servers.newest.dies()
    stage.poll()
    stage.pass_s(1)
    stage.servers.newest.dies()
    with pytest.raises(BudgetSpent, match="the parameter server failed 2 times"):
        stage.pass_s(1)


def test_a_stop_while_weights_are_published_ends_the_step_at_the_next_poll() -> None:
    stage = Stage()
    learner = stage.begin()
    order = stage.step(0)
    learner.first("step").answers(report(order))
    stage.poll()
    stage.servers.newest.dies()
    stage.poll()
    stage.learner.interrupt()
    (event,) = stage.poll()
    assert isinstance(event, StepDone) and event.report == report(order)
    stage.pass_s(1)
    stage.servers.newest.first("publish").answers(1)
    assert stage.poll() == [], "it has ended already"


def test_a_stop_while_the_learner_starts_gives_its_steps_back_at_the_next_poll() -> None:
    stage = Stage()
    stage.learner.start(None)
    order = stage.step(0)
    stage.learner.interrupt()
    (event,) = stage.poll()
    assert isinstance(event, StepDone) and event.report.interrupted and event.report.step == order.step
    assert stage.processes.newest.asked_for("step") == []


def test_steps_that_come_while_the_learner_starts_are_done_once_it_is_up() -> None:
    stage = Stage()
    stage.learner.start(None)
    stage.learner.publish_initial(epoch=1, version=0)
    stage.step(0)
    assert stage.learner.doing() == ["the learner to start"] and stage.poll() == []
    assert stage.processes.newest.asked_for("step") == stage.processes.newest.asked_for("weights") == []
    stage.processes.newest.first("start").answers("node")
    stage.poll()
    assert [call.method for call in stage.processes.newest.asked] == ["start", "weights", "step"]


def test_processes_of_one_learner_meet_where_the_first_says_and_a_step_takes_all_of_them() -> None:
    stage = Stage(2)
    stage.learner.start(None)
    one, two = stage.processes.handles
    assert two.asked == []
    one.first("address").answers("host:1")
    stage.poll()
    assert one.asked_for("start") == two.asked_for("start") == ["host:1"]
    one.first("start").answers("node")
    stage.poll()
    assert not stage.learner.is_up
    two.first("start").answers("node")
    stage.poll()
    assert stage.learner.is_up
    order = stage.step(0)
    one.first("step").answers(report(order))
    stage.poll()
    two.dies()
    (event,) = stage.poll()
    assert isinstance(event, LearnerLost) and one.killed and two.killed


def test_a_learner_that_does_not_start_in_time_ends_the_run_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollcall.deploy.runtimes.on_ray.learner.no_room_for", lambda name: f"{name}: no room")
    stage = Stage()
    stage.learner.start(None)
    assert stage.pass_s(START_TIMEOUT_S - 1) == []
    with pytest.raises(RollcallError, match="the learner: no room"):
        stage.pass_s(2)


def test_a_learner_that_is_killed_while_it_starts_is_started_again_and_asked_what_it_was_to_be_asked() -> None:
    stage = Stage()
    stage.learner.start(Path("step-00000002"))
    stage.learner.publish_initial(epoch=2, version=2)
    stage.step(2)
    stage.processes.newest.dies()
    assert stage.poll() == [] and stage.learner.doing() == ["the learner to be started again"]
    assert stage.processes.newest.killed and len(stage.failed_starts) == 1
    stage.pass_s(1)
    again = stage.processes.newest
    assert len(stage.processes.handles) == 2 and stage.learner.failed_starts == 1
    assert again.asked[0].arguments[2] == Path("step-00000002")
    again.first("start").answers("node")
    stage.poll()
    assert [call.method for call in again.asked] == ["start", "weights", "step"]


def test_a_learner_that_is_killed_at_every_start_ends_the_run_when_its_budget_is_spent() -> None:
    stage = Stage(max_restarts=2)
    stage.learner.start(None)
    for _ in range(2):
        stage.processes.newest.dies()
        stage.poll()
        stage.pass_s(2)
    stage.processes.newest.dies()
    with pytest.raises(BudgetSpent, match="the learner failed 3 times"):
        stage.poll()


def test_a_learner_whose_code_raises_while_it_starts_ends_the_run_at_once() -> None:
    stage = Stage()
    stage.learner.start(None)
    stage.processes.newest.first("start").answers(raised(ValueError("no such model")))
    with pytest.raises(RollcallError, match="the learner did not start: no such model"):
        stage.poll()


@pytest.mark.parametrize("died", [True, False])
def test_where_one_of_several_learner_processes_raises_a_dead_one_among_them_is_looked_for_first(died: bool) -> None:
    stage = Stage(2)
    stage.learner.start(None)
    one, two = stage.processes.handles
    one.first("address").answers("host:1")
    stage.poll()
    one.first("start").answers(raised(RuntimeError("connection closed by peer")))
    assert stage.poll() == []
    one.first("is_here").answers()
    if died:
        two.dies()
        assert stage.poll() == []
        stage.pass_s(1)
        assert len(stage.processes.handles) == 4
    else:
        two.first("is_here").answers()
        with pytest.raises(RollcallError, match="the learner did not start: connection closed by peer"):
            stage.poll()


def test_a_learner_that_dies_is_started_again_while_the_driver_goes_on() -> None:
    stage = Stage()
    stage.begin().dies()
    order = stage.step(3)
    stage.processes.newest.dies()
    (event,) = stage.poll()
    assert isinstance(event, LearnerLost) and event.detail.startswith("the learner died (")
    stage.learner.start(Path("step-00000002"))
    stage.learner.publish_initial(epoch=2, version=2)
    stage.learner.submit(order, [])
    assert stage.poll() == [] and max(stage.ray.waited_s) <= 0.2
    stage.processes.newest.first("start").answers("node")
    stage.poll()
    stage.processes.newest.first("step").answers(report(order))
    stage.poll()
    for version in (2, 4):
        stage.servers.newest.first("publish").answers(version)
        events = stage.poll()
    assert events == [StepDone(report(order))]


def test_what_the_learner_saves_is_answered_or_it_is_lost() -> None:
    stage = Stage()
    learner = stage.begin()
    stage.learner.save(Path("here"), epoch=1, version=0)
    assert stage.poll() == []
    learner.first("save").answers()
    assert stage.poll() == [LearnerSaved()]
    stage.learner.save(Path("here"), epoch=1, version=0)
    learner.dies()
    assert [type(event) for event in stage.poll()] == [LearnerLost]


def test_an_idle_learner_that_has_died_is_found_out_when_it_is_asked() -> None:
    stage = Stage()
    learner = stage.begin()
    stage.learner.check()
    learner.dies()
    assert [type(event) for event in stage.poll()] == [LearnerLost]


def produced(number: int) -> Produced:
    return Produced(Header(number, 1, 1), 0, 0, Timing(), num_steps=5)


def test_a_scoring_process_that_dies_is_asked_again_after_a_back_off_that_blocks_nobody() -> None:
    ray = FakeRay()
    calls, spawn, failed_starts = ray.calls(), Spawner("scoring"), list[str]()
    scoring = RayScoring(spawn, ray.budget("the scoring process"), calls, tell_failed=failed_starts.append)
    scoring.submit(produced(0), "a")
    spawn.newest.first("score").answers(ActorDiedError())
    assert calls.wait(0.2) == []
    scoring.submit(produced(1), "b")
    scoring.tend()
    assert len(failed_starts) == 1, "it had not answered yet"
    assert len(spawn.handles) == 1 and scoring.restarts == 1, "its back-off is not over"
    ray.now += 1
    scoring.tend()
    assert [item.header.ticket_id for item in spawn.newest.asked_for("score")] == [0, 1]
    spawn.newest.first("score").answers(produced(0))
    (event,) = calls.wait(0.2)
    assert isinstance(event, TicketScored) and event.produced.header.ticket_id == 0
    assert scoring.doing() == ["the reward service on 1 trajectories for 1 s"]


def test_what_ray_says_in_a_thousand_characters_of_scoring_is_a_line() -> None:
    ray = FakeRay()
    calls, spawn = ray.calls(), Spawner("scoring")
    scoring = RayScoring(spawn, ray.budget("the scoring process"), calls, tell_failed=print)
    scoring.submit(produced(0), "a")
    scoring.submit(produced(1), "b")
    spawn.newest.first("score").answers(ObjectLostError("00ffffff", b"10.0.0.2:1", "call site\n" * 40))
    (event,) = calls.wait(0.2)
    assert isinstance(event, TicketFailed) and (event.reason, event.header.ticket_id) == ("object_lost", 0)
    assert event.detail == "its trajectory was lost, with whoever held it, before it was scored"
    spawn.newest.first("score").answers(raised(KeyError("answer\n" * 200)))
    with pytest.raises(RollcallError) as ended:
        calls.wait(0.2)
    said = str(ended.value)
    assert said.startswith("scoring failed: KeyError('answer") and len(said) < 340 and "\n" not in said
