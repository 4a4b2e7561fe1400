"""The referee: its own books of a simulated run, from what it sees pass between the loop and its workers. It reads
nothing that the loop or the ledger keep, until the end, when it holds theirs against its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rollcall.cluster.messages.attempt import Header, Produced, Ticket
from rollcall.cluster.messages.events import Event, StepDone, TicketFailed, TicketProduced, TicketScored, VersionMade
from rollcall.cluster.messages.reports import StepOrder
from tests.simulation.schedule import Shape
from tests.simulation.world import Violation

Key = tuple[int, int]


class Seen(Protocol):
    @property
    def header(self) -> Header: ...
    @property
    def min_policy_version(self) -> int: ...
    @property
    def reward_model_version(self) -> str: ...


class Referee:
    """Raises Violation as soon as a promise is broken."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.epoch = 0
        self.step = 0  # committed, as far as anybody was told
        self._made = 0  # the newest version that anybody was told of
        self.forgot = False  # Redis lost what no living driver remembers: attempts may be numbered anew
        self.tickets = 0
        self._issued: dict[Key, int] = {}  # -> epoch
        self._live: set[Key] = set()  # of this epoch: neither failed nor consumed
        self._answered: dict[tuple[Key, int], int] = {}  # (key, epoch) -> version that it was acted with
        self._asked: dict[tuple[Key, int], int] = {}  # (key, epoch) -> version that it was to be acted with
        self._training: dict[int, tuple[Key, ...]] = {}  # step -> its batch, not yet committed
        self.committed: dict[int, tuple[Key, ...]] = {}
        self._consumed: dict[int, int] = {}  # ticket -> step: in training or committed, in this timeline
        self._published: tuple[int, int, int] = (0, 0, -1)
        self._acting: dict[tuple[int, int], tuple[int, int]] = {}  # (actor, life) -> (epoch, version)

    # Drivers.

    def on_begun(self, epoch: int, step: int) -> None:
        """A driver, or a restore within one, goes on from `step`."""
        if epoch <= self.epoch and not self.forgot:
            raise Violation("epoch", f"epoch {epoch} is opened after {self.epoch}")
        if promised := set(range(step)) - self.committed.keys():
            raise Violation("checkpoint", f"of step {step}, but steps {sorted(promised)} were never learnt")
        self.committed = {done: keys for done, keys in self.committed.items() if done < step}
        self._training.clear()
        self._live.clear()
        if self.forgot:  # perhaps whole epochs, and what was issued in them
            self._issued = {key: issued for key, issued in self._issued.items() if issued < epoch}
            self._published = (0, 0, -1)
        self._consumed = {key[0]: done for done, keys in self.committed.items() for key in keys}
        self.epoch, self.step, self._made = epoch, step, step

    # What the loop asks for.

    def on_tickets(self, tickets: Sequence[Ticket]) -> None:
        self._live = {key for key in self._live if not self._is_stale(key)}
        for ticket in tickets:
            header, key = ticket.header, ticket.header.key
            self.tickets += 1
            if header.epoch != self.epoch:
                raise Violation("epoch", f"ticket {key} of epoch {header.epoch} is issued in epoch {self.epoch}")
            before = self._issued.get(key)
            if before is not None and (before == self.epoch or not self.forgot):
                raise Violation("attempt twice", f"{key} was issued in epoch {before}, and is in epoch {self.epoch}")
            if key[0] in self._consumed:
                raise Violation("consumed twice", f"{key} is issued, but step {self._consumed[key[0]]} has its ticket")
            if any((key[0], attempt) in self._live for attempt in range(1, key[1])):
                raise Violation("two attempts", f"{key} is issued while an earlier attempt is live")
            if not self.step <= ticket.min_policy_version <= self._made:
                raise Violation("version", f"{key} asks for {ticket.min_policy_version} of {self.step}..{self._made}")
            self._issued[key] = self.epoch
            self._asked[key, self.epoch] = ticket.min_policy_version
            self._live.add(key)
        live, most = len(self._live) + len(self._consumed), self._made + self._shape.lag + 1
        most = min(most, self._shape.steps) * self._shape.batch
        if live > most:
            raise Violation("too many", f"{live} tickets are live at step {self.step}, at most {most} may be")

    def on_step(self, order: StepOrder, rollouts: Sequence[Seen]) -> None:
        keys = tuple(rollout.header.key for rollout in rollouts)
        if order.epoch != self.epoch or order.step != self.step + len(self._training):
            raise Violation("order", f"{order} in epoch {self.epoch} at step {self.step}")
        if len(keys) != self._shape.batch:
            raise Violation("batch", f"step {order.step} has {len(keys)} tickets and not {self._shape.batch}")
        for rollout, key in zip(rollouts, keys, strict=True):
            if rollout.header.epoch != self.epoch:
                raise Violation("old epoch", f"step {order.step} of epoch {self.epoch} learns from {rollout.header}")
            if key[0] in self._consumed:
                raise Violation("consumed twice", f"{key} in step {order.step} and in {self._consumed[key[0]]}")
            if key not in self._live:
                raise Violation("not live", f"step {order.step} learns from {key}, which was given up")
            version = self._answered[key, self.epoch]
            if not 0 <= order.step - version <= self._shape.lag or version != rollout.min_policy_version:
                raise Violation("lag", f"step {order.step} learns from {key}, acted with version {version}")
            if bool(rollout.reward_model_version) != self._shape.scored:
                raise Violation("unscored", f"step {order.step} learns from {key}")
            self._live.discard(key)
            self._consumed[key[0]] = order.step
        self._training[order.step] = keys

    # What the workers say.

    def on_answer(self, rollout: Seen) -> None:
        self._answered[rollout.header.key, rollout.header.epoch] = rollout.min_policy_version

    def on_acting(self, actor: int, life: int, ticket: Ticket, epoch: int, version: int) -> None:
        if epoch != ticket.header.epoch or version < ticket.min_policy_version:
            raise Violation("weights", f"{ticket.header} is acted with epoch {epoch} version {version}")
        before = self._acting.get((actor, life), (0, 0))
        if (epoch, version) < before and not self.forgot:
            raise Violation("weights go back", f"actor {actor}: {before}, then {(epoch, version)}")
        self._acting[actor, life] = (epoch, version)

    def on_published(self, server: int, epoch: int, version: int) -> None:
        if (server, epoch) == self._published[:2] and version <= self._published[2]:
            raise Violation("versions go back", f"epoch {epoch}: {self._published[2]}, then {version}")
        self._published = (server, epoch, version)

    def on_told(self, events: Iterable[Event]) -> None:
        """Just before the loop hears of them."""
        for event in events:
            if isinstance(event, TicketFailed) and event.header.epoch == self.epoch:
                self._live.discard(event.header.key)
            elif isinstance(event, TicketProduced) and self._is_older_than_asked(event.produced):
                self._live.discard(event.produced.header.key)
            elif isinstance(event, TicketScored if self._shape.scored else TicketProduced):
                header = event.produced.header
                if self._shape.language and event.produced.is_degenerate and header.epoch == self.epoch:
                    self._live.discard(header.key)  # it teaches nothing: another ticket takes its place
            elif isinstance(event, VersionMade) and event.epoch == self.epoch:
                self._made = max(self._made, event.version)
            elif isinstance(event, StepDone) and event.report.epoch == self.epoch:
                report = event.report
                keys = self._training.pop(report.step, None)
                if keys is None:
                    raise Violation("order", f"step {report.step} is done, and nobody asked for it")
                if report.interrupted:
                    for key in keys:
                        del self._consumed[key[0]]
                    continue
                self.committed[report.step] = keys
                self.step = report.step + 1
                self._made = max(self._made, self.step)

    def _is_older_than_asked(self, produced: Produced) -> bool:
        return produced.min_policy_version < self._asked.get((produced.header.key, produced.header.epoch), 0)

    def _is_stale(self, key: Key) -> bool:
        """Whether the loop had to drop it, without anybody saying so."""
        next_step = self.step + len(self._training)
        version = self._answered.get((key, self.epoch), next_step)
        return next_step - version > self._shape.lag

    # The end.

    def at_end(self, final: dict[Key, tuple[str, bool]]) -> None:
        """`final`: every attempt in the ledger -> (state, whether its ticket is done with)."""
        mine = {key for keys in self.committed.values() for key in keys}
        theirs = {key for key, (state, _) in final.items() if state == "committed"}
        if mine != theirs:
            raise Violation("books", f"only here {sorted(mine - theirs)[:5]}, only there {sorted(theirs - mine)[:5]}")
        ends: dict[int, int] = {}
        for (ticket, _), (_, done) in final.items():
            ends[ticket] = ends.get(ticket, 0) + done
        # Where nothing was ever restored no ticket is left over. A restore takes back drops for good, and so may leave
        # more tickets than there is room for: they wait for a longer run.
        least = 1 if self.epoch == 1 else 0
        wrong = {ticket: number for ticket, number in ends.items() if not least <= number <= 1}
        if wrong:
            raise Violation("ends", f"each ticket ends once; ticket: number of ends {dict(sorted(wrong.items())[:5])}")
        if missing := set(range(max(ends, default=-1) + 1)) - ends.keys():
            raise Violation("lost", f"tickets {sorted(missing)[:5]} were never booked")
