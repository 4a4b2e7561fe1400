"""The queue of comparisons on a real redis-server and a real disk: every label once, whoever asks and whatever dies."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from rollcall.cluster.errors import BadInput, LeaseLost, StoreUnavailable
from rollcall.cluster.store.redis_server import PrivateRedis
from rollcall.reward_service.labelling.leases import Lease
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.labelling.store import PreferenceStore
from rollcall.reward_service.preferences.log import PreferenceLog
from rollcall.reward_service.preferences.records import Comparison, Label, SegmentCandidate
from rollcall.reward_service.protocol import ArrayField, Segment
from tests.reward_service.labelling.label_service import PlainRedis, private_redis, text

_numbers = itertools.count()
Make = Callable[..., PreferenceStore]


@pytest.fixture
def make(redis: PrivateRedis, tmp_path: Path) -> Iterator[Make]:
    """A store of this test; made again, as after a restart."""
    client, namespace = redis.client(5.0), f"test:{{{next(_numbers)}}}"

    def make(**config: object) -> PreferenceStore:
        return PreferenceStore(
            PlainRedis(client),
            namespace=namespace,
            directory=tmp_path / "preferences",
            config=LabellingConfig.model_validate(config),
        )

    yield make
    client.close()


def segments(seed: int) -> Comparison:
    rng = np.random.default_rng(seed)
    parts = [
        Segment(
            observations=ArrayField.of(rng.normal(size=(6, 4)).astype(np.float32)),
            actions=ArrayField.of(rng.integers(0, 2, 6)),
        )
        for _ in range(2)
    ]
    return Comparison.of([SegmentCandidate(segment=part, env_id="CartPole-v1") for part in parts])


def take(store: PreferenceStore, rater: str, **given: object) -> Lease:
    lease = store.lease(rater, **given)  # type: ignore[arg-type]
    assert lease is not None
    return lease


def forget(store: PreferenceStore) -> None:
    """As a Redis that comes back without its data."""
    keys = store._keys
    store._caller.call(lambda client: client.delete(*keys))


# Leases.


def test_a_comparison_is_queued_once_whatever_the_order_of_its_candidates(make: Make) -> None:
    store, comparison = make(), text(1)
    turned = Comparison.of(comparison.candidates[::-1])
    assert store.add([comparison, turned]) == 1
    assert store.add([turned]) == 0
    assert take(store, "ada").comparison == comparison
    assert store.lease("bob") is None


def test_a_leased_comparison_is_offered_to_nobody_else_until_the_lease_expires(make: Make) -> None:
    store = make(lease_ttl_s=0.3)
    store.add([text(1)])
    late = take(store, "ada")
    assert store.lease("bob") is None
    time.sleep(0.35)
    again = take(store, "bob")
    assert again.comparison == late.comparison
    assert int(again.token.partition("-")[0]) > int(late.token.partition("-")[0])
    with pytest.raises(LeaseLost, match="expired"):
        store.label(token=late.token, rater="ada", choice="left", duration_s=1)
    store.label(token=again.token, rater="bob", choice="left", duration_s=1)
    assert [label.rater for label in store.books().standing()] == ["bob"]


def test_a_label_for_a_foreign_or_unknown_lease_is_refused(make: Make) -> None:
    store = make()
    store.add([text(1)])
    lease = take(store, "ada")
    with pytest.raises(LeaseLost, match="somebody else"):
        store.label(token=lease.token, rater="bob", choice="left", duration_s=1)
    with pytest.raises(LeaseLost, match="expired"):
        store.label(token="77-feed", rater="bob", choice="left", duration_s=1)
    assert store.books().standing() == []


def test_a_label_said_again_is_taken_once_and_another_one_under_the_same_lease_is_refused(make: Make) -> None:
    store = make()
    store.add([text(1)])
    lease = take(store, "ada")
    first = store.label(token=lease.token, rater="ada", choice="right", duration_s=1)
    assert store.label(token=lease.token, rater="ada", choice="right", duration_s=9) == first
    with pytest.raises(LeaseLost, match="already"):
        store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    assert store.books().standing() == [first]


def test_many_raters_at_once_label_everything_exactly_once(make: Make) -> None:
    store = make()
    store.add(text(number) for number in range(60))
    labelled: list[str] = []

    def work(rater: str) -> None:
        while (lease := store.lease(rater)) is not None:
            labelled.append(store.label(token=lease.token, rater=rater, choice="tie", duration_s=0).comparison_id)

    threads = [threading.Thread(target=work, args=(f"rater {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(labelled) == sorted(text(number).id for number in range(60))
    assert len(store.books().standing()) == 60


def test_with_two_labels_a_comparison_no_rater_is_asked_twice(make: Make) -> None:
    store = make(labels_per_comparison=2)
    store.add([text(1)])
    lease = take(store, "ada", session="desk")
    assert store.lease("ada", session="phone") is None  # nor on another screen at the same time
    store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    assert store.lease("ada", session="desk") is None
    other = take(store, "bob")
    assert store.lease("eve") is None  # one label and one lease: two are enough
    store.label(token=other.token, rater="bob", choice="left", duration_s=1)
    assert store.lease("eve") is None


def test_a_page_loaded_again_gets_what_it_had_and_one_that_holds_it_gets_the_next(make: Make) -> None:
    store = make()
    store.add([text(1), text(2), text(3)])
    first = take(store, "ada", session="tab")
    second = take(store, "ada", session="tab", held=[first.token])
    assert second.comparison != first.comparison
    assert take(store, "ada", session="tab") == first
    assert take(store, "ada", session="tab", held=[first.token]) == second
    third = take(store, "ada", session="tab", held=[first.token, second.token])
    assert {first.comparison.id, second.comparison.id, third.comparison.id} == {text(n).id for n in (1, 2, 3)}


def test_what_was_skipped_goes_to_another_rater_and_in_the_end_to_nobody(make: Make) -> None:
    store = make(max_skips=2)
    store.add([text(1)])
    for rater in ("ada", "bob"):
        store.label(token=take(store, rater).token, rater=rater, choice="skip", duration_s=1)
        assert store.lease(rater) is None
    assert store.lease("eve") is None
    assert store.progress("eve", since=datetime.now(UTC) - timedelta(hours=1)).labels == 0


def test_a_label_taken_back_is_asked_again_and_does_not_stand(make: Make) -> None:
    store = make()
    store.add([text(1)])
    lease = take(store, "ada")
    store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    with pytest.raises(LeaseLost, match="somebody else"):
        store.withdraw(token=lease.token, rater="bob")
    again = store.withdraw(token=lease.token, rater="ada")
    assert again is not None and again.comparison == lease.comparison and again.token != lease.token
    assert store.withdraw(token=lease.token, rater="ada") == again  # said twice, done once
    assert store.labelled()[0] == []
    with pytest.raises(LeaseLost):
        store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    label = store.label(token=again.token, rater="ada", choice="tie", duration_s=1)
    assert store.books().standing() == [label]
    assert make().books().standing() == [label]


# What was said is what is kept.


def test_left_and_right_of_the_screen_are_turned_back_to_the_candidates(make: Make) -> None:
    store = make()
    store.add(text(number) for number in range(40))
    orders = set()
    for number in range(40):
        lease = take(store, "ada")
        liked = lease.comparison.candidates[lease.order[0]]  # always the one on the left
        label = store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
        places = label.places
        assert places is not None and lease.comparison.candidates[places.index(0)] == liked, number
        orders.add(lease.order)
    assert orders == {(0, 1), (1, 0)}  # a fair coin fails this once in 10**12


def test_ranks_of_the_screen_are_turned_back_to_the_candidates(make: Make) -> None:
    store = make()
    store.add(text(number, responses=4) for number in range(10))
    for _ in range(10):
        lease = take(store, "ada")
        label = store.label(token=lease.token, rater="ada", ranks=[2, 0, 1, 0], duration_s=1)
        assert label.places is not None
        assert [label.places[index] for index in lease.order] == [2, 0, 1, 0]
    assert store.lease("ada") is None


def test_what_cannot_be_said_of_a_comparison_is_refused_and_the_lease_stays(make: Make) -> None:
    store = make()
    store.add([text(1, responses=3)])
    lease = take(store, "ada")
    for wrong in (
        {"choice": "left"},
        {"ranks": [0, 1]},
        {"ranks": [0, 2, 3]},
        {},
        {"choice": "skip", "ranks": [0, 0, 0]},
    ):
        with pytest.raises(ValueError):
            store.label(token=lease.token, rater="ada", duration_s=1, **wrong)  # type: ignore[arg-type]
    store.label(token=lease.token, rater="ada", ranks=[0, 1, 1], duration_s=1)


def test_new_labels_are_read_from_where_one_was(make: Make) -> None:
    store = make()
    store.add(text(number) for number in range(5))
    tokens = []
    for _ in range(3):
        lease = take(store, "ada")
        tokens.append(store.label(token=lease.token, rater="ada", choice="left", duration_s=1).token)
    first, position = store.labelled(0, limit=2)
    assert [label.token for _, label in first] == tokens[:2]
    second, position = store.labelled(position)
    assert [label.token for _, label in second] == tokens[2:]
    assert store.labelled(position) == ([], position)


def test_progress_counts_what_is_left_for_this_rater(make: Make) -> None:
    store = make(labels_per_comparison=2)
    store.add(text(number) for number in range(4))
    store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    now = datetime.now(UTC)
    ada = store.progress("ada", since=now - timedelta(minutes=1))
    assert (ada.comparisons, ada.labels, ada.waiting, ada.today) == (4, 1, 3, 1)
    bob = store.progress("bob", since=now - timedelta(minutes=1))
    assert (bob.waiting, bob.today) == (4, 0)
    assert store.progress("ada", since=now + timedelta(minutes=1)).today == 0


def test_segments_are_kept_once_and_come_back_bit_by_bit(make: Make) -> None:
    store, comparison = make(), segments(0)
    other = segments(1)
    shared = Comparison.of([comparison.candidates[0], other.candidates[0]])
    store.add([comparison, other, shared])
    assert len(list((store.directory / "segments").iterdir())) == 4
    assert [take(store, f"rater {i}").comparison for i in range(3)] == [comparison, other, shared]
    assert make().comparison(comparison.id) == comparison


# What dies.


def test_a_redis_without_its_data_is_filled_from_the_disk(make: Make) -> None:
    store = make(labels_per_comparison=2)
    store.add([text(1), segments(2), text(3)])
    label = store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    forget(store)
    store = make(labels_per_comparison=2)
    assert store.labelled()[0][0][1] == label
    seen = {
        store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1).comparison_id
        for _ in "ab"
    }
    assert len(seen | {label.comparison_id}) == 3
    assert store.lease("ada") is None


def test_a_redis_that_forgets_while_the_service_runs_is_noticed_at_the_next_call(make: Make) -> None:
    store = make()
    store.add([text(1), text(2)])
    first = store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    forget(store)
    second = take(store, "ada")
    assert second.comparison.id != first.comparison_id
    store.label(token=second.token, rater="ada", choice="left", duration_s=1)
    assert store.lease("ada") is None
    assert len(store.labelled()[0]) == 2


def test_a_disk_without_its_files_is_filled_from_redis(make: Make) -> None:
    store = make()
    store.add([text(1), text(2)])
    label = store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    for name in ("comparisons.jsonl", "labels.jsonl"):
        (store.directory / name).unlink()
    store = make()
    assert store.books().standing() == [label]
    assert set(store.books().comparisons) == {text(1).id, text(2).id}


def test_a_restart_keeps_the_leases_that_are_alive(make: Make) -> None:
    store = make()
    store.add([text(1)])
    lease = take(store, "ada")
    store = make()
    assert store.lease("bob") is None
    store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    assert store.lease("bob") is None


def test_a_line_that_a_crash_left_half_written_is_cut_off_and_the_rest_stands(make: Make) -> None:
    store = make()
    store.add([text(1), text(2)])
    label = store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    with (store.directory / "labels.jsonl").open("a") as file:
        file.write('{"label": {"comparison_id"')
    assert PreferenceLog(store.directory).read().standing() == [label]  # of a live directory
    store = make()
    second = store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    assert store.books().standing() == [label, second]


def test_a_damaged_line_names_file_and_line(make: Make) -> None:
    store = make()
    store.add([text(1)])
    store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1)
    path = store.directory / "labels.jsonl"
    values = json.loads(path.read_text())
    values["label"]["choice"] = "up"
    path.write_text(path.read_text() + json.dumps(values) + "\n")
    with pytest.raises(BadInput, match=r"labels\.jsonl:2.*choice"):
        make()


def test_a_disk_that_fails_acknowledges_nothing_and_the_label_said_again_is_kept(make: Make) -> None:
    store = make()
    store.add([text(1)])
    lease = take(store, "ada")
    path = store.directory / "labels.jsonl"
    path.unlink()
    path.mkdir()  # whatever opens it fails, for root as well
    with pytest.raises(StoreUnavailable, match="labels"):
        store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    path.rmdir()
    label = store.label(token=lease.token, rater="ada", choice="left", duration_s=1)
    assert store.books().standing() == [label]


def test_a_redis_killed_and_started_again_loses_no_label(tmp_path: Path) -> None:
    with private_redis(tmp_path) as server:
        client = server.client(2.0)
        store = PreferenceStore(PlainRedis(client), namespace="killed", directory=tmp_path / "preferences")
        store.add(text(number) for number in range(20))
        said = [
            store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1) for _ in range(10)
        ]
        assert server._process is not None
        server._process.kill()
        server._process.wait()
        with pytest.raises(StoreUnavailable):
            store.lease("ada")
        server.start()
        said += [
            store.label(token=take(store, "ada").token, rater="ada", choice="left", duration_s=1) for _ in range(10)
        ]
        assert len({label.comparison_id for label in said}) == 20
        assert store.books().standing() == said
        assert [label for _, label in store.labelled()[0]] == said
        client.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_queue_is_what_the_books_say(make: Make, seed: int) -> None:
    """Random raters lease, label, skip, take back and let leases lie; then the counts of the queue, kept step by step,
    equal those of one written anew, and what waits for a rater is what he is then asked."""
    rng = np.random.default_rng(seed)
    store = make(labels_per_comparison=2, max_skips=2)
    store.add(text(number) for number in range(12))
    raters = ["ada", "bob", "eve"]
    said: list[Label] = []
    for _ in range(80):
        rater = str(rng.choice(raters))
        mine = [label for label in said if label.rater == rater]
        if mine and rng.random() < 0.25:
            store.withdraw(token=mine[-1].token, rater=rater)
            said.remove(mine[-1])
        elif (lease := store.lease(rater, session=str(rng.integers(2)))) is not None and rng.random() < 0.9:
            choice = ("left", "tie", "skip")[rng.integers(3)]
            said.append(store.label(token=lease.token, rater=rater, choice=choice, duration_s=1))  # type: ignore[arg-type]
    assert {label.token for label in store.books().standing()} == {label.token for label in said}
    midnight = datetime.now(UTC) - timedelta(days=1)
    before = [store.progress(rater, since=midnight) for rater in raters]
    store.reconcile()
    assert [store.progress(rater, since=midnight) for rater in raters] == before
    forget(store)  # with it all leases
    for rater, progress in zip(raters, before, strict=True):
        asked: list[str] = []
        while (lease := store.lease(rater, held=asked)) is not None:
            asked.append(lease.token)
        assert len(asked) == progress.waiting, rater
        forget(store)
