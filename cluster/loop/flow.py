"""Flow control: when a ticket may be issued, when a learner step may begin, and which rollouts it takes.
A pure state machine, without clocks or processes: it must never know who produces and who learns.

One knob, `max_policy_lag` (eta). With B tickets per learner step and v batches consumed so far:

- issue a ticket only if, counting it, live <= min(v + eta + 1, total) * B, where live counts the attempts neither
  dropped nor rolled back; or ahead of time, while a batch is in training of a run that ends by learner steps, with
  v + 1 in place of v: such a ticket waits for the version that this batch makes, carries its number, and until then
  takes nobody's room: what is dropped of the others is replaced at once;
- cut a batch oldest version first, readiness breaking ties (in ticket order at eta = 0);
- begin a step at v only if afterwards, for every j in 0..eta, at most j * B outstanding tickets (queued or in flight)
  have a version <= v + j - eta: otherwise those would be too old by the time a batch has room for them;
- check again, exactly, at the cut: v - min_version <= eta, else the rollout is dropped as stale.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, Literal, TypeVar

Handle = TypeVar("Handle")
OnStale = Literal["wait", "drop"]


@dataclass(frozen=True, slots=True)
class Ready(Generic[Handle]):
    """A finished rollout that waits for its batch."""

    ticket_id: int
    attempt: int
    min_version: int
    order: int  # in which rollouts became ready
    handle: Handle


@dataclass(frozen=True, slots=True)
class Cut(Generic[Handle]):
    """A batch, and the rollouts that were too old for it."""

    batch: tuple[Ready[Handle], ...]
    stale: tuple[Ready[Handle], ...]


class FlowControl(Generic[Handle]):
    """Books of what is in flight, queued, and in training. Not thread-safe: one driver owns it."""

    def __init__(
        self,
        *,
        tickets_per_step: int,
        max_policy_lag: int,
        total_learner_steps: int | None,
        version: int = 0,
        on_stale: OnStale = "wait",
    ) -> None:
        if tickets_per_step < 1:
            raise ValueError(f"tickets_per_step={tickets_per_step}: must be at least 1")
        if max_policy_lag < 0:
            raise ValueError(f"max_policy_lag={max_policy_lag}: must be at least 0")
        self.tickets_per_step = tickets_per_step
        self.max_policy_lag = max_policy_lag
        self.total_learner_steps = total_learner_steps
        self.version = version  # v: batches consumed; also the policy version the next step starts from
        self.on_stale = on_stale
        self._in_flight: dict[int, int] = {}  # ticket id -> version it was issued under (its oldest possible)
        self._ready: dict[int, Ready[Handle]] = {}
        self._ready_of: dict[int, dict[int, Ready[Handle]]] = {}  # version -> its ready ones, in the order they came
        self._outstanding: Counter[int] = Counter()  # version -> how many are in flight or ready
        self._training: list[tuple[Ready[Handle], ...]] = []  # batches cut and not yet consumed
        self._ahead: set[int] = set()  # live tickets that were issued ahead of time under this version
        self._order = 0

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    @property
    def num_live(self) -> int:
        """Attempts neither dropped nor rolled back, consumed ones among them."""
        training = sum(len(batch) for batch in self._training)
        return self.version * self.tickets_per_step + training + len(self._ready) + len(self._in_flight)

    @property
    def next_step(self) -> int:
        """The step the next cut is for: consumed batches plus those in training."""
        return self.version + len(self._training)

    def may_issue(self, *, ahead: bool = False) -> bool:
        """`ahead`: also what has to wait for the version that the oldest batch in training makes."""
        after = self.num_live + 1
        if self.total_learner_steps is None:
            ahead = False  # any step may be the last: nobody should be at work after it
        elif after > self.total_learner_steps * self.tickets_per_step:
            return False
        bound = self.version + self.max_policy_lag + 2
        return self._has_room or (ahead and bool(self._training) and after <= bound * self.tickets_per_step)

    def issued(self, ticket_id: int) -> int:
        """Books a ticket as in flight; returns the min_policy_version it must carry."""
        assert ticket_id not in self._in_flight and ticket_id not in self._ready
        version = self.version
        if not self._has_room:
            self._ahead.add(ticket_id)
            version += 1
        self._in_flight[ticket_id] = version
        self._outstanding[version] += 1
        return version

    @property
    def _has_room(self) -> bool:
        """For a ticket of this version."""
        most = (self.version + self.max_policy_lag + 1) * self.tickets_per_step
        return self.num_live - len(self._ahead) + 1 <= most

    def is_in_flight(self, ticket_id: int) -> bool:
        return ticket_id in self._in_flight

    def issued_under(self, ticket_id: int) -> int:
        """The version that a ticket in flight was to be acted with, or with a newer one."""
        return self._in_flight[ticket_id]

    def produced(self, ticket_id: int, attempt: int, min_version: int, handle: Handle) -> None:
        self._forget(self._in_flight.pop(ticket_id))
        ready = Ready(ticket_id, attempt, min_version, self._order, handle)
        self._ready[ticket_id] = ready
        self._ready_of.setdefault(min_version, {})[ticket_id] = ready
        self._outstanding[min_version] += 1
        self._order += 1

    def dropped(self, ticket_id: int) -> Ready[Handle] | None:
        """Forgets an attempt that was in flight or ready; returns it if it was ready."""
        self._ahead.discard(ticket_id)
        version = self._in_flight.pop(ticket_id, None)
        if version is not None:
            self._forget(version)
        return self._take(ticket_id) if ticket_id in self._ready else None

    def cut(self) -> Cut[Handle] | None:
        """The batch for `next_step`, if a step may begin; None while it has to wait.

        Rollouts that are too old are taken out and returned as stale; without a batch, too, when there are any: their
        tickets have to be issued again before a batch can be complete.
        """
        step = self.next_step
        too_old = [version for version in self._ready_of if step - version > self.max_policy_lag]
        stale = [ready for version in too_old for ready in self._ready_of[version].values()]
        stale.sort(key=lambda ready: ready.order)
        for ready in stale:
            self.dropped(ready.ticket_id)
        if len(self._ready) < self.tickets_per_step or not self._may_begin(step):
            return Cut((), tuple(stale)) if stale else None
        chosen = self._choose()
        for ready in chosen:
            self._take(ready.ticket_id)
        self._training.append(chosen)
        return Cut(chosen, tuple(stale))

    def consumed(self) -> None:
        """The oldest batch in training was trained on (or skipped): v advances."""
        self._training.pop(0)
        self.version += 1
        self._ahead.clear()  # their version is there

    def given_up(self) -> None:
        """The oldest batch in training will not be trained on: its tickets are forgotten, v stays."""
        self._training.pop(0)

    def blocked_by(self) -> list[int]:
        """Ticket ids in flight that a step waits for, oldest version first."""
        return sorted(self._in_flight, key=lambda ticket_id: (self._in_flight[ticket_id], ticket_id))

    def _choose(self) -> tuple[Ready[Handle], ...]:
        if self.max_policy_lag == 0:
            batch = sorted(self._ready.values(), key=lambda r: r.ticket_id)[: self.tickets_per_step]
        else:
            oldest_first = (self._ready_of[version].values() for version in sorted(self._ready_of))
            batch = list(islice(chain.from_iterable(oldest_first), self.tickets_per_step))
        # In ticket order whatever made it into the batch: which tickets it holds decides the result, not their timing.
        return tuple(sorted(batch, key=lambda r: r.ticket_id))

    def _may_begin(self, step: int) -> bool:
        """Counts by version, of which there are hardly more than max_policy_lag: however many rollouts there are."""
        if self.on_stale == "drop":
            return True
        room = self.tickets_per_step  # in the batch, which takes the oldest of what is ready
        left = dict(self._outstanding)
        for version in sorted(self._ready_of):
            taken = min(room, len(self._ready_of[version]))
            left[version] -= taken
            room -= taken
        older = sum(count for version, count in left.items() if version < step - self.max_policy_lag)
        for j in range(self.max_policy_lag + 1):
            older += left.get(step + j - self.max_policy_lag, 0)
            if older > j * self.tickets_per_step:
                return False
        return True

    def _take(self, ticket_id: int) -> Ready[Handle]:
        """Out of those that are ready."""
        ready = self._ready.pop(ticket_id)
        together = self._ready_of[ready.min_version]
        del together[ticket_id]
        if not together:
            del self._ready_of[ready.min_version]
        self._forget(ready.min_version)
        return ready

    def _forget(self, version: int) -> None:
        self._outstanding[version] -= 1
        if not self._outstanding[version]:
            del self._outstanding[version]
