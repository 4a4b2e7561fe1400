"""The life of actor processes as the driver sees it: coming, up, down, and what becomes of their tickets. With
stand-ins for Ray and the clock."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from rollcall.cluster.errors import BudgetSpent, RollcallError
from rollcall.cluster.messages.attempt import Header, Produced, ShardPayload, Ticket, Timing
from rollcall.cluster.messages.events import Event, ShardStates, StateLost, TicketFailed, TicketProduced
from rollcall.deploy.runtimes.on_ray.actors import ROOM_GRACE_S, RayActors
from rollcall.deploy.runtimes.on_ray.faults import BLAMELESS_DELAY_S, CONTROL_TIMEOUT_S, START_TIMEOUT_S
from rollcall.deploy.runtimes.on_ray.tickets import faults
from tests.deploy.runtimes.on_ray.fake_ray import FakeRay, Handle, Spawner, raised


class Stage:
    """Some actors, and whoever gives them weights."""

    def __init__(self, count: int = 2, *, max_restarts: int = 10) -> None:
        self.ray = FakeRay()
        self.calls = self.ray.calls()
        self.spawn = Spawner()
        self.weights_there = True
        self.losses = 0
        self.failed_starts: list[str] = []
        self.actors = RayActors(
            [f"gym-{index}" for index in range(count)],
            spawn=self.spawn,
            make=lambda handle: handle.make.remote(),
            budget=lambda name: self.ray.budget(name, max_restarts=max_restarts),
            calls=self.calls,
            num_first=count,
            admits_together=False,
            on_loss=self.lost,
            may_start=lambda: self.weights_there,
            tell_up=lambda actor_id, seconds: None,
            tell_failed=self.failed_starts.append,
        )

    def lost(self) -> None:
        self.losses += 1

    def poll(self) -> list[Event]:
        return self.actors.tend() or self.calls.wait(0.2)

    def all_up(self) -> list[Handle]:
        self.actors.begin_with(None)
        for index, handle in enumerate(self.spawn.handles):
            handle.first("make").answers(f"node-{index}")
        assert self.poll() == []
        assert self.actors.have_started
        return list(self.spawn.handles)

    def pass_s(self, seconds: float) -> list[Event]:
        self.ray.now += seconds
        return [*self.poll(), *self.poll()]


def ticket(ticket_id: int, *, shard: int | None = None, incarnation: int = 0) -> Ticket:
    lane = ticket_id % 2 if shard is None else shard
    return Ticket(Header(ticket_id, 1, 1), 0, 0, lane, ShardPayload(lane, incarnation, "fragment"), deadline_s=30)


def produced(item: Ticket) -> Produced:
    return Produced(item.header, 0, 0, Timing(), num_steps=5)


def failed(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.header.ticket_id, event.reason) for event in events if isinstance(event, TicketFailed)]


def test_a_run_begins_when_its_actors_are_ready_and_have_their_state_back() -> None:
    stage = Stage()
    stage.actors.begin_with(({}, {"0": {}}))
    for handle in stage.spawn.handles:
        handle.first("make").answers("node")
    stage.poll()
    assert not stage.actors.have_started
    for handle in stage.spawn.handles:
        handle.first("restore_shards").answers()
    stage.poll()
    assert stage.actors.have_started


def test_what_an_actor_produced_comes_back_with_its_trajectory() -> None:
    stage = Stage()
    one, two = stage.all_up()
    stage.actors.submit([ticket(0), ticket(1), ticket(2)])
    assert [item.header.ticket_id for item in one.asked_for("produce")] == [0, 2]
    two.first("produce").answers(produced(ticket(1)))
    (event,) = stage.poll()
    assert isinstance(event, TicketProduced) and event.produced.header.ticket_id == 1
    assert event.handle == "produce of gym-1#1"


def test_an_actor_that_is_killed_while_the_run_begins_is_started_again_with_what_it_is_to_go_on_from() -> None:
    stage = Stage()
    stage.actors.begin_with(({}, {"0": {}}))
    one, two = stage.spawn.handles
    two.dies()
    assert stage.poll() == [] and stage.failed_starts[0].startswith("gym-1: ")
    one.first("make").answers("node")
    stage.poll()
    one.first("restore_shards").answers()
    stage.pass_s(1)
    again = stage.spawn.newest
    assert again is not two and stage.actors.restarts == 1 and not stage.actors.have_started
    again.first("make").answers("node")
    stage.poll()
    again.dies()  # before it has its state back
    stage.pass_s(1)
    stage.pass_s(1)
    assert stage.spawn.newest is not again
    stage.spawn.newest.first("make").answers("node")
    stage.poll()
    stage.spawn.newest.first("restore_shards").answers()
    stage.poll()
    assert stage.actors.have_started and len(stage.failed_starts) == 2


def test_an_actor_that_is_killed_at_every_start_ends_the_run_when_its_budget_is_spent() -> None:
    stage = Stage(1, max_restarts=3)
    stage.actors.begin_with(None)
    for _ in range(3):
        stage.spawn.newest.dies()
        stage.poll()
        stage.pass_s(2)
    stage.spawn.newest.dies()
    with pytest.raises(BudgetSpent, match="gym-0 failed 4 times"):
        stage.poll()
    assert len(stage.failed_starts) == 4


def test_an_actor_whose_code_raises_while_the_run_begins_ends_it_at_once_by_name() -> None:
    stage = Stage()
    stage.actors.begin_with(None)
    stage.spawn.handles[1].first("make").answers(raised(ValueError("no such env")))
    with pytest.raises(RollcallError, match="gym-1 did not start: no such env"):
        stage.poll()


def test_an_actor_that_asked_a_dead_parameter_server_while_the_run_begins_is_started_again() -> None:
    stage = Stage(1)
    stage.actors.begin_with(None)
    stage.spawn.newest.first("make").answers(raised(ActorDiedError()))
    stage.poll()
    stage.pass_s(BLAMELESS_DELAY_S)
    assert len(stage.spawn.handles) == 2


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_ticket_is_held_to_account_only_for_a_death_at_which_it_was_worked_on(side_by_side: bool) -> None:
    pending = [ticket(0), ticket(2)]
    against = faults(pending, "actor_died", side_by_side=side_by_side)
    assert against == {(0, 1): "death", **({(2, 1): "death"} if side_by_side else {})}
    late = faults(pending, "deadline", side_by_side=side_by_side)
    assert late == {(0, 1): "own", **({(2, 1): "none"} if side_by_side else {})}


def test_what_waited_with_an_actor_that_died_or_went_with_its_node_is_not_held_against_it() -> None:
    stage = Stage()
    one, two = stage.all_up()
    stage.actors.submit([ticket(0), ticket(1), ticket(2), ticket(3)])
    stage.ray.dead_nodes.append("node-1")
    one.dies()
    two.dies()
    lost = {event.header.ticket_id: event.fault for event in stage.poll() if isinstance(event, TicketFailed)}
    assert lost == {0: "death", 2: "none", 1: "none", 3: "none"}


def test_an_actor_that_has_no_room_within_the_deadline_ends_the_run_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollcall.deploy.runtimes.on_ray.actors.no_room_for", lambda name: f"{name}: no room")
    stage = Stage()
    assert stage.pass_s(START_TIMEOUT_S + 1) == [], "what it is to load may take as long as it takes"
    stage.actors.begin_with(None)
    assert stage.pass_s(START_TIMEOUT_S - 1) == []
    with pytest.raises(RollcallError, match="gym-0: no room"):
        stage.pass_s(2)


def test_one_that_dies_at_work_loses_its_tickets_and_is_started_again_after_its_back_off() -> None:
    stage = Stage()
    one, two = stage.all_up()
    stage.actors.submit([ticket(0), ticket(1), ticket(2)])
    one.dies()
    assert failed(stage.poll()) == [(0, "actor_died"), (2, "actor_died")]
    assert one.killed and not two.killed and stage.losses == 1
    stage.poll()
    assert len(stage.spawn.handles) == 2, "its back-off is not over"
    stage.pass_s(1)
    assert len(stage.spawn.handles) == 3 and stage.actors.restarts == 1
    two.first("produce").answers(produced(ticket(1)))
    assert isinstance(stage.poll()[0], TicketProduced), "and meanwhile the other one works"


@pytest.mark.long
def test_one_that_dies_while_it_is_started_again_backs_off_longer_each_time_until_its_budget_is_spent() -> None:
    stage = Stage(1, max_restarts=3)
    stage.all_up()
    stage.actors.submit([ticket(0, shard=0)])
    stage.spawn.newest.dies()
    waits: list[float] = []
    for _ in range(3):
        stage.poll()
        began, count = stage.ray.now, len(stage.spawn.handles)
        while len(stage.spawn.handles) == count:
            stage.pass_s(0.01)
        waits.append(stage.ray.now - began)
        stage.spawn.newest.dies()
    with pytest.raises(BudgetSpent, match="gym-0 failed 4 times"):
        stage.poll()
    assert waits[0] < waits[1] < waits[2]


def test_a_unit_beyond_its_deadline_is_given_up_and_what_waited_behind_it_too() -> None:
    stage = Stage()
    one, _ = stage.all_up()
    stage.actors.submit([ticket(0), ticket(2)])
    assert stage.pass_s(29) == []
    events = stage.pass_s(2)
    assert failed(events) == [(0, "deadline"), (2, "actor_died")] and one.killed
    assert "logs/gym-0.trace shows where it hangs" in events[0].detail  # type: ignore[union-attr]


def test_the_deadline_of_a_unit_begins_when_the_one_before_it_is_done() -> None:
    stage = Stage()
    one, _ = stage.all_up()
    stage.actors.submit([ticket(0), ticket(2)])
    stage.ray.now += 29
    one.first("produce").answers(produced(ticket(0)))
    assert len(stage.poll()) == 1
    assert stage.pass_s(29) == []


def test_what_went_with_its_node_costs_no_budget() -> None:
    stage = Stage(max_restarts=1)
    for round_ in range(3):
        stage.ray.dead_nodes.append(f"node-{round_}")
        handle = stage.spawn.handles[0] if round_ == 0 else stage.spawn.newest
        if round_ == 0:
            stage.all_up()
        else:
            handle.first("make").answers(f"node-{round_}")
            stage.poll()
        stage.actors.submit([ticket(2 * round_)])
        handle.dies()
        stage.poll()
        count = len(stage.spawn.handles)
        stage.pass_s(BLAMELESS_DELAY_S - 0.5)
        assert len(stage.spawn.handles) == count
        stage.pass_s(1)
        assert len(stage.spawn.handles) == count + 1


def test_one_whose_weights_are_stale_is_not_started_before_they_can_be_had() -> None:
    stage = Stage()
    one, _ = stage.all_up()
    stage.actors.submit([ticket(0)])
    one.dies()
    stage.poll()
    stage.weights_there = False
    stage.pass_s(100)
    assert len(stage.spawn.handles) == 2
    stage.weights_there = True
    stage.pass_s(0)
    assert len(stage.spawn.handles) == 3


def test_while_all_are_down_tickets_wait_and_nobody_else_does() -> None:
    stage = Stage(1)
    stage.all_up()
    stage.actors.submit([ticket(0, shard=0)])
    stage.spawn.newest.dies()
    stage.poll()
    stage.actors.submit([ticket(1, shard=0, incarnation=1)])
    assert stage.actors.doing() == ["gym-0 to be started again"]
    assert stage.poll() == [] and max(stage.ray.waited_s, default=0) <= 0.2
    stage.pass_s(1)
    assert [item.header.ticket_id for item in stage.spawn.newest.asked_for("produce")] == [1]


def test_what_waits_with_one_that_has_no_room_goes_to_others() -> None:
    stage = Stage()
    one, two = stage.all_up()
    stage.actors.submit([ticket(0), ticket(1)])
    one.dies()
    two.dies()
    stage.poll()
    stage.pass_s(1)
    *_, first, second = stage.spawn.handles
    stage.actors.submit([ticket(2), ticket(3)])
    waiting = {handle for handle in (first, second) if handle.asked_for("produce")}
    second.first("make").answers("node")
    stage.poll()
    stage.pass_s(ROOM_GRACE_S + 1)
    assert waiting and {2, 3} <= {item.header.ticket_id for item in second.asked_for("produce")}
    assert first.killed and stage.actors.restarts == 2, "it asks for room anew, which is no restart"


class Moving(Stage):
    """Lane 0 is with actor 1, and its home is up again."""

    def __init__(self) -> None:
        super().__init__()
        one, self.holder = self.all_up()
        self.actors.submit([ticket(0)])
        one.dies()
        self.poll()
        self.actors.submit([ticket(2)])
        self.holder.first("produce").answers(produced(ticket(2)))
        self.poll()
        self.pass_s(1)
        self.home = self.spawn.newest
        self.home.first("make").answers("node")
        self.poll()
        self.actors.submit([ticket(4)])

    def working_on(self, number: int) -> list[str]:
        return [
            handle.name
            for handle in (self.home, self.holder)
            if number in [item.header.ticket_id for item in handle.asked_for("produce")]
        ]


def test_a_lane_moves_home_with_its_state_and_its_tickets_wait_for_that_alone() -> None:
    stage = Moving()
    assert stage.working_on(4) == []
    stage.actors.submit([ticket(1), ticket(6)])
    assert stage.working_on(1) == [stage.holder.name] and stage.working_on(6) == []
    stage.holder.first("shard_state").answers((True, "the env's state"))
    stage.poll()
    assert stage.home.asked_for("take_over") == [0] and stage.holder.asked_for("take_over") == [0]
    assert stage.working_on(4) == stage.working_on(6) == [stage.home.name]


@pytest.mark.parametrize("late", [False, True])
def test_a_lane_whose_state_cannot_be_moved_stays(late: bool) -> None:
    stage = Moving()
    if late:
        stage.pass_s(CONTROL_TIMEOUT_S + 1)
    else:
        stage.holder.first("shard_state").answers((False, None))
        stage.poll()
    assert stage.working_on(4) == [stage.holder.name]


def test_a_holder_that_dies_while_its_lane_moves_loses_the_tickets_that_wait_for_it() -> None:
    stage = Moving()
    stage.actors.submit([ticket(1)])
    stage.holder.dies()
    events = stage.poll()
    assert (4, "actor_died") in failed(events)
    assert not any(isinstance(event, StateLost) for event in events), "the tickets say it"


def test_state_without_a_ticket_is_said_to_be_lost() -> None:
    stage = Stage()
    one, _ = stage.all_up()
    stage.actors.submit([ticket(0, shard=0), ticket(2, shard=2)])
    one.first("produce").answers(produced(ticket(0, shard=0)))
    stage.poll()
    one.dies()
    assert stage.poll()[-1] == StateLost((0,))


def test_the_actors_states_are_answered_together_or_not_at_all() -> None:
    stage = Stage()
    one, two = stage.all_up()

    def asked(timeout_s: float = 5) -> None:
        stage.actors.submit_shard_states((), timeout_s)

    asked()
    one.first("shard_states").answers(({"0/x": 1}, {"0": {}}))
    assert stage.poll() == []
    two.first("shard_states").answers(({"1/x": 2}, {"1": {}}))
    assert stage.poll() == [ShardStates(({"0/x": 1, "1/x": 2}, {"0": {}, "1": {}}))]  # type: ignore[dict-item]
    asked()
    one.first("shard_states").answers(None)
    two.first("shard_states").answers(({}, {}))
    assert stage.poll() == [ShardStates(None)]
    asked()
    assert stage.pass_s(6) == [ShardStates(None)], "a hanging actor holds up nobody"
    asked()
    error: Any = ActorDiedError()
    two.asked[-1].answers(error)
    assert stage.poll() == [ShardStates(None)]
