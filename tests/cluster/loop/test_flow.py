"""The flow-control rules, against a simulation of actors with heavy-tailed durations."""

from __future__ import annotations

import heapq
import itertools
from typing import Any, Literal

import numpy as np
import pytest

from rollcall.cluster.loop.flow import Cut, FlowControl


def simulate(
    *,
    eta: int,
    seed: int,
    num_actors: int,
    tickets_per_step: int,
    steps: int,
    on_stale: Literal["wait", "drop"] = "wait",
    learn_s: float = 1.0,
    ahead: bool = False,
) -> dict[str, float]:
    """Actors take tickets in order and act under the newest version at the moment they begin; durations are Pareto
    (shape 1.2: infinite variance). Returns what happened; raises on a deadlock or on a bound that is broken."""
    rng = np.random.default_rng(seed)
    flow: FlowControl[None] = FlowControl(
        tickets_per_step=tickets_per_step, max_policy_lag=eta, total_learner_steps=steps, on_stale=on_stale
    )
    clock, next_ticket, max_lag, dropped, issued = 0.0, 0, 0, 0, 0
    waiting: list[tuple[int, int, int]] = []  # (version, ticket, attempt) without an actor
    reissue: list[tuple[int, int]] = []
    idle = num_actors
    events: list[tuple[float, int, str, tuple[int, int, int]]] = []
    learner_busy = False
    serial = 0
    while flow.version < steps:
        while flow.may_issue(ahead=ahead):
            ticket, attempt = reissue.pop(0) if reissue else (next_ticket, 1)
            next_ticket += attempt == 1
            waiting.append((flow.issued(ticket), ticket, attempt))
            issued += 1
        assert flow.num_live <= min(flow.version + eta + 1 + (ahead and learner_busy), steps) * tickets_per_step
        while idle and waiting and waiting[0][0] <= flow.version:
            idle -= 1
            _, ticket, attempt = waiting.pop(0)
            serial += 1
            heapq.heappush(events, (clock + rng.pareto(1.2) + 0.1, serial, "produced", (ticket, attempt, flow.version)))
        if not learner_busy:
            cut = flow.cut()
            if cut:
                for ready in cut.stale:
                    dropped += 1
                    reissue.append((ready.ticket_id, ready.attempt + 1))
                if cut.batch:
                    max_lag = max(max_lag, *(flow.version - ready.min_version for ready in cut.batch))
                    learner_busy = True
                    serial += 1
                    heapq.heappush(events, (clock + learn_s, serial, "learned", (0, 0, 0)))
                continue
        assert events, f"deadlock at version {flow.version}: nothing runs and nothing may begin"
        clock, _, kind, (ticket, attempt, version) = heapq.heappop(events)
        if kind == "produced":
            idle += 1
            flow.produced(ticket, attempt, version, None)
        else:
            learner_busy = False
            flow.consumed()
    in_flight = flow.num_in_flight + flow.num_ready
    return {"max_lag": max_lag, "dropped": dropped, "issued": issued, "in_flight": in_flight, "clock": clock}


class LiteralFlow(FlowControl[None]):
    """A cut as the rules read: over every rollout, each time."""

    def cut(self) -> Cut[None] | None:
        step, eta, size = self.next_step, self.max_policy_lag, self.tickets_per_step
        stale = tuple(ready for ready in self._ready.values() if step - ready.min_version > eta)
        for ready in stale:
            self.dropped(ready.ticket_id)
        by_age = sorted(self._ready.values(), key=lambda r: (r.min_version, r.order) if eta else (r.ticket_id, 0))
        chosen = tuple(sorted(by_age[:size], key=lambda r: r.ticket_id))
        left = [*self._in_flight.values(), *(r.min_version for r in self._ready.values() if r not in chosen)]
        waits = any(sum(version <= step + j - eta for version in left) > j * size for j in range(eta + 1))
        if len(chosen) < size or (waits and self.on_stale == "wait"):
            return Cut((), stale) if stale else None
        for ready in chosen:
            self.dropped(ready.ticket_id)
        self._training.append(chosen)
        return Cut(chosen, stale)


@pytest.mark.parametrize("on_stale", ["wait", "drop"])
@pytest.mark.parametrize("eta", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_cuts_are_those_of_the_rules_read_literally(eta: int, seed: int, on_stale: Literal["wait", "drop"]) -> None:
    rng = np.random.default_rng(seed)
    rules: dict[str, Any] = {"tickets_per_step": 3, "max_policy_lag": eta, "total_learner_steps": 60}
    flow: FlowControl[None] = FlowControl(**rules, on_stale=on_stale)
    literal = LiteralFlow(**rules, on_stale=on_stale)
    issued: dict[int, int] = {}
    for number in range(600):
        if flow.may_issue(ahead=bool(seed)):
            issued[number] = flow.issued(number)
            assert literal.issued(number) == issued[number] == flow.issued_under(number)
        flying = [t for t, version in issued.items() if flow.is_in_flight(t) and version <= flow.version]
        if flying and rng.random() < 0.7:
            ticket = int(rng.choice(flying))
            newer = int(rng.integers(issued[ticket], flow.version + 1))
            for each in (flow, literal):
                each.produced(ticket, 1, newer, None) if number % 9 else each.dropped(ticket)
        cut = flow.cut()
        assert cut == literal.cut()
        if flow.next_step > flow.version and rng.random() < 0.5:
            flow.consumed()
            literal.consumed()
    assert flow.version > 20


@pytest.mark.parametrize("eta", range(5))
@pytest.mark.parametrize(("num_actors", "tickets_per_step"), [(1, 1), (3, 4), (8, 4), (16, 5), (40, 8)])
def test_no_deadlock_no_rollout_over_the_bound_and_nothing_dropped(
    eta: int, num_actors: int, tickets_per_step: int
) -> None:
    for seed, ahead in itertools.product(range(5), (False, True)):
        result = simulate(
            eta=eta, seed=seed, num_actors=num_actors, tickets_per_step=tickets_per_step, steps=60, ahead=ahead
        )
        assert result["max_lag"] <= eta
        assert result["dropped"] == 0
        assert result["in_flight"] == 0  # a completed run leaves nothing behind
        assert result["issued"] == 60 * tickets_per_step


def test_lag_buys_time_when_durations_are_heavy_tailed() -> None:
    def run(eta: int) -> float:
        return sum(simulate(eta=eta, seed=s, num_actors=8, tickets_per_step=8, steps=60)["clock"] for s in range(5))

    assert run(1) < run(0)
    assert run(4) < run(1)


@pytest.mark.parametrize("eta", range(1, 5))
def test_drop_keeps_the_bound_too_and_every_ticket_is_issued_again(eta: int) -> None:
    results = [
        simulate(eta=eta, seed=s, num_actors=16, tickets_per_step=4, steps=60, on_stale="drop", learn_s=0.3)
        for s in range(5)
    ]
    for result in results:
        assert result["max_lag"] <= eta
        assert result["issued"] == 60 * 4 + result["dropped"]
        assert result["in_flight"] == 0
    assert sum(result["dropped"] for result in results) > 0  # else this test shows nothing


def test_batches_are_cut_oldest_version_first_and_readiness_breaks_ties() -> None:
    flow: FlowControl[str] = FlowControl(tickets_per_step=2, max_policy_lag=2, total_learner_steps=10)
    for ticket in range(6):
        assert flow.may_issue()
        flow.issued(ticket)
    assert not flow.may_issue()
    for ticket, version in [(5, 0), (3, 1), (2, 0), (4, 1), (0, 1), (1, 1)]:
        flow.produced(ticket, 1, version, "")
    cut = flow.cut()
    assert cut is not None and [ready.ticket_id for ready in cut.batch] == [2, 5]


def test_lag_zero_takes_tickets_in_order_and_waits_for_all() -> None:
    flow: FlowControl[str] = FlowControl(tickets_per_step=3, max_policy_lag=0, total_learner_steps=2)
    assert [flow.issued(t) for t in range(3)] == [0, 0, 0]
    assert not flow.may_issue()
    flow.produced(2, 1, 0, "")
    flow.produced(0, 1, 0, "")
    assert flow.cut() is None
    flow.produced(1, 1, 0, "")
    cut = flow.cut()
    assert cut is not None and [ready.ticket_id for ready in cut.batch] == [0, 1, 2]
    assert not flow.may_issue()  # until the batch is consumed
    flow.consumed()
    assert flow.may_issue()


def test_what_is_issued_ahead_carries_the_version_in_the_making_and_is_a_batch_at_most() -> None:
    flow: FlowControl[str] = FlowControl(tickets_per_step=2, max_policy_lag=0, total_learner_steps=2)
    assert [flow.issued(ticket) for ticket in range(2)] == [0, 0]
    assert not flow.may_issue(ahead=True), "nothing is in training: there is no version to wait for"
    for ticket in range(2):
        flow.produced(ticket, 1, 0, "")
    assert flow.cut() is not None
    assert flow.may_issue(ahead=True) and not flow.may_issue()
    assert [flow.issued(ticket) for ticket in (2, 3)] == [1, 1]
    assert not flow.may_issue(ahead=True)
    flow.consumed()
    for ticket in (2, 3):
        flow.produced(ticket, 1, 1, "")
    assert flow.cut() is not None
    assert not flow.may_issue(ahead=True), "the run has no third step"


def test_what_is_dropped_beside_tickets_that_were_issued_ahead_is_replaced_at_once() -> None:
    flow: FlowControl[str] = FlowControl(tickets_per_step=2, max_policy_lag=1, total_learner_steps=9)
    assert [flow.issued(ticket) for ticket in range(4)] == [0, 0, 0, 0]
    for ticket in range(2):
        flow.produced(ticket, 1, 0, "")
    assert flow.cut() is not None
    assert flow.may_issue(ahead=True) and [flow.issued(ticket) for ticket in (4, 5)] == [1, 1]
    flow.dropped(2)
    assert flow.may_issue(), "with the version that is there: the next batch waits for it"
    assert flow.issued(6) == 0 and not flow.may_issue(ahead=True)
    flow.dropped(5)
    assert not flow.may_issue() and flow.may_issue(ahead=True)
    assert flow.issued(7) == 1
    flow.consumed()
    assert flow.num_live == 6 and not flow.may_issue(), "what was issued ahead is of this version now"


def test_nothing_is_issued_ahead_of_a_step_that_may_be_the_last() -> None:
    for total, ahead in ((None, False), (5, True)):
        flow: FlowControl[str] = FlowControl(tickets_per_step=1, max_policy_lag=0, total_learner_steps=total)
        flow.issued(0)
        flow.produced(0, 1, 0, "")
        assert flow.cut() is not None
        assert flow.may_issue(ahead=True) is ahead


def test_a_rollout_over_the_bound_is_dropped_at_the_cut() -> None:
    flow: FlowControl[str] = FlowControl(tickets_per_step=1, max_policy_lag=1, total_learner_steps=9, version=5)
    flow.issued(0)
    flow.produced(0, 1, 3, "")
    cut = flow.cut()
    assert cut is not None and cut.batch == () and [ready.ticket_id for ready in cut.stale] == [0]
    assert flow.num_live == 5 and flow.may_issue()
