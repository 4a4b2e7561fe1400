"""The actor processes of a run on Ray: who is alive, what each was asked, and what became of it. Starts anew those that
die or hang; must never decide what happens to the books."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages import Array, ShardPayload, Ticket
from rollcall.cluster.supervision import RestartBudget
from rollcall.cluster.workers import Event, TicketFailed, TicketProduced
from rollcall.deploy.ray_faults import START_TIMEOUT_S, cause_of, death_of, no_room_for
from rollcall.deploy.ray_processes import CONTROL_TIMEOUT_S

DEADLINE_GRACE_S = 10.0

Pending = dict[Any, Callable[[], list[Event]]]  # reference -> what its answer means


@dataclass(slots=True)
class _Work:
    ticket: Ticket
    produced: Any
    trajectory: Any


@dataclass(slots=True)
class _Actor:
    actor_id: str
    handle: Any
    budget: RestartBudget
    pending: deque[_Work] = field(default_factory=deque)
    head_since: float = 0.0  # when work on the first pending ticket began, as far as can be known
    start_at: float | None = None  # when to start it again, while it is down


class RayActors:
    """All actors of a run."""

    def __init__(
        self,
        ids: Sequence[str],
        *,
        spawn: Callable[[str], Any],
        budget: Callable[[str], RestartBudget],
        pending: Pending,
        admits_together: bool,
    ) -> None:
        """`admits_together`: they take the tickets of one submission before they begin with any, work on them side by
        side, and keep the tickets' deadlines themselves."""
        self._spawn = spawn
        self._pending = pending
        self._admits_together = admits_together
        self._actors = [_Actor(actor_id, spawn(actor_id), budget(actor_id)) for actor_id in ids]
        self.restarts = 0

    @property
    def handles(self) -> list[Any]:
        return [actor.handle for actor in self._actors]

    def wait_ready(self, shard_state: tuple[dict[str, Array], dict[str, Any]] | None) -> None:
        """Raises RollcallError, naming the actor that did not start, and why."""
        for actor in self._actors:
            try:
                ray.get(actor.handle.ready.remote(), timeout=START_TIMEOUT_S)
                if shard_state is not None:
                    ray.get(actor.handle.restore_shards.remote(*shard_state), timeout=CONTROL_TIMEOUT_S)
            except GetTimeoutError:
                raise RollcallError(no_room_for(actor.actor_id)) from None
            except RayError as error:
                raise RollcallError(f"{actor.actor_id} did not start: {cause_of(error)}") from error

    def submit(self, tickets: Sequence[Ticket]) -> None:
        for index, actor in enumerate(self._actors):
            own = [ticket for ticket in tickets if ticket.lane % len(self._actors) == index]
            if not own:
                continue
            if actor.start_at is not None:
                self._restart(actor, actor.start_at)
            if self._admits_together:
                actor.handle.admit.remote(own)
            for ticket in own:
                self._submit(actor, ticket)

    def shard_states(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        tensors: dict[str, Array] = {}
        meta: dict[str, Any] = {}
        calls = [actor.handle.shard_states.remote() for actor in self._actors]
        for state in ray.get(calls, timeout=CONTROL_TIMEOUT_S):
            if state is None:
                return None
            tensors |= state[0]
            meta |= state[1]
        return tensors, meta

    def doing(self) -> list[str]:
        """In words: who works on what, for how long."""
        now = time.monotonic()
        return [
            f"{actor.actor_id} on ticket {actor.pending[0].ticket.ticket_id} "
            f"({_what(actor.pending[0].ticket)}) for {now - actor.head_since:.0f} s"
            for actor in self._actors
            if actor.pending
        ]

    def overdue(self) -> list[Event]:
        """Ends actors whose unit takes longer than its deadline."""
        now = time.monotonic()
        events: list[Event] = []
        for actor in self._actors:
            # Actors that keep deadlines themselves are ended only when they do not.
            grace_s = DEADLINE_GRACE_S if self._admits_together else 0.0
            if actor.pending and now - actor.head_since > actor.pending[0].ticket.deadline_s + grace_s:
                ticket = actor.pending[0].ticket
                detail = (
                    f"{actor.actor_id}: {_what(ticket)} has not returned within "
                    f"{ticket.deadline_s:.0f} s; logs/{actor.actor_id}.trace shows where it hangs"
                )
                events += self._lose(actor, "deadline", detail, kill=True)
        return events

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
        except RayActorError as error:
            return self._lose(actor, "actor_died", f"{actor.actor_id} died ({death_of(error)})")
        except RayError as error:
            # An exception that the actor does not contain is a fault of ours or of the env's code: it is shown whole.
            return self._lose(actor, "actor_failed", f"{actor.actor_id} raised {cause_of(error)!r}", kill=True)
        finally:
            if work in actor.pending:
                actor.pending.remove(work)
                actor.head_since = time.monotonic()
        if isinstance(outcome, TicketFailed):
            return [outcome]
        return [TicketProduced(outcome, work.trajectory)]

    def _lose(self, actor: _Actor, reason: str, detail: str, *, kill: bool = False) -> list[Event]:
        """All its pending units fail; it is started again when its back-off allows, and its shards start anew."""
        if actor.start_at is not None:
            return []
        if kill:
            ray.kill(actor.handle)
        lost = [work.ticket for work in actor.pending]
        for work in actor.pending:
            self._pending.pop(work.produced, None)
        actor.pending.clear()
        actor.start_at = time.monotonic() + actor.budget.next_delay_s(detail)
        self.restarts += 1
        return [
            TicketFailed(
                ticket_id=ticket.ticket_id,
                attempt=ticket.attempt,
                epoch=ticket.epoch,
                reason=reason if position == 0 else "actor_died",
                detail=detail,
                state_lost=True,
            )
            for position, ticket in enumerate(lost)
        ]

    def _restart(self, actor: _Actor, start_at: float) -> None:
        time.sleep(max(0.0, start_at - time.monotonic()))  # at most max_delay_s of its budget
        actor.handle = self._spawn(actor.actor_id)
        actor.start_at = None


def _what(ticket: Ticket) -> str:
    """What a ticket is about, in words."""
    payload = ticket.payload
    return f"shard {payload.shard}'s env" if isinstance(payload, ShardPayload) else f"row {payload.row}"
