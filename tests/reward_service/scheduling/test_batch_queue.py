"""Which of the waiting items make the next batch: nothing lost, nothing twice, budgets kept, nobody starved."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scheduling.batch_queue import BatchingConfig, BatchQueue, Job

ITEM = ScoreItem(id="i", prompt="p", response="r")


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Futures want one; it never runs here."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def job(cost: int, deadline: float = 1e9, arrived: float = 0.0) -> Job:
    return Job(ITEM, cost, deadline, arrived, asyncio.get_event_loop_policy().get_event_loop().create_future())


def config(**settings: object) -> BatchingConfig:
    return BatchingConfig.model_validate(
        {"max_batch_tokens": 100, "max_batch_items": 8, "max_padding": 1.5, **settings}
    )


def padded(batch: list[Job]) -> int:
    return max(one.cost for one in batch) * len(batch)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(st.integers(1, 150), st.floats(0, 50)), min_size=1, max_size=6)),
        st.tuples(st.just("take"), st.floats(0, 5)),
        st.tuples(st.just("discard"), st.integers(0, 30)),
        st.tuples(st.just("extend"), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(steps, st.floats(1.0, 2.0))
def test_nothing_is_lost_or_taken_twice_and_every_batch_keeps_the_budgets(
    history: list[tuple[str, object]], max_padding: float
) -> None:
    settings = config(max_padding=max_padding)
    queue, waiting, now = BatchQueue(settings), [], 0.0
    urgency: dict[Job, tuple[float, int]] = {}
    extended = False
    for action, value in history:
        if action == "add":
            new = [job(cost, now + patience) for cost, patience in value]  # type: ignore[attr-defined]
            queue.add(new)
            waiting += new
            urgency |= {one: (one.deadline, len(urgency) + index) for index, one in enumerate(new)}
        elif action == "discard" and waiting:
            left = waiting.pop(int(value) % len(waiting))  # type: ignore[call-overload]
            assert queue.discard(left) and not queue.discard(left)
        elif action == "extend" and waiting:
            waiting[int(value) % len(waiting)].deadline += 20  # type: ignore[call-overload]
            extended = True
        elif action == "take":
            now += float(value)  # type: ignore[arg-type]
            batch, expired = queue.take(now)
            assert set(expired) == {one for one in waiting if one.deadline <= now}
            waiting = [one for one in waiting if one not in expired]
            assert len(set(batch)) == len(batch) and set(batch) <= set(waiting)
            assert bool(batch) == bool(waiting)
            if batch and not extended:
                assert min(waiting, key=urgency.__getitem__) in batch, "the most urgent one waits"
            if len(batch) > 1:
                assert padded(batch) <= min(100, max_padding * sum(one.cost for one in batch)) and len(batch) <= 8
            waiting = [one for one in waiting if one not in batch]
        assert len(queue) == len(waiting) and queue.tokens == sum(one.cost for one in waiting)
    seen = 0
    while waiting and len(queue):
        batch, expired = queue.take(now)
        seen += len(batch) + len(expired)
    assert seen == len(waiting)


def test_a_batch_is_the_most_urgent_item_and_those_nearest_to_it_in_length() -> None:
    queue = BatchQueue(config())
    jobs = {cost: job(cost, deadline=100.0 - cost) for cost in (10, 11, 12, 30, 33)}
    jobs[11].deadline = 1.0
    queue.add(list(jobs.values()))
    batch, _ = queue.take(0.0)
    assert [one.cost for one in batch] == [10, 11, 12]  # 30 would triple everyone's length
    assert [one.cost for one in queue.take(0.0)[0]] == [30, 33]


def test_equal_deadlines_go_in_the_order_of_arrival() -> None:
    queue = BatchQueue(config(max_batch_items=1))
    jobs = [job(cost, deadline=5.0) for cost in (7, 3, 9, 1)]
    queue.add(jobs)
    assert [queue.take(0.0)[0][0] for _ in jobs] == jobs


def test_an_item_beyond_the_budget_is_a_batch_of_its_own() -> None:
    queue = BatchQueue(config())
    queue.add([job(500), job(499)])
    assert [one.cost for one in queue.take(0.0)[0]] == [500]


def test_an_idle_model_waits_for_company_but_not_when_a_batch_is_full() -> None:
    queue = BatchQueue(config(max_wait_ms=10))
    assert queue.ready_in(0.0) is None
    queue.add([job(40, arrived=1.0)])
    assert queue.ready_in(1.004) == pytest.approx(0.006)
    queue.add([job(60, arrived=1.004)])
    assert queue.ready_in(1.004) == 0.0


def test_the_queue_is_bounded_in_items_and_in_tokens_but_never_shut_to_a_single_large_item() -> None:
    queue = BatchQueue(config(max_queue_items=3, max_queue_tokens=100))
    assert queue.fits([job(1000)])
    queue.add([job(40), job(40)])
    assert queue.fits([job(20)]) and not queue.fits([job(21)]) and not queue.fits([job(1), job(1)])


def test_bucketing_by_length_wastes_little_on_lengths_as_they_come() -> None:
    """64 to 512 tokens, log-uniform (seed 0), 64 waiting at once: by arrival a third of the work would be padding."""
    rng = random.Random(0)
    queue = BatchQueue(BatchingConfig())
    lengths = [round(64 * 8 ** rng.random()) for _ in range(1000)]
    real = spent = by_arrival = 0
    for index in range(0, 960):
        queue.add([job(lengths[index], deadline=float(index))])
        if len(queue) >= 64:
            batch, _ = queue.take(-1.0)
            real += sum(one.cost for one in batch)
            spent += padded(batch)
    for index in range(0, 960, 16):
        by_arrival += 16 * max(lengths[index : index + 16])
    assert spent / real < 1.15 < 1.5 < by_arrival / sum(lengths[:960])


def test_a_late_comer_of_the_right_length_does_not_overtake_a_whole_queue() -> None:
    """Only one batch's worth of the most urgent items is looked at: 100 tokens, and 4 x 30 are before it."""
    queue = BatchQueue(config(max_padding=1.2))
    jobs = [job(cost, deadline=float(index)) for index, cost in enumerate((10, 30, 30, 30, 30, 10))]
    queue.add(jobs)
    assert queue.take(-1.0)[0] == jobs[:1]
    assert queue.take(-1.0)[0] == jobs[1:4]


def test_at_twice_the_capacity_what_is_taken_in_is_done_in_time_and_little_capacity_is_lost() -> None:
    """Simulated with the batcher's own rule (seed 0): deadlines of four full batches, speeds that vary by 15%."""
    from types import SimpleNamespace

    from rollcall.reward_service.scheduling.batcher import Batcher

    rng, settings, speed = random.Random(0), BatchingConfig(), 5000.0
    queue, now, free, due = BatchQueue(settings), 0.0, 0.0, 0.0
    state = SimpleNamespace(
        **{"_queue": queue, "_config": settings, "_speed_tokens": 0.0, "_speed_s": 0.0},
        **{"_batch_tokens": 0, "_batch_began": 0.0},
    )
    patience = 4 * settings.max_batch_tokens / speed
    refused = in_time = late = tokens = 0
    while now < 150:
        if due <= free or not len(queue):
            now = due
            due += rng.expovariate(2 * speed / 215)
            cost = round(64 * 8 ** rng.random())
            state._batch_tokens = state._batch_tokens if now < free else 0
            wait_s = Batcher._wait_s(state, cost, now)  # type: ignore[arg-type]
            if wait_s is not None and wait_s > patience:
                refused += 1
            else:
                queue.add([job(cost, now + patience)])
            if now < free or not len(queue):
                continue
        now = max(now, free)
        batch, expired = queue.take(now)
        late += len(expired)
        if batch:
            seconds = padded(batch) / speed * rng.uniform(0.85, 1.15)
            state._batch_began, state._batch_tokens, free = now, sum(one.cost for one in batch), now + seconds
            state._speed_tokens = 0.9 * state._speed_tokens + state._batch_tokens
            state._speed_s = 0.9 * state._speed_s + seconds
            done = [one for one in batch if one.deadline >= free]
            in_time, late = in_time + len(done), late + len(batch) - len(done)
            tokens += sum(one.cost for one in done)
    assert refused > 1000
    assert in_time / (in_time + late) > 0.99
    assert tokens / (150 * speed) > 0.8
