"""What the simulation promises: no schedule breaks a promise of the loop, its books and its parameter server; bugs that
are planted are found; and what is simulated does as the real thing does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, cast

import pytest
import redis

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.ledger_table import ledger_keys
from rollcall.cluster.errors import LedgerConflict, StaleEpoch
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store
from tests.simulation.cost import cost_of_a_ticket
from tests.simulation.drive import private_redis, run
from tests.simulation.lua import Table, compiled
from tests.simulation.memory_redis import MemoryRedis
from tests.simulation.planted import PLANTED
from tests.simulation.schedule import FAULTS, Schedule
from tests.simulation.shrink import shrink

RARE = {"zombie_learner"}  # of 100 seeds none, of thousands some


@pytest.fixture(scope="module")
def server() -> Iterator[redis.Redis]:
    with private_redis() as client:
        yield client


@pytest.mark.parametrize("seed", [4761])  # Redis without its last writes, twice within one checkpoint
def test_a_schedule_that_broke_a_promise_once_breaks_none(seed: int) -> None:
    outcome = run(Schedule(seed))
    assert not outcome.violation, outcome.text
    assert any(fault.startswith("redis_forgets") for fault in outcome.faults)


@pytest.mark.long
def test_no_schedule_breaks_a_promise() -> None:
    """Of 100 seeds; thousands more: benchmarks/simulate.py. Every kind of fault is among them but the rarest."""
    outcomes = [run(Schedule(seed)) for seed in range(100)]
    assert [outcome.text for outcome in outcomes if outcome.violation] == []
    assert {fault.partition(":")[0] for outcome in outcomes for fault in outcome.faults} >= FAULTS.keys() - RARE
    assert sum(outcome.sealed > 0 for outcome in outcomes) >= 20, "books are sealed in some of them"


def test_hundreds_of_actors_break_none_either() -> None:
    outcome = run(Schedule(1, actors=300, steps=2))
    assert outcome.text == "" and outcome.tickets >= 300 and outcome.faults


@pytest.mark.parametrize("seed", [3, 9, 21])
def test_a_schedule_is_the_same_whenever_it_is_run_and_on_a_real_redis(seed: int, server: redis.Redis) -> None:
    once = run(Schedule(seed))
    assert run(Schedule(seed)) == once
    assert run(Schedule(seed), server) == once


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_bug_is_found_within_200_seeds(name: str) -> None:
    with PLANTED[name]():
        clean = takewhile(lambda seed: not run(Schedule(seed)).violation, range(200))
        assert sum(1 for _ in clean) < 200


def test_a_schedule_that_fails_shrinks_to_the_least_that_fails_alike() -> None:
    with PLANTED["double_commit"]():
        failed = next(outcome for outcome in map(run, map(Schedule, range(200))) if outcome.violation)
        least = shrink(failed, run)
        assert least.violation == failed.violation
        assert len(least.faults) < len(failed.faults)
        assert any(fault.startswith("learner_dies") for fault in least.faults)
        for fault in least.faults:  # none can be left out
            fewer = run(replace(least.schedule, only=frozenset(least.faults) - {fault}))
            assert fewer.violation != failed.violation
        assert least.tickets < failed.tickets
        assert not run(replace(least.schedule, only=frozenset())).violation
        assert f"--seed {failed.schedule.seed}" in least.schedule.command()
        assert f"--only {least.faults[0]}" in least.schedule.command()


def test_one_fault_less_leaves_the_others_where_they_were() -> None:
    """Draws are of names: what is left out changes nothing before it."""
    whole = run(Schedule(2))
    first, *others = whole.faults
    assert set(run(Schedule(2, only=frozenset({first}))).faults) == {first}
    assert others[0] not in run(Schedule(2, only=frozenset(whole.faults) - {others[0]})).faults


def test_the_cost_of_a_ticket_does_not_grow_with_the_number_of_actors() -> None:
    """Counted, not timed. With 1,000 and with 10,000: benchmarks/simulate.py --cost."""
    one, hundred = (cost_of_a_ticket(actors, tickets=1000) for actors in (1, 100))
    for name in ("calls", "round_trips", "bytes"):
        assert hundred[name] <= 1.1 * one[name]
    assert hundred["round_trips"] < 1.1


# What is simulated of Redis.


class _Twice:
    """A ledger on the simulated Redis and one on a real one: every call goes to both, and both answer alike."""

    def __init__(self, server: redis.Redis) -> None:
        server.flushall()
        self.clients = [cast(redis.Redis, MemoryRedis()), server]
        self.stores = [Store("twice", RedisConfig(), client) for client in self.clients]
        self.renew()

    def renew(self) -> None:
        self.ledgers = [Ledger(store, tickets_per_step=3) for store in self.stores]

    def __call__(self, call: Callable[[Ledger], Any]) -> Any:
        answers = [_answer(call, ledger) for ledger in self.ledgers]
        assert answers[0] == answers[1]
        assert self.tables(0) == self.tables(1)
        return answers[0]

    def tables(self, which: int) -> list[dict[str, str]]:
        return [cast(dict[str, str], self.clients[which].hgetall(key)) for key in ledger_keys(self.stores[which])]


def _answer(call: Callable[[Ledger], Any], ledger: Ledger) -> Any:
    try:
        return call(ledger)
    except (LedgerConflict, StaleEpoch) as error:
        return repr(error)


def _drawn_call(draw: random.Random, position: LedgerPosition | None) -> Callable[[Ledger], Any]:
    keys = sorted({(draw.randrange(9), draw.choice([1, 1, 1, 2, 3])) for _ in range(draw.choice([1, 3, 3]))})
    step, reason, final = draw.randrange(4), draw.choice(["stale", "deadline"]), draw.random() < 0.3
    calls: list[Callable[[Ledger], Any]] = [
        lambda ledger: ledger.issue(keys),
        lambda ledger: ledger.produced([(key, step) for key in keys]),
        lambda ledger: ledger.scored(keys),
        lambda ledger: ledger.commit(step, keys, skipped=final),
        lambda ledger: ledger.drop([(key, reason, final) for key in keys]),
        lambda ledger: ledger.refuse_duplicate(keys[0]),
        lambda ledger: ledger.counts(),
        lambda ledger: ledger.snapshot(step=step, next_ticket_id=9),
        lambda ledger: ledger.restore(position),
    ]
    return draw.choices(calls, [6, 6, 2, 6, 2, 1, 1, 2, 0.3])[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_simulated_redis_answers_the_ledger_as_a_real_one_does(seed: int, server: redis.Redis) -> None:
    """Random calls, most of them refused."""
    draw, both = random.Random(seed), _Twice(server)
    both(lambda ledger: ledger.open_epoch())
    position: LedgerPosition | None = None
    old = both.ledgers
    for _ in range(120):
        answer = both(_drawn_call(draw, position))
        position = answer if isinstance(answer, LedgerPosition) else position
        if draw.random() < 0.05:
            old = both.ledgers
            both.renew()
            both(partial(Ledger.restore, position=position))
        if draw.random() < 0.05:
            current, both.ledgers = both.ledgers, old
            both(_drawn_call(draw, position))
            both.ledgers = current


def test_lua_is_translated_as_far_as_it_is_known_and_refused_beyond() -> None:
    script = """
        local found, all = {}, 0 -- two at once
        for word, number in string.gmatch(ARGV[1], '(%a-)=(%d+)') do
          if number == '3' then found[#found + 1] = word .. '!'
          elseif not word then return nil else all = all + number end
        end
        local function twice(n) return n * 2 end
        while all < 10 do all = twice(all) end
        return { found[1] or 'none', all, #found, unpack(found) }
    """.replace("%a-", "[a-z]-")
    answer = compiled(script)(Table(), Table(["a=1,b=3,c=2"]), print)
    assert answer.array() == ["b!", 12, 1, "b!"]
    with pytest.raises(ValueError, match="goto"):
        compiled("return goto")
