"""The actor processes of a run on Ray: who is alive, what each was asked, and what became of it. Those that die or hang
are started again; tickets wait here for those that have no room yet. Nothing here waits."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import EngineMismatch, RollcallError
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.attempt import Ticket
from rollcall.cluster.messages.events import Event, ShardStates, StateLost, States, TicketFailed, TicketProduced
from rollcall.deploy.runtimes.lanes import Lanes
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.deaths import Deaths
from rollcall.deploy.runtimes.on_ray.faults import (
    BLAMELESS_DELAY_S,
    CONTROL_TIMEOUT_S,
    START_TIMEOUT_S,
    cause_of,
    death_of,
    in_a_line,
    is_raised,
    no_room_for,
    node_of,
)
from rollcall.deploy.runtimes.on_ray.shard_states import merged_states
from rollcall.deploy.runtimes.on_ray.tickets import faults, what

DEADLINE_GRACE_S = 10.0
ROOM_GRACE_S = 15.0  # how long tickets wait with an actor that is coming, while others are up

_log = logging.getLogger("rollcall")


@dataclass(slots=True, eq=False)
class _Actor:
    actor_id: str
    index: int
    budget: RestartBudget
    handle: Any = None
    state: Literal["coming", "up", "down"] = "down"
    node_id: str = ""
    pending: deque[Ticket] = field(default_factory=deque)
    head_since: float = 0.0  # when work on the first pending ticket began, as far as can be known
    start_at: float = 0.0  # when it was started, or is to be started again

    @property
    def is_up(self) -> bool:
        return self.state == "up"

    @property
    def is_coming(self) -> bool:
        return self.state == "coming"


class RayActors:
    """All actors of a run."""

    def __init__(
        self,
        ids: Sequence[str],
        *,
        spawn: Callable[[str, int], Any],
        make: Callable[[Any], Any],
        budget: Callable[[str], RestartBudget],
        calls: Calls,
        num_first: int,
        admits_together: bool,
        on_loss: Callable[[], None],
        may_start: Callable[[], bool],
        tell_up: Callable[[str, float], None],
        tell_failed: Callable[[str], None],
        deaths: Deaths | None = None,
    ) -> None:
        """`spawn` gives the handle of a new process, and `make` has it make its actor: a reference to its node's id.
        `num_first`: how many a run begins with; the others come when there is room for them. `admits_together`: they
        take the tickets of one submission before they begin with any, work on them side by side, keep the tickets'
        deadlines themselves, and keep nothing from one ticket to the next. `on_loss` and `may_start`: whoever gives
        them weights may be why one is started again, and is to be there first. `tell_up`: that one of the first is up,
        after so many seconds; `tell_failed`: why one did not start, of any."""
        self._spawn = spawn
        self._make = make
        self._calls = calls
        self._admits_together = admits_together
        self._on_loss = on_loss
        self._may_start = may_start
        self._tell_up = tell_up
        self._tell_failed = tell_failed
        self._deaths = deaths or Deaths()
        self._actors = [_Actor(actor_id, index, budget(actor_id)) for index, actor_id in enumerate(ids)]
        self._lanes: Lanes[_Actor] = Lanes(self._actors, keep_state=not admits_together)
        self._held: list[Ticket] = []  # of lanes that nobody can work on just now
        self._moving: dict[int, _Actor] = {}  # lane -> whose state of it was asked for, to move it home
        self._events: list[Event] = []  # for the next poll
        self._first = set(self._actors[:num_first])  # those of them that are not ready yet
        self._shard_state: States | None = None
        self.restarts = 0
        for actor in self._actors:  # these import meanwhile what they need
            actor.handle, actor.state = spawn(actor.actor_id, actor.index), "coming"

    @property
    def handles(self) -> list[Any]:
        return [actor.handle for actor in self._actors]

    @property
    def have_started(self) -> bool:
        """All that a run begins with."""
        return not self._first

    def begin_with(self, shard_state: States | None) -> None:
        """All that actors are made of is there. `shard_state`: what the first are to go on from."""
        self._shard_state = shard_state
        for actor in self._actors:
            self._make_ready(actor)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        self._held += tickets
        self._dispatch()

    def submit_shard_states(self, undone: Collection[int], timeout_s: float) -> None:
        """What all actors keep, answered by ShardStates."""
        self._calls.forget(self)  # an earlier question
        replies = [actor.handle.shard_states.remote(frozenset(undone)) for actor in self._actors if actor.is_up]
        if replies:
            self._calls.expect_all(replies, merged_states, owner=self, timeout_s=timeout_s)
        else:
            self._events.append(ShardStates(({}, {})))

    def doing(self) -> list[str]:
        """In words: who works on what, for how long."""
        now = self._calls.clock()
        busy = [
            f"{actor.actor_id} on ticket {actor.pending[0].header.ticket_id} "
            f"({what(actor.pending[0])}) for {now - actor.head_since:.0f} s"
            for actor in self._actors
            if actor.pending and actor.is_up
        ]
        waits = {"coming": "to have room", "down": "to be started again"}
        return busy + [f"{actor.actor_id} {waits[actor.state]}" for actor in self._actors if not actor.is_up]

    def tend(self) -> list[Event]:
        """Ends actors whose unit takes longer than its deadline, and starts those again whose back-off is over."""
        now = self._calls.clock()
        events, self._events = self._events, []
        for actor in self._actors:
            if actor.state == "down" and now >= actor.start_at and self._may_start():
                actor.handle = self._spawn(actor.actor_id, actor.index)
                self._make_ready(actor)
            if actor.is_coming and actor.pending and now > actor.start_at + ROOM_GRACE_S:
                self._reroute(actor)
            # Actors that keep deadlines themselves are ended only when they do not.
            grace_s = DEADLINE_GRACE_S if self._admits_together else 0.0
            if actor.is_up and actor.pending and now - actor.head_since > actor.pending[0].deadline_s + grace_s:
                ticket = actor.pending[0]
                late = f"{what(ticket)} has not returned within {ticket.deadline_s:.0f} s"
                detail = f"{actor.actor_id}: {late}; logs/{actor.actor_id}.trace shows where it hangs"
                events += self._lose(actor, "deadline", detail)
        self._dispatch()
        return events

    # Coming and going.

    def _make_ready(self, actor: _Actor) -> None:
        actor.state, actor.node_id, actor.start_at = "coming", "", self._calls.clock()
        timeout_s = START_TIMEOUT_S if actor in self._first else float("inf")
        self._calls.expect(self._make(actor.handle), partial(self._on_ready, actor), owner=actor, timeout_s=timeout_s)

    def _on_ready(self, actor: _Actor, answer: Answer) -> list[Event]:
        try:
            actor.node_id = answer()
        except RayError as error:
            return self._did_not_start(actor, error)
        actor.state, actor.head_since = "up", self._calls.clock()
        if actor in self._first:
            self._tell_up(actor.actor_id, actor.head_since - actor.start_at)
        _log.info("%s is up on node %s", actor.actor_id, actor.node_id[:8])
        if actor in self._first and self._shard_state is not None:
            restored = actor.handle.restore_shards.remote(*self._shard_state)
            self._calls.expect(restored, partial(self._on_restored, actor), owner=actor, timeout_s=CONTROL_TIMEOUT_S)
        else:
            self._first.discard(actor)
        return []

    def _on_restored(self, actor: _Actor, answer: Answer) -> list[Event]:
        try:
            answer()
        except RayError as error:
            return self._did_not_start(actor, error)
        self._first.discard(actor)
        return []

    def _did_not_start(self, actor: _Actor, error: RayError) -> list[Event]:
        """One that was killed, or lost whoever gives it weights, is started again. Raises RollcallError: naming the
        actor, and why, where the run cannot begin without it and another one would not start either."""
        if actor in self._first:
            if isinstance(error, GetTimeoutError):
                raise RollcallError(no_room_for(actor.actor_id)) from None
            if why := self._deaths.at_start(actor.actor_id, "actor", error):
                raise RollcallError(why) from error
        self._tell_failed(f"{actor.actor_id}: {death_of(error)}")
        return self._lose_for(actor, error)

    def _reroute(self, actor: _Actor) -> None:
        """What waits with an actor that has no room goes to others, if any are up. It asks for room anew."""
        if not any(other.is_up for other in self._actors):
            return
        self._held += self._end(actor)
        self._lanes.lost(actor)
        actor.start_at = self._calls.clock()

    def _end(self, actor: _Actor) -> list[Ticket]:
        """Returns what it was to work on. (It is killed also where it seems dead: if it is not, it keeps the room that
        the next one needs.)"""
        self._calls.api.kill(actor.handle)
        self._calls.forget(actor)
        lost, actor.pending = list(actor.pending), deque()
        actor.state = "down"
        return lost

    def _lose_for(self, actor: _Actor, error: RayError) -> list[Event]:
        """The actor that a call ended for with this error."""
        if isinstance(error, RayTaskError):
            cause = cause_of(error)
            if isinstance(cause, RayActorError):
                detail = f"{actor.actor_id} lost whoever gave it weights"
                return self._lose(actor, "actor_died", detail, blameless=True)
            if isinstance(cause, EngineMismatch):  # the next engine would say the same
                raise cause from None
            # An exception that the actor does not contain is a fault of ours or of the env's code: it is shown whole.
            detail = self._deaths.raised(actor.actor_id, "actor", error, f"logs/{actor.actor_id}.log")
            return self._lose(actor, "actor_failed", detail, raised=is_raised(error))
        if isinstance(error, RayActorError):
            blameless = node_of(error, actor.node_id, self._calls.api.nodes())
            detail, raised = self._deaths.of(actor.actor_id, "actor", error), error.actor_init_failed
            return self._lose(actor, "actor_died", detail, blameless=blameless, raised=raised)
        return self._lose(actor, "actor_failed", f"{actor.actor_id}: {in_a_line(error)}")

    def _lose(
        self, actor: _Actor, reason: str, detail: str, *, blameless: bool = False, raised: bool = False
    ) -> list[Event]:
        """All its pending units fail; it is started again when its back-off allows, and its shards start anew. What a
        node or the parameter server took along was not the actor's fault; what its own code `raised` was."""
        if actor.state == "down":
            return []
        at_work = [] if blameless or not actor.is_up else list(actor.pending)
        against = faults(at_work, reason, side_by_side=self._admits_together)
        lost = self._end(actor)
        lost += [ticket for ticket in self._held if self._moving.get(ticket.lane) is actor]
        self._held = [ticket for ticket in self._held if self._moving.get(ticket.lane) is not actor]
        self._moving = {lane: holder for lane, holder in self._moving.items() if holder is not actor}
        delay_s = BLAMELESS_DELAY_S if blameless else actor.budget.next_delay_s(detail, raised=raised)
        actor.start_at = self._calls.clock() + delay_s
        self.restarts += 1
        self._on_loss()
        lanes = {ticket.lane for ticket in lost}
        idle = [ticket_id for lane, ticket_id in self._lanes.lost(actor).items() if lane not in lanes]
        events: list[Event] = [
            TicketFailed(
                ticket.header,
                reason=reason if position == 0 else "actor_died",
                detail=detail,
                state_lost=True,
                fault=against.get(ticket.header.key, "none"),
            )
            for position, ticket in enumerate(lost)
        ]
        return [*events, StateLost(tuple(sorted(idle)))] if idle else events

    # Tickets.

    def _dispatch(self) -> None:
        """Gives the tickets that wait to whoever is to work on them; those that nobody can work on now wait on."""
        waiting, self._held = self._held, []
        shares: dict[int, list[Ticket]] = {}
        for ticket in waiting:
            actor = None if self._moves(ticket.lane) else self._lanes.choose(ticket.lane)
            if actor is None:
                self._held.append(ticket)
                continue
            self._lanes.given(ticket.lane, actor, ticket.header.ticket_id)
            shares.setdefault(actor.index, []).append(ticket)
        for index, share in sorted(shares.items()):
            actor = self._actors[index]
            if self._admits_together:
                self._calls.expect(actor.handle.admit.remote(share), partial(self._on_admitted, actor), owner=actor)
            for ticket in share:
                self._ask(actor, ticket)

    def _moves(self, lane: int) -> bool:
        """Whether the lane's state is on its way home; asks for it where its home is up again. It goes along as it is
        after what is under way there."""
        holder = self._lanes.holder(lane)
        if lane not in self._moving and self._lanes.may_move_home(lane) and holder is not None and holder.is_up:
            self._moving[lane] = holder
            self._calls.expect(
                holder.handle.shard_state.remote(lane),
                partial(self._on_state, lane),
                owner=holder,
                timeout_s=CONTROL_TIMEOUT_S,
            )
        return lane in self._moving

    def _on_state(self, lane: int, answer: Answer) -> list[Event]:
        holder, home = self._moving.pop(lane), self._lanes.home(lane)
        try:
            moves, state = answer()
        except RayError:
            moves = False  # whoever works on the lane next finds out what is the matter
        if home.is_up and moves:
            holder.handle.take_over.remote(lane, None)
            home.handle.take_over.remote(lane, state)
            self._lanes.moved_home(lane)
        elif home.is_up:
            self._lanes.stays(lane)
        self._dispatch()
        return []

    def _ask(self, actor: _Actor, ticket: Ticket) -> None:
        produced, trajectory = actor.handle.produce.options(num_returns=2).remote(ticket)
        if not actor.pending:
            actor.head_since = self._calls.clock()
        actor.pending.append(ticket)
        self._calls.expect(produced, partial(self._on_produced, actor, ticket, trajectory), owner=actor)

    def _on_admitted(self, actor: _Actor, answer: Answer) -> list[Event]:
        try:
            answer()
            return []
        except RayError as error:
            return self._lose_for(actor, error)

    def _on_produced(self, actor: _Actor, ticket: Ticket, trajectory: Any, answer: Answer) -> list[Event]:
        try:
            outcome = answer()
        except RayError as error:
            return self._lose_for(actor, error)
        actor.pending.remove(ticket)
        actor.head_since = self._calls.clock()
        if isinstance(outcome, TicketFailed):
            return [outcome]
        actor.budget.came_through()
        return [TicketProduced(outcome, trajectory)]
