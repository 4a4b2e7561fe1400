"""The actor processes of a run on Ray: who is alive, what each was asked, and what became of it. Starts anew those that
die or hang, and waits for those that have no room yet; must never decide what happens to the books."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import EngineMismatch, RollcallError
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.events import Event, StateLost, TicketFailed, TicketProduced
from rollcall.cluster.messages.records import Array, ShardPayload, Ticket
from rollcall.deploy.runtimes.lanes import Lanes
from rollcall.deploy.runtimes.on_ray.faults import (
    CONTROL_TIMEOUT_S,
    START_TIMEOUT_S,
    cause_of,
    death_of,
    in_a_line,
    is_raised,
    no_room_for,
    node_of,
    raised_in,
)

DEADLINE_GRACE_S = 10.0
BLAMELESS_DELAY_S = 1.0  # before actors start again that went with their node or with the parameter server
ROOM_GRACE_S = 15.0  # how long tickets wait with an actor that is coming, while others are up

Pending = dict[Any, Callable[[], list[Event]]]  # reference -> what its answer means

_log = logging.getLogger("rollcall")


@dataclass(slots=True)
class _Work:
    ticket: Ticket
    produced: Any
    trajectory: Any


@dataclass(slots=True, eq=False)
class _Actor:
    actor_id: str
    index: int
    budget: RestartBudget
    handle: Any = None
    ready: Any = None  # the reference that says it is up
    state: Literal["coming", "up", "down"] = "down"
    node_id: str = ""
    pending: deque[_Work] = field(default_factory=deque)
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
        budget: Callable[[str], RestartBudget],
        pending: Pending,
        admits_together: bool,
    ) -> None:
        """`admits_together`: they take the tickets of one submission before they begin with any, work on them side by
        side, keep the tickets' deadlines themselves, and keep nothing from one ticket to the next."""
        self._spawn = spawn
        self._pending = pending
        self._admits_together = admits_together
        self._actors = [_Actor(actor_id, index, budget(actor_id)) for index, actor_id in enumerate(ids)]
        self._lanes: Lanes[_Actor] = Lanes(self._actors, keep_state=not admits_together)
        self.restarts = 0
        for actor in self._actors:
            self._start(actor)

    @property
    def handles(self) -> list[Any]:
        return [actor.handle for actor in self._actors]

    def wait_ready(self, count: int, shard_state: tuple[dict[str, Array], dict[str, Any]] | None) -> None:
        """Waits for the first `count`; the others come when there is room for them.

        Raises:
          RollcallError: naming the actor that did not start, and why.
        """
        for actor in self._actors[:count]:
            try:
                self._came(actor, ray.get(actor.ready, timeout=START_TIMEOUT_S))
                if shard_state is not None:
                    ray.get(actor.handle.restore_shards.remote(*shard_state), timeout=CONTROL_TIMEOUT_S)
            except GetTimeoutError:
                raise RollcallError(no_room_for(actor.actor_id)) from None
            except RayActorError as error:
                raise RollcallError(f"{actor.actor_id} did not start: {death_of(error)}") from error
            except RayError as error:
                raise RollcallError(f"{actor.actor_id} did not start: {cause_of(error)}") from error

    def submit(self, tickets: Sequence[Ticket]) -> None:
        shares: dict[int, list[Ticket]] = {}
        for ticket in tickets:
            actor = self._choose(ticket.lane)
            self._lanes.given(ticket.lane, actor, ticket.header.ticket_id)
            shares.setdefault(actor.index, []).append(ticket)
        for index in sorted(shares):
            actor = self._actors[index]
            if self._admits_together:
                actor.handle.admit.remote(shares[index])
            for ticket in shares[index]:
                self._submit(actor, ticket)

    def shard_states(self, undone: Collection[int], timeout_s: float) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """What all actors keep; None where it cannot be had, or not in time."""
        tensors: dict[str, Array] = {}
        meta: dict[str, Any] = {}
        calls = [actor.handle.shard_states.remote(frozenset(undone)) for actor in self._actors if actor.is_up]
        try:
            states = ray.get(calls, timeout=timeout_s)
        except RayError as error:
            _log.warning("the actors' states cannot be had: %s", cause_of(error))
            return None
        for state in states:
            if state is None:
                return None
            tensors |= state[0]
            meta |= state[1]
        return tensors, meta

    def doing(self) -> list[str]:
        """In words: who works on what, for how long."""
        now = time.monotonic()
        busy = [
            f"{actor.actor_id} on ticket {actor.pending[0].ticket.header.ticket_id} "
            f"({_what(actor.pending[0].ticket)}) for {now - actor.head_since:.0f} s"
            for actor in self._actors
            if actor.pending and actor.is_up
        ]
        return busy + [f"{actor.actor_id} to have room" for actor in self._actors if actor.is_coming]

    def tend(self) -> list[Event]:
        """Ends actors whose unit takes longer than its deadline, and starts those again whose back-off is over."""
        now = time.monotonic()
        events: list[Event] = []
        for actor in self._actors:
            if actor.state == "down" and now >= actor.start_at:
                self._start(actor)
            if actor.is_coming and actor.pending and now > actor.start_at + ROOM_GRACE_S:
                self._reroute(actor)
            # Actors that keep deadlines themselves are ended only when they do not.
            grace_s = DEADLINE_GRACE_S if self._admits_together else 0.0
            if actor.is_up and actor.pending and now - actor.head_since > actor.pending[0].ticket.deadline_s + grace_s:
                ticket = actor.pending[0].ticket
                detail = (
                    f"{actor.actor_id}: {_what(ticket)} has not returned within "
                    f"{ticket.deadline_s:.0f} s; logs/{actor.actor_id}.trace shows where it hangs"
                )
                events += self._lose(actor, "deadline", detail)
        return events

    # Coming and going.

    def _start(self, actor: _Actor) -> None:
        actor.handle = self._spawn(actor.actor_id, actor.index)
        actor.ready = actor.handle.ready.remote()
        actor.state, actor.node_id, actor.start_at = "coming", "", time.monotonic()
        self._pending[actor.ready] = partial(self._on_ready, actor, actor.ready)

    def _reroute(self, actor: _Actor) -> None:
        """What waits with an actor that has no room goes to others, if any are up. It asks for room anew."""
        if not any(other.is_up for other in self._actors):
            return
        tickets = [work.ticket for work in actor.pending]
        for work in actor.pending:
            self._pending.pop(work.produced, None)
        self._pending.pop(actor.ready, None)
        actor.pending.clear()
        ray.kill(actor.handle)
        self._lanes.lost(actor)
        self._start(actor)
        self.submit(tickets)

    def _on_ready(self, actor: _Actor, ready: Any) -> list[Event]:
        del self._pending[ready]
        try:
            self._came(actor, ray.get(ready, timeout=CONTROL_TIMEOUT_S))
        except RayActorError as error:
            return self._lose_dead(actor, error)
        return []

    def _came(self, actor: _Actor, node_id: str) -> None:
        self._pending.pop(actor.ready, None)
        actor.state, actor.node_id, actor.head_since = "up", node_id, time.monotonic()
        _log.info("%s is up on node %s", actor.actor_id, node_id[:8])

    def _lose_dead(self, actor: _Actor, error: RayActorError) -> list[Event]:
        detail = f"{actor.actor_id} died ({death_of(error)})"
        return self._lose(actor, "actor_died", detail, blameless=node_of(error, actor.node_id))

    def _lose(
        self, actor: _Actor, reason: str, detail: str, *, blameless: bool = False, raised: bool = False
    ) -> list[Event]:
        """All its pending units fail; it is started again when its back-off allows, and its shards start anew. What a
        node or the parameter server took along was not the actor's fault; what its own code `raised` was."""
        if actor.state == "down":
            return []
        ray.kill(actor.handle)  # also where it seems dead: if it is not, it keeps the room that the next one needs
        lost = [work.ticket for work in actor.pending]
        for work in actor.pending:
            self._pending.pop(work.produced, None)
        self._pending.pop(actor.ready, None)
        actor.pending.clear()
        actor.state = "down"
        delay_s = BLAMELESS_DELAY_S if blameless else actor.budget.next_delay_s(detail, raised=raised)
        actor.start_at = time.monotonic() + delay_s
        self.restarts += 1
        idle = self._lanes.lost(actor).items() - {(ticket.lane, ticket.header.ticket_id) for ticket in lost}
        events: list[Event] = [
            TicketFailed(
                ticket.header,
                reason=reason if position == 0 else "actor_died",
                detail=detail,
                state_lost=True,
            )
            for position, ticket in enumerate(lost)
        ]
        return [*events, StateLost(tuple(sorted(ticket_id for _, ticket_id in idle)))] if idle else events

    # Work.

    def _choose(self, lane: int) -> _Actor:
        if self._lanes.may_move_home(lane):
            self._move_home(lane)
        actor = self._lanes.choose(lane)
        while actor is None:  # all of them are down
            first = min(self._actors, key=lambda one: one.start_at)
            time.sleep(max(0.0, first.start_at - time.monotonic()))  # at most max_delay_s of its budget
            self._start(first)
            actor = self._lanes.choose(lane)
        return actor

    def _move_home(self, lane: int) -> None:
        """Its state goes along, as it is after what is under way there. This waits for that, once in a lane's move."""
        holder, home = self._lanes.holder(lane), self._lanes.home(lane)
        assert holder is not None
        if not holder.is_up:
            return
        try:
            moves, state = ray.get(holder.handle.shard_state.remote(lane), timeout=CONTROL_TIMEOUT_S)
        except RayError:
            return  # whoever works on the lane next finds out what is the matter
        if moves:
            holder.handle.take_over.remote(lane, None)
            home.handle.take_over.remote(lane, state)
            self._lanes.given(lane, home, -1)
        else:
            self._lanes.stays(lane)

    def _submit(self, actor: _Actor, ticket: Ticket) -> None:
        produced, trajectory = actor.handle.produce.options(num_returns=2).remote(ticket)
        if not actor.pending:
            actor.head_since = time.monotonic()
        work = _Work(ticket, produced, trajectory)
        actor.pending.append(work)
        self._pending[produced] = partial(self._on_answer, actor, work)

    def _on_answer(self, actor: _Actor, work: _Work) -> list[Event]:
        del self._pending[work.produced]
        try:
            outcome = ray.get(work.produced, timeout=CONTROL_TIMEOUT_S)
        except RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, RayActorError):
                detail = f"{actor.actor_id} lost whoever gave it weights"
                return self._lose(actor, "actor_died", detail, blameless=True)
            if isinstance(cause, EngineMismatch):  # the next engine would say the same
                raise cause from None
            # An exception that the actor does not contain is a fault of ours or of the env's code: it is shown whole.
            detail = raised_in(actor.actor_id, error, f"logs/{actor.actor_id}.log")
            return self._lose(actor, "actor_failed", detail, raised=is_raised(error))
        except RayActorError as error:
            return self._lose_dead(actor, error)
        except RayError as error:
            return self._lose(actor, "actor_failed", f"{actor.actor_id}: {in_a_line(error)}")
        finally:
            if work in actor.pending:
                actor.pending.remove(work)
                actor.head_since = time.monotonic()
        if isinstance(outcome, TicketFailed):
            return [outcome]
        actor.budget.came_through()
        return [TicketProduced(outcome, work.trajectory)]


def _what(ticket: Ticket) -> str:
    """What a ticket is about, in words."""
    payload = ticket.payload
    return f"shard {payload.shard}'s env" if isinstance(payload, ShardPayload) else f"row {payload.row}"
