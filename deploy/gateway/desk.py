"""Who works on which ticket, among actors outside Ray: sessions, leases, and what became of each attempt. Decides only;
knows neither HTTP nor arrays. Thread-safe: requests come on threads of their own, `tend` and `take` on the driver's."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rollcall.cluster.messages.attempt import Header, Produced, ShardPayload, Ticket
from rollcall.cluster.messages.events import (
    Event,
    Fault,
    Handle,
    StateLost,
    TicketFailed,
    TicketProduced,
    TicketRefused,
)

REMEMBERED = 4096  # leases that have ended, whose posts are answered as before
MAX_INVALID = 3  # posts in a row that are not what was asked for, after which an actor is sent away
RETRY_S = 1.0

Clock = Callable[[], float]
Outcome = tuple[int, str, str]  # HTTP's status, code, detail


class Refused(Exception):
    """A request that is not granted: HTTP's status, a code for programs, a line for people."""

    def __init__(self, status: int, code: str, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.status, self.code, self.detail, self.retry_after_s = status, code, detail, retry_after_s


@dataclass(slots=True, eq=False)
class Session:
    """One actor from joining to leaving."""

    secret: str
    actor_id: str
    name: str
    last_heard: float
    lease: Lease | None = None
    versions: set[tuple[int, int]] = field(default_factory=set)  # (epoch, version) that it was given
    invalid: int = 0  # posts in a row


@dataclass(slots=True, eq=False)
class Lease:
    """An attempt in an actor's hands."""

    secret: str
    ticket: Ticket
    session: Session
    began: float
    state: Literal["open", "posting"] = "open"


class Desk:
    """Of one run."""

    def __init__(self, *, max_actors: int, lease_s: float, clock: Clock = time.monotonic) -> None:
        self.lease_s = lease_s
        self._max_actors = max_actors
        self._clock = clock
        self._changed = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._leases: dict[str, Lease] = {}
        self._ended: OrderedDict[str, tuple[Header, Outcome]] = OrderedDict()
        self._waiting: deque[Ticket] = deque()  # in nobody's hands
        self._holders: dict[int, tuple[Session, int]] = {}  # shard -> who has its envs, its newest ticket there
        self._incarnations: dict[int, int] = {}  # shard -> the least that is handed out
        self._events: deque[Event] = deque()
        self._newest: tuple[int, int] | None = None  # (epoch, version) that can be fetched
        self._epoch = 0
        self._joined = 0
        self._closed = False

    # The driver's side.

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Tickets of a newer epoch void all of older ones: their books are closed."""
        with self._changed:
            for ticket in tickets:
                if ticket.header.epoch > self._epoch:
                    self._begin_epoch(ticket.header.epoch)
                self._waiting.append(ticket)
            self._changed.notify_all()

    def published(self, epoch: int, version: int) -> None:
        """Weights that can be fetched from now on."""
        with self._changed:
            self._newest = (epoch, version)
            self._changed.notify_all()

    def tend(self) -> None:
        """Gives up what takes longer than its deadline, and actors that have not been heard of."""
        now = self._clock()
        with self._changed:
            for lease in list(self._leases.values()):
                if lease.state == "open" and now - lease.began > lease.ticket.deadline_s:
                    self._fail(lease, "deadline", f"did not post within {lease.ticket.deadline_s:.0f} s")
            for session in list(self._sessions.values()):
                posting = session.lease is not None and session.lease.state == "posting"
                if not posting and now - session.last_heard > self.lease_s:
                    self._part(session, f"was not heard of for {self.lease_s:g} s")

    def take(self, timeout_s: float) -> list[Event]:
        """What has happened since, waiting for the first."""
        with self._changed:
            if not self._events and timeout_s > 0:
                self._changed.wait(timeout_s)
            events, self._events = list(self._events), deque()
            return events

    def close(self) -> None:
        """The run is over: whoever asks is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def doing(self) -> list[str]:
        """In words: who works on what, for how long."""
        with self._changed:
            now = self._clock()
            busy = [
                f"{lease.session.actor_id} on ticket {lease.ticket.header.ticket_id} for {now - lease.began:.0f} s"
                for lease in self._leases.values()
            ]
            idle = f"an outside actor to take {len(self._waiting)} tickets ({len(self._sessions)} are there)"
            return [*busy, idle] if self._waiting else busy

    @property
    def num_actors(self) -> int:
        with self._changed:
            return len(self._sessions)

    # The actors' side. Each raises Refused.

    def join(self, name: str, *, instead_of: str = "") -> Session:
        """`instead_of`: the secret of a session that the same actor had, if it is still here."""
        with self._changed:
            self._refuse_if_over()
            if (before := self._sessions.get(instead_of)) is not None:
                self._part(before, "joined again")
            if len(self._sessions) >= self._max_actors:
                raise Refused(
                    429, "too_many_actors", f"{self._max_actors} are here (max_actors)", retry_after_s=self.lease_s
                )
            self._joined += 1
            actor_id = f"outside-{self._joined}"
            session = Session(secrets.token_urlsafe(16), actor_id, name, self._clock())
            self._sessions[session.secret] = session
            return session

    def session(self, secret: str) -> Session:
        """Whose request this is; it counts as a word from it."""
        with self._changed:
            self._refuse_if_over()
            session = self._sessions.get(secret)
            if session is None:
                raise Refused(
                    404, "actor_unknown", f"POST /v1/join first, and again after {self.lease_s:g} s of silence"
                )
            session.last_heard = self._clock()
            return session

    def leave(self, session: Session) -> None:
        with self._changed:
            if session.secret in self._sessions:
                self._part(session, "left")

    def fetched(self, session: Session, epoch: int, version: int) -> None:
        with self._changed:
            session.versions = {known for known in session.versions if known[0] == epoch} | {(epoch, version)}

    def lease(self, session: Session, wait_s: float) -> Lease:
        """A ticket, waiting for one. An actor has one at a time: whoever asks again is given the same."""
        deadline = self._clock() + wait_s
        with self._changed:
            while True:
                self._refuse_if_over()
                if session.secret not in self._sessions:
                    raise Refused(404, "actor_unknown", "its lease has expired while it waited: join again")
                session.last_heard = self._clock()
                if session.lease is not None:
                    return session.lease
                if (ticket := self._next_for(session)) is not None:
                    return self._hand_out(session, ticket)
                remaining = deadline - self._clock()
                if remaining <= 0:
                    raise Refused(503, "no_ticket", "none may be issued now: ask again", retry_after_s=RETRY_S)
                self._changed.wait(min(remaining, self.lease_s / 4, 1.0))

    def renew(self, session: Session, secret: str) -> None:
        with self._changed:
            self._lease_of(session, secret)

    def begin_post(self, session: Session, secret: str) -> Lease | Outcome:
        """The lease under which a trajectory is about to be read, or how its first post was answered."""
        with self._changed:
            if secret in self._ended and self._ended[secret][1][0] == 200:
                return self._ended[secret][1]
            lease = self._lease_of(session, secret, book=True)
            if lease.state == "posting":
                raise Refused(503, "in_progress", "another post of it is being read", retry_after_s=RETRY_S)
            lease.state = "posting"
            return lease

    def give_back(self, lease: Lease) -> None:
        """The post was not even a record: the actor may post again."""
        with self._changed:
            lease.state = "open"
            lease.session.last_heard = self._clock()

    def accept(self, lease: Lease, produced: Produced, handle: Handle) -> Outcome:
        with self._changed:
            if self._leases.get(lease.secret) is not lease:  # its epoch ended meanwhile
                self._lease_of(lease.session, lease.secret, book=True)
            lease.session.invalid = 0
            outcome = self._end(lease, (200, "accepted", ""))
            self._tell(TicketProduced(produced, handle))
            return outcome

    def reject(self, lease: Lease, detail: str) -> None:
        """What was posted is not what the ticket asks for: the attempt is dropped."""
        session = lease.session
        with self._changed:
            if self._leases.get(lease.secret) is not lease:
                self._lease_of(session, lease.secret, book=True)
            self._fail(lease, "invalid", f"posted what is no trajectory of it: {detail}", status=422)
            session.invalid += 1
            if session.invalid >= MAX_INVALID:
                self._part(session, f"posted {MAX_INVALID} trajectories in a row that are none")

    # Inside, with the lock held.

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise Refused(410, "run_over", "the run has ended or was stopped")

    def _lease_of(self, session: Session, secret: str, *, book: bool = False) -> Lease:
        lease = self._leases.get(secret)
        if lease is not None and lease.session is session:
            return lease
        if secret in self._ended:
            header, (_, code, detail) = self._ended[secret]
            if book:
                self._tell(TicketRefused(header))
            raise Refused(409, "late" if code != "accepted" else "posted", detail or "it was posted and taken before")
        raise Refused(404, "lease_unknown", "no such lease of this actor: ask for a ticket")

    def _next_for(self, session: Session) -> Ticket | None:
        """The oldest ticket of a shard that it holds, or that nobody holds."""
        self._relieve(session)
        for ticket in self._waiting:
            holder = self._holders.get(ticket.lane)
            if (holder is None or holder[0] is session) and self._may_act(ticket):
                return ticket
        return None

    def _relieve(self, session: Session) -> None:
        """Whoever came early holds all shards. One whose ticket waits passes from who holds the most to a session that
        has two fewer and nothing to do: its envs begin anew there."""
        shards: dict[Session, list[int]] = {session: []}
        for lane, (holder, _) in self._holders.items():
            shards.setdefault(holder, []).append(lane)
        most = max(shards, key=lambda holder: len(shards[holder]))
        waiting = {ticket.lane for ticket in self._waiting}
        free = [lane for lane in waiting if lane not in self._holders or lane in shards[session]]
        if free or len(shards[most]) < len(shards[session]) + 2:
            return
        at_work = most.lease.ticket.lane if most.lease is not None else None
        spare = [lane for lane in shards[most] if lane in waiting and lane != at_work]
        if spare:
            self._lose_state(spare[-1], tell=True)

    def _may_act(self, ticket: Ticket) -> bool:
        """Whether weights that are new enough can be had."""
        if self._newest is None:
            return False
        epoch, version = self._newest
        return epoch == ticket.header.epoch and version >= ticket.min_policy_version

    def _hand_out(self, session: Session, ticket: Ticket) -> Lease:
        self._waiting.remove(ticket)
        payload = ticket.payload
        assert isinstance(payload, ShardPayload)
        incarnation = max(payload.incarnation, self._incarnations.get(ticket.lane, 0))
        self._incarnations[ticket.lane] = incarnation
        self._holders[ticket.lane] = (session, ticket.header.ticket_id)
        named = replace(ticket.header, actor_id=session.actor_id)
        given = replace(ticket, header=named, payload=replace(payload, incarnation=incarnation))
        lease = Lease(secrets.token_urlsafe(16), given, session, self._clock())
        session.lease = self._leases[lease.secret] = lease
        return lease

    def _end(self, lease: Lease, outcome: Outcome) -> Outcome:
        self._leases.pop(lease.secret, None)
        if lease.session.lease is lease:
            lease.session.lease = None
        lease.session.last_heard = self._clock()
        self._ended[lease.secret] = (lease.ticket.header, outcome)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        return outcome

    def _fail(self, lease: Lease, reason: str, what: str, *, status: int = 409) -> None:
        ticket, session = lease.ticket, lease.session
        detail = f"{session.actor_id} ({session.name}) {what}"
        self._end(lease, (status, reason, detail))
        self._lose_state(ticket.lane, tell=False)
        fault: Fault = "death" if reason == "actor_died" else "own"
        self._tell(TicketFailed(ticket.header, reason=reason, detail=detail, state_lost=True, fault=fault))

    def _part(self, session: Session, why: str) -> None:
        """The actor is gone, with the envs that it stepped."""
        del self._sessions[session.secret]
        if session.lease is not None:
            self._fail(session.lease, "actor_died", why)
        for lane in [lane for lane, (holder, _) in self._holders.items() if holder is session]:
            self._lose_state(lane, tell=True)
        self._changed.notify_all()

    def _lose_state(self, lane: int, *, tell: bool) -> None:
        """The shard begins anew with whoever takes it next, under another incarnation, as the coordinator is told."""
        _, newest = self._holders.pop(lane, (None, -1))
        if newest >= 0:
            self._incarnations[lane] = self._incarnations.get(lane, 0) + 1
            if tell:
                self._tell(StateLost((newest,)))

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._waiting.clear()
        for lease in list(self._leases.values()):
            self._end(lease, (409, "stale_epoch", "a restore has ended the epoch of this ticket"))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._changed.notify_all()
