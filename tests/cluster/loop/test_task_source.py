"""Which work a ticket id means: every prompt once per pass, every pass in its own order, and never who asks or when."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcall.cluster.loop.task_source import PromptSource, ShardSource, ShuffledRows
from rollcall.cluster.messages.attempt import PromptPayload, ShardPayload

ROWS = [2, 3, 5, 7, 11, 13, 17, 19]  # of a longer data set: the others do not fit
row_sets = st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True)
seeds = st.integers(0, 2**63 - 1)


def make_work(*, run_seed: int = 0, rows: list[int] = ROWS, samples: int = 4) -> PromptSource:
    return PromptSource(rows, run_seed=run_seed, samples_per_prompt=samples)


def rows_of_pass(work: PromptSource, number: int, size: int = len(ROWS)) -> list[int]:
    payloads = [work.assign(ticket_id)[1] for ticket_id in range(number * size, (number + 1) * size)]
    assert all(payload.pass_number == number for payload in payloads)
    return [payload.row for payload in payloads]


# Prompts.


@given(row_sets, seeds, st.integers(0, 1000))
def test_every_usable_row_comes_exactly_once_in_every_pass(rows: list[int], run_seed: int, number: int) -> None:
    work = make_work(run_seed=run_seed, rows=rows)
    assert sorted(rows_of_pass(work, number, len(rows))) == sorted(rows)


def test_every_pass_has_an_order_of_its_own() -> None:
    work = make_work()
    orders = {tuple(rows_of_pass(work, number)) for number in range(20)}
    assert len(orders) == 20
    assert tuple(ROWS) not in orders  # 20 of 40,320 orders; fixed by the seed


def test_every_run_seed_has_an_order_of_its_own() -> None:
    assert len({tuple(rows_of_pass(make_work(run_seed=seed), 0)) for seed in range(20)}) == 20


def test_what_a_ticket_means_does_not_depend_on_which_were_asked_before_it() -> None:
    in_turn = [make_work().assign(ticket_id) for ticket_id in range(40)]
    ids = list(range(40)) * 2
    random.Random(0).shuffle(ids)
    work = make_work()
    for ticket_id in ids:
        assert work.assign(ticket_id) == in_turn[ticket_id]


def test_a_prompt_keeps_its_meaning_when_actors_die_and_when_a_run_is_resumed() -> None:
    work = make_work()
    before = [work.assign(ticket_id) for ticket_id in range(20)]
    work.lost(3)
    work.all_lost()
    resumed = make_work()
    resumed.load_state(work.state())
    assert [work.assign(ticket_id) for ticket_id in range(20)] == before
    assert [resumed.assign(ticket_id) for ticket_id in range(20)] == before


def test_a_prompts_payload_is_its_row_its_pass_and_the_size_of_its_group() -> None:
    lane, payload = make_work(rows=[42], samples=16).assign(5)
    assert payload == PromptPayload(row=42, pass_number=5, num_samples=16)
    assert lane == 5  # a lane of its own: prompts are shared out in turn


def test_no_row_stands_more_often_in_one_place_than_chance_allows() -> None:
    # 4000 passes of 8 rows; the first row of a pass is each with probability 1/8: 500 +- 20.9. Bound: 5 deviations.
    order = ShuffledRows(ROWS, seed=0)
    first = Counter(order.row(number * len(ROWS))[0] for number in range(4000))
    assert set(first) == set(ROWS)
    assert all(abs(count - 500) < 105 for count in first.values()), first


def test_there_must_be_something_to_learn_from() -> None:
    with pytest.raises(ValueError, match="rows is empty"):
        make_work(rows=[])


# Shards.


def test_shards_take_turns_and_each_has_a_lane() -> None:
    work = ShardSource(3, "fragment")
    assert [work.assign(ticket_id) for ticket_id in range(7)] == [
        (ticket_id % 3, ShardPayload(ticket_id % 3, 0, "fragment")) for ticket_id in range(7)
    ]


def test_a_shard_that_is_lost_begins_a_new_incarnation_and_the_others_do_not() -> None:
    work = ShardSource(3, "episode")
    work.lost(4)
    assert [work.assign(shard)[1].incarnation for shard in range(3)] == [0, 1, 0]
    work.lost(1)
    work.lost(2)
    assert [work.assign(shard)[1].incarnation for shard in range(3)] == [0, 2, 1]


def test_when_all_actors_are_new_every_shard_begins_a_new_incarnation() -> None:
    work = ShardSource(3, "fragment")
    work.lost(0)
    work.all_lost()
    assert work.incarnations == [2, 1, 1]


def test_incarnations_come_back_from_a_checkpoint_and_live_on_apart_from_it() -> None:
    work = ShardSource(3, "fragment")
    work.lost(1)
    resumed = ShardSource(3, "fragment")
    resumed.load_state(work.state())
    assert resumed.incarnations == [0, 1, 0]
    resumed.lost(0)
    assert work.incarnations == [0, 1, 0]
