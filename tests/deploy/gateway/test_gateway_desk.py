"""Who has which ticket, by a clock that the test moves."""

from __future__ import annotations

import pytest

from rollcall.cluster.messages.attempt import Header, ShardPayload, Ticket
from rollcall.cluster.messages.events import StateLost, TicketFailed
from rollcall.deploy.gateway.desk import Desk, Refused


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(clock: Clock) -> Desk:
    desk = Desk(max_actors=4, lease_s=10.0, clock=clock)
    desk.published(1, 0)
    return desk


def ticket(number: int, *, shards: int = 2, epoch: int = 1, incarnation: int = 0, version: int = 0) -> Ticket:
    shard = number % shards
    payload = ShardPayload(shard, incarnation, "fragment")
    return Ticket(Header(number, 1, epoch), 0, version, shard, payload, deadline_s=60.0)


def test_an_actor_that_falls_silent_loses_its_ticket_and_its_shards_once(desk: Desk, clock: Clock) -> None:
    desk.submit([ticket(0), ticket(1)])
    session = desk.join("a")
    first = desk.lease(session, 0.0)
    clock.now = 9.0
    desk.tend()
    assert desk.take(0.0) == []
    clock.now = 10.5
    desk.tend()
    desk.tend()
    (failed,) = desk.take(0.0)
    assert isinstance(failed, TicketFailed) and failed.reason == "actor_died" and failed.state_lost
    with pytest.raises(Refused, match="late"):
        desk.renew(session, first.secret)
    with pytest.raises(Refused, match="actor_unknown"):
        desk.session(session.secret)


def test_a_word_in_time_keeps_the_lease_and_the_deadline_ends_it_all_the_same(desk: Desk, clock: Clock) -> None:
    desk.submit([ticket(0)])
    session = desk.join("a")
    lease = desk.lease(session, 0.0)
    while clock.now < 60.0:
        clock.now += 5.0
        desk.session(session.secret)
        desk.renew(session, lease.secret)
        desk.tend()
    assert desk.take(0.0) == []
    clock.now += 5.0
    desk.session(session.secret)
    desk.tend()
    (failed,) = desk.take(0.0)
    assert isinstance(failed, TicketFailed) and failed.reason == "deadline"


def test_what_is_made_anew_is_of_the_incarnation_that_the_coordinator_will_say(desk: Desk, clock: Clock) -> None:
    """It counts one more for each loss that it is told of; tickets that it had issued before are renumbered here."""
    desk.submit([ticket(0), ticket(2)])
    session = desk.join("a")
    desk.lease(session, 0.0)
    desk.leave(session)
    (failed,) = desk.take(0.0)
    assert isinstance(failed, TicketFailed) and failed.state_lost
    payload = desk.lease(desk.join("b"), 0.0).ticket.payload
    assert isinstance(payload, ShardPayload) and payload.incarnation == 1


def test_a_shard_stays_with_its_actor_until_another_has_two_fewer(desk: Desk) -> None:
    desk.submit([ticket(0), ticket(1)])
    one = desk.join("one")
    for _ in range(2):
        lease = desk.lease(one, 0.0)
        desk.begin_post(one, lease.secret)
        desk._end(lease, (200, "accepted", ""))
    desk.submit([ticket(2), ticket(3)])
    assert desk.lease(one, 0.0).ticket.lane == 0
    other = desk.lease(desk.join("other"), 0.0).ticket
    assert isinstance(other.payload, ShardPayload) and (other.lane, other.payload.incarnation) == (1, 1)
    assert desk.take(0.0) == [StateLost((1,))]
    with pytest.raises(Refused, match="no_ticket"):
        desk.lease(desk.join("third"), 0.0)


def test_no_ticket_is_given_out_before_its_weights_can_be_fetched(desk: Desk) -> None:
    desk.submit([ticket(0, version=1)])
    session = desk.join("a")
    with pytest.raises(Refused, match="no_ticket"):
        desk.lease(session, 0.0)
    desk.published(1, 1)
    assert desk.lease(session, 0.0).ticket.header.ticket_id == 0


def test_a_restore_voids_all_that_was_under_way_and_tells_nobody(desk: Desk) -> None:
    """The books have dropped it already."""
    desk.submit([ticket(0), ticket(1)])
    session = desk.join("a")
    lease = desk.lease(session, 0.0)
    desk.submit([ticket(0, epoch=2)])
    assert desk.take(0.0) == []
    with pytest.raises(Refused, match="late"):
        desk.renew(session, lease.secret)
    desk.published(2, 0)
    assert desk.lease(session, 0.0).ticket.header.epoch == 2
