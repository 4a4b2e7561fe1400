"""Simulated actors and who scores for them: they take weights from the real parameter server, take a heavy-tailed time,
die, are cut off, and answer late or twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rollcall.cluster.errors import StaleEpoch
from rollcall.cluster.messages.attempt import (
    EpisodeStats,
    Header,
    Produced,
    SampleStats,
    Scoring,
    ShardPayload,
    Ticket,
    Timing,
)
from rollcall.cluster.messages.events import StateLost, TicketFailed, TicketProduced, TicketScored
from rollcall.cluster.parameter_server import ParameterServer
from tests.simulation.referee import Referee
from tests.simulation.schedule import Chances, Shape
from tests.simulation.world import World

TICKET_S = 1.0  # the shortest
LATENCY_S = 0.02
PARTITION_S = 20.0


@dataclass(frozen=True)
class Rollout:
    """What stands for a trajectory."""

    header: Header
    min_policy_version: int
    reward_model_version: str = ""

    def digest(self) -> str:
        return f"{self.header.ticket_id}-{self.header.attempt}-{self.header.epoch}"


@dataclass(slots=True, eq=False)
class Actor:
    index: int
    life: int = 0
    is_up: bool = True
    works: bool = False
    waits: bool = False  # for weights
    pending: deque[Ticket] = field(default_factory=deque)
    kept: dict[int, int] = field(default_factory=dict)  # shard -> its last ticket


class Actors:
    """All actors of a run."""

    def __init__(
        self,
        world: World,
        chances: Chances,
        referee: Referee,
        shape: Shape,
        *,
        server: Callable[[], ParameterServer | None],
    ) -> None:
        """`server`: None while it is lost."""
        self._world, self._chances, self._referee, self._shape = world, chances, referee, shape
        self._server = server
        self._actors: dict[int, Actor] = {}  # those that were ever given work
        self._waiting: list[Actor] = []
        self.restarts = 0

    def submit(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            index = ticket.lane % self._shape.actors
            actor = self._actors.setdefault(index, Actor(index))
            actor.pending.append(ticket)
            self._begin(actor)

    def published(self) -> None:
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            actor.waits = False
            self._begin(actor)

    def server_lost(self) -> None:
        """Whoever waits there loses its actor with it."""
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            actor.waits = False
            self._lose(actor, "actor_died", "it lost whoever gave it weights")

    def doing(self) -> str:
        busy = [actor for actor in self._actors.values() if actor.pending]
        return f"{len(busy)} actors, {len(self._waiting)} of them for weights"

    def _begin(self, actor: Actor) -> None:
        if not actor.is_up or actor.works or actor.waits or not actor.pending:
            return
        ticket = actor.pending[0]
        server = self._server()
        if server is None:
            self._lose(actor, "actor_died", "it lost whoever gave it weights")
            return
        header, oldest = ticket.header, ticket.min_policy_version
        try:
            weights = server.latest(epoch=header.epoch, newer_than=oldest - 1, timeout_s=0.0, reader=f"a{actor.index}")
        except StaleEpoch as error:
            actor.pending.popleft()
            self._world.tell(TicketFailed(header, "stale_epoch", str(error), False), LATENCY_S)
            self._begin(actor)
            return
        if weights is None:
            actor.waits = True
            self._waiting.append(actor)
            return
        self._referee.on_acting(actor.index, actor.life, ticket, weights.epoch, weights.version)
        version, here = weights.version, (*header.key, header.epoch)
        if self._chances.happens("stale", *here):
            version = max(0, oldest - self._shape.lag - 1)
        actor.works = True
        self._work(actor, ticket, version, here)

    def _work(self, actor: Actor, ticket: Ticket, version: int, here: tuple[int, int, int]) -> None:
        life, chances = actor.life, self._chances
        takes_s = TICKET_S * chances.pareto(self._shape.tail, "takes", *here)
        if chances.happens("actor_dies", *here):
            dies_s = min(takes_s, ticket.deadline_s) * chances.unit("dies at", *here)
            self._world.after(dies_s, lambda: self._dies(actor, life, ticket, version, "it was killed"))
        elif takes_s > ticket.deadline_s:
            overdue = "it has not returned within its deadline"
            self._world.after(
                ticket.deadline_s, lambda: self._dies(actor, life, ticket, version, overdue, reason="deadline")
            )
        elif chances.happens("dies_before_handover", *here):
            self._world.after(takes_s, lambda: self._dies(actor, life, ticket, version, "it was killed"))
        else:
            self._world.after(takes_s, lambda: self._finish(actor, life, ticket, version))

    def _finish(self, actor: Actor, life: int, ticket: Ticket, version: int) -> None:
        if life != actor.life:  # it was given up meanwhile
            return
        here = (*ticket.header.key, ticket.header.epoch)
        window = int(self._world.now / PARTITION_S)
        group = actor.index % 4
        late_s = LATENCY_S
        if self._chances.happens("partition", window, group):
            late_s += PARTITION_S * (window + 1) - self._world.now
            if self._chances.happens("given_up", window, actor.index):
                self._answer(ticket, actor.index, version, late_s + 1.0)
                self._lose(actor, "actor_died", "it does not answer")
                return
        actor.pending.popleft()
        actor.works = False
        if isinstance(ticket.payload, ShardPayload):
            actor.kept[ticket.lane] = ticket.header.ticket_id
        self._answer(ticket, actor.index, version, late_s)
        if self._chances.happens("doubled", *here):
            self._answer(ticket, actor.index, version, late_s + 3 * self._chances.unit("second", *here))
        self._begin(actor)

    def _dies(
        self, actor: Actor, life: int, ticket: Ticket, version: int, detail: str, *, reason: str = "actor_died"
    ) -> None:
        if life != actor.life:
            return
        here = (*ticket.header.key, ticket.header.epoch)
        self._lose(actor, reason, f"{detail}")
        if self._chances.happens("zombie", *here):
            self._answer(ticket, actor.index, version, 0.5 + 20 * self._chances.unit("zombie at", *here))

    def _lose(self, actor: Actor, reason: str, detail: str) -> None:
        lost, actor.pending = actor.pending, deque()
        actor.life, actor.is_up, actor.works, self.restarts = actor.life + 1, False, False, self.restarts + 1
        for position, ticket in enumerate(lost):
            failed = TicketFailed(ticket.header, reason if position == 0 else "actor_died", detail, True)
            self._world.tell(failed, LATENCY_S)
        lanes = {ticket.lane for ticket in lost}
        idle = tuple(sorted(ticket_id for lane, ticket_id in actor.kept.items() if lane not in lanes))
        actor.kept.clear()
        if idle:
            self._world.tell(StateLost(idle), LATENCY_S)
        self._world.after(self._chances.between(0.1, 5.0, "back", actor.index, actor.life), lambda: self._back(actor))

    def _back(self, actor: Actor) -> None:
        actor.is_up = True
        self._begin(actor)

    def _answer(self, ticket: Ticket, index: int, version: int, delay_s: float) -> None:
        header = replace(ticket.header, actor_id=f"actor-{index}")
        rollout = Rollout(ticket.header, version)
        samples: tuple[SampleStats, ...] = ()
        if self._shape.language:
            equal = self._chances.happens("degenerate", *header.key, header.epoch)
            samples = tuple(SampleStats(0.0 if equal else reward, False, True, 4, False) for reward in (0.0, 1.0))
        produced = Produced(
            header=header,
            min_policy_version=version,
            size_bytes=100,
            timing=Timing(act_s=1.0),
            num_steps=0 if samples else 5,
            num_tokens=8 if samples else 0,
            episodes=() if samples else (EpisodeStats(1.0, 5),),
            samples=samples,
        )
        self._referee.on_answer(rollout)
        self._world.tell(TicketProduced(produced, rollout), delay_s)


class Scorers:
    """The reward service: slow, sometimes without a score, and it may answer twice."""

    def __init__(self, world: World, chances: Chances, shape: Shape) -> None:
        self._world, self._chances, self._shape = world, chances, shape

    def submit(self, produced: Produced, rollout: Rollout) -> None:
        here = (*produced.header.key, produced.header.epoch)
        takes_s = min(60.0, 0.2 * self._chances.pareto(self._shape.tail, "scores", *here))  # it has a deadline
        if self._chances.happens("unscored", *here):
            self._world.tell(TicketFailed(produced.header, "unscored", "the scorer raised", False), takes_s)
            return
        scored = TicketScored(
            replace(produced, scoring=Scoring("v1", 0.5, takes_s)), replace(rollout, reward_model_version="v1")
        )
        self._world.tell(scored, takes_s)
        if self._chances.happens("doubled", *here, "score"):
            self._world.tell(scored, takes_s + 1.0)
