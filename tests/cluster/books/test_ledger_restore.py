"""A checkpoint brings the books back, whatever Redis has kept: the same state, behind it, beyond it, or nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.history import PLAIN_ROWS, History
from rollcall.cluster.books.ledger import Ledger, LedgerPosition
from rollcall.cluster.books.ledger_table import Attempt, LedgerTable, read_table
from rollcall.cluster.errors import LedgerConflict, StaleEpoch
from rollcall.cluster.store.store import Store

Run = Any  # the SimulatedRun of conftest.py


@pytest.mark.parametrize("seed", range(40))
def test_whatever_redis_forgets_the_resumed_run_ends_with_balanced_books(
    seed: int, tmp_path: Path, store: Store, simulated_run: Run
) -> None:
    """A random run with faults is killed up to three times; each time Redis comes back as it was at some moment before,
    or empty. The audit then holds ledger, log, metrics and checkpoints against each other."""
    chance = random.Random(seed)
    run = simulated_run(tmp_path / "run", store, seed=seed, lag=chance.choice([0, 1, 3]), batch=chance.choice([1, 3]))
    run.begin()
    for _ in range(chance.randrange(1, 4)):
        moments: list[dict[str, dict[str, str]]] = [{}]
        for _ in range(chance.randrange(60)):
            if run.step >= run.total:
                break
            run.tick()
            moments.append(run.dump())
        run.put_back(chance.choice([moments[0], moments[-1], chance.choice(moments)]))
        run.resume()
        assert audit_run(run.directory) == []
    run.finish()
    assert audit_run(run.directory) == []
    assert run.ledger.counts().committed == run.total * run.batch


def test_an_empty_redis_is_written_anew_from_the_checkpoint(tmp_path: Path, store: Store, simulated_run: Run) -> None:
    run = simulated_run(tmp_path / "run", store, seed=3).begin()
    run.run_to(6)
    position = run.checkpoint()
    before = read_table(store)
    run.put_back({})
    plan = run.ledger.restore(position)
    after = read_table(store)
    assert after.steps == before.steps
    open_keys = {f"{ticket}:{attempt}" for ticket, attempt, _ in position.open}
    assert {k: v for k, v in after.attempts.items() if k not in open_keys} == {
        k: v for k, v in before.attempts.items() if k not in open_keys
    }
    assert plan.reissue == tuple((ticket, attempt + 1) for ticket, attempt, _ in position.open)


def test_steps_beyond_the_checkpoint_are_rolled_back_and_issued_again(store: Store) -> None:
    ledger = Ledger(store, tickets_per_step=2)
    ledger.open_epoch()
    position = ledger.snapshot(step=0, next_ticket_id=0)
    keys = [(0, 1), (1, 1)]
    ledger.issue([*keys, (2, 1), (3, 1)])
    ledger.produced([(key, 0) for key in keys])
    ledger.commit(0, keys)
    ledger.drop([((2, 1), "attempts_exhausted", True)])
    plan = ledger.restore(position)
    counts = ledger.counts()
    assert (counts.committed, counts.rolled_back, counts.in_flight) == (0, 2, 0)
    assert counts.dropped_by_reason == {"attempts_exhausted": 1, "restored": 1}
    # Also ticket 2: that it was given up was decided after the checkpoint.
    assert plan.reissue == ((0, 2), (1, 2), (2, 2), (3, 2))
    assert plan.next_ticket_id == 4


def test_a_restore_repeated_after_a_kill_gives_the_same_plan(tmp_path: Path, store: Store, simulated_run: Run) -> None:
    run = simulated_run(tmp_path / "run", store, seed=5).begin()
    run.run_to(5)
    position = run.newest_position()
    first = Ledger(store, tickets_per_step=run.batch).restore(position)
    table = read_table(store)
    second = Ledger(store, tickets_per_step=run.batch).restore(position)
    assert (second.reissue, second.next_ticket_id, second.step) == (first.reissue, first.next_ticket_id, first.step)
    assert second.epoch == first.epoch + 1
    assert read_table(store).attempts == table.attempts


def test_the_driver_of_an_older_epoch_writes_nothing_any_more(store: Store) -> None:
    old = Ledger(store, tickets_per_step=1)
    old.open_epoch()
    old.issue([(0, 1)])
    Ledger(store, tickets_per_step=1).restore(None)
    table = read_table(store)
    for write in (
        lambda: old.issue([(1, 1)]),
        lambda: old.produced([((0, 1), 0)]),
        lambda: old.commit(0, [(0, 1)]),
        lambda: old.drop([((0, 1), "stale", False)]),
        lambda: old.refuse_duplicate((0, 1)),
    ):
        with pytest.raises(StaleEpoch, match="epoch 1 was ended"):
            write()
    assert read_table(store) == table


def test_a_checkpoint_of_a_timeline_that_was_given_up_is_refused(
    tmp_path: Path, store: Store, simulated_run: Run
) -> None:
    run = simulated_run(tmp_path / "run", store, seed=1).begin()
    run.faults = False
    run.run_to(3)
    early = run.newest_position()
    run.run_to(6)
    late = run.newest_position()
    run.ledger.restore(early)
    with pytest.raises(LedgerConflict, match=r"checkpoint of step 6 .* was given up when epoch 2 went back to step 3"):
        run.ledger.restore(late)


def test_a_checkpoint_with_another_number_of_tickets_per_step_is_refused(store: Store) -> None:
    with pytest.raises(LedgerConflict, match="4 tickets per step, this run 2"):
        Ledger(store, tickets_per_step=2).restore(LedgerPosition.start(4))


def test_a_new_epoch_is_above_every_epoch_ever_seen(store: Store) -> None:
    ledger = Ledger(store, tickets_per_step=1)
    assert ledger.open_epoch() == 1
    assert ledger.restore(None).epoch == 2
    assert ledger.restore(None, above_epoch=8).epoch == 9
    store.client.delete(store.key("ledger", "head"))
    assert ledger.restore(None).epoch == 10


def test_open_epoch_refuses_books_that_are_not_empty(store: Store) -> None:
    ledger = Ledger(store, tickets_per_step=1)
    ledger.open_epoch()
    ledger.issue([(0, 1)])
    with pytest.raises(LedgerConflict, match="not empty"):
        Ledger(store, tickets_per_step=1).open_epoch()


def test_the_position_of_a_regular_run_stays_small_and_tells_every_attempt(store: Store) -> None:
    ledger = Ledger(store, tickets_per_step=4)
    ledger.open_epoch()
    sizes = []
    for step in range(200):
        keys = [(4 * step + i, 1) for i in range(4)]
        ledger.issue(keys)
        ledger.produced([(key, max(0, step - 1)) for key in keys])
        ledger.commit(step, keys)
        if step % 50 == 49:
            position = ledger.snapshot(step=step + 1, next_ticket_id=4 * step + 4)
            sizes.append(len(position.model_dump_json()))
    assert max(sizes) < 600
    assert position.low_water == 800
    assert {key: attempt.value for key, attempt in position.ended().items()} == {
        attempt.key: attempt.value for attempt in (Attempt.parse(*item) for item in read_table(store).attempts.items())
    }


def test_a_history_without_any_order_is_told_exactly_and_packed() -> None:
    chance = random.Random(0)
    expected = {}
    history = History()
    for part in range(4):
        attempts = []
        for ticket in range(part * 2000, part * 2000 + 2000):
            step = chance.randrange(10_000)
            attempts.append(Attempt(ticket, 1, "dropped", 1, version=3, reason="stale"))
            attempts.append(Attempt(ticket, 2, "rolled_back", 1, version=step, step=step))
            attempts.append(
                Attempt(ticket, 3, "committed", 2, version=step - chance.randrange(3), step=step, final=True)
            )
        history = history.extended(attempts)
        expected.update({attempt.key: attempt for attempt in attempts})
    read = History.model_validate_json(history.model_dump_json())
    assert {attempt.key: attempt for attempt in read.attempts()} == expected
    assert len(read.committed) + len(read.ended) <= 2 * PLAIN_ROWS
    assert len(history.model_dump_json()) < 30 * 2 * 8000, "packed rows take less than half of plain ones"


def test_a_position_survives_json_unchanged(tmp_path: Path, store: Store, simulated_run: Run) -> None:
    run = simulated_run(tmp_path / "run", store, seed=9).begin()
    run.run_to(7)
    position = run.checkpoint()
    assert LedgerPosition.model_validate(json.loads(json.dumps(position.model_dump(mode="json")))) == position


def test_reading_an_untouched_store_gives_an_empty_table(store: Store) -> None:
    assert read_table(store) == LedgerTable()
