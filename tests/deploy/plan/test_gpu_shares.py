"""Who gets how much of which GPU where the settings leave it open."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rollcall.deploy.plan.gpus import USABLE, Shares, Transfer, Wanted, share_out
from rollcall.deploy.plan.needs import GIB, Engines

ENGINES = Engines(weights_bytes=2 * GIB, workspace_bytes=GIB, cache_bytes_per_token=100_000, longest=1024, wanted=512)
LANGUAGE = Wanted(
    num_learners=1,
    num_actors=1,
    evaluates=True,
    learner_gpu=None,
    actor_gpu=None,
    evaluator_gpu=None,
    learner_uses_gpu=True,
    generates=True,
    learner_bytes=20 * GIB,
    engines=ENGINES,
)
CONTROL = replace(LANGUAGE, generates=False, engines=None, learner_bytes=0)
H100 = 80 * GIB


def places(wanted: Wanted, shares: Shares) -> list[float]:
    return (
        [shares.learner] * wanted.num_learners
        + [shares.actor] * wanted.num_actors
        + [shares.evaluator] * wanted.evaluates
    )


def has_room(wanted: Wanted, shares: Shares, num_gpus: int) -> bool:
    """Whether Ray finds a GPU for every fraction, first fit, the largest first."""
    free = [1.0] * num_gpus
    for amount in sorted(places(wanted, shares), reverse=True):
        if amount >= 1:
            whole = [i for i, left in enumerate(free) if left == 1.0][: math.ceil(amount)]
            if len(whole) < amount:
                return False
            for i in whole:
                free[i] = 0.0
        elif amount:
            place = next((i for i, left in enumerate(free) if left + 1e-9 >= amount), None)
            if place is None:
                return False
            free[place] -= amount
    return True


def test_without_gpus_nobody_has_one_and_weights_go_through_the_object_store() -> None:
    assert share_out(LANGUAGE, [0, 0]) == Shares()


@pytest.mark.parametrize("gpu_bytes", [H100, 0])
@pytest.mark.parametrize("num_gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("num_actors", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("evaluates", [True, False])
def test_everybody_has_a_gpu_or_a_part_and_all_of_them_have_room(
    gpu_bytes: int, num_gpus: int, num_actors: int, evaluates: bool
) -> None:
    wanted = replace(LANGUAGE, num_actors=num_actors, evaluates=evaluates)
    shares = share_out(wanted, [num_gpus], gpu_bytes=gpu_bytes)
    assert not shares.problem
    assert min(places(wanted, shares)) > 0
    assert has_room(wanted, shares, num_gpus)
    assert shares.utilization is not None and 0 < shares.utilization <= 1
    assert shares.transfer == ("ipc" if num_gpus == 1 else "nccl")


@pytest.mark.parametrize("gpu_bytes", [24 * GIB, 40 * GIB, H100])
@pytest.mark.parametrize("num_actors", [1, 2])
def test_on_one_gpu_the_learner_keeps_what_it_needs_and_engines_what_their_weights_need(
    gpu_bytes: int, num_actors: int
) -> None:
    wanted = replace(LANGUAGE, num_actors=num_actors, learner_bytes=6 * GIB)
    shares = share_out(wanted, [1], gpu_bytes=gpu_bytes)
    assert not shares.problem
    assert shares.utilization is not None and shares.evaluator_utilization is not None
    engines = (num_actors * shares.utilization + shares.evaluator_utilization) * gpu_bytes
    assert engines + wanted.learner_bytes <= USABLE * gpu_bytes
    assert min(shares.utilization, shares.evaluator_utilization) * gpu_bytes >= 0.95 * ENGINES.least_bytes


def test_an_engine_takes_no_more_of_a_shared_gpu_than_its_sequences_can_fill() -> None:
    few = replace(ENGINES, wanted=4)
    shares = share_out(replace(LANGUAGE, engines=few, learner_bytes=GIB), [1], gpu_bytes=H100)
    assert shares.utilization is not None and shares.utilization * H100 < 3 * few.best_bytes


def test_a_gpu_that_is_too_small_for_learner_and_engines_is_a_problem_with_the_sizes_in_it() -> None:
    problem = share_out(LANGUAGE, [1], gpu_bytes=24 * GIB).problem
    assert "24.0 GiB" in problem and "one learner process of 20.0 GiB" in problem and "2 engines" in problem


def test_control_has_one_for_each_learner_where_there_are_enough_and_actors_have_none() -> None:
    assert share_out(CONTROL, [1]) == Shares(learner=1.0)
    assert share_out(replace(CONTROL, num_learners=2), [1]) == Shares()
    assert share_out(replace(CONTROL, learner_uses_gpu=False), [1]) == Shares()


def test_what_is_given_by_hand_wins_and_the_others_share_the_rest() -> None:
    given = replace(LANGUAGE, learner_gpu=0.4, utilization=0.3, transfer="object_store")
    shares = share_out(given, [1], gpu_bytes=H100)
    assert (shares.learner, shares.actor, shares.evaluator) == (0.4, 0.3, 0.3)
    assert (shares.utilization, shares.evaluator_utilization, shares.transfer) == (0.3, 0.3, "object_store")
    all_given = replace(given, actor_gpu=0.5, evaluator_gpu=0.1)
    assert places(all_given, share_out(all_given, [1], gpu_bytes=H100)) == [0.4, 0.5, 0.1]
    none = share_out(replace(LANGUAGE, learner_gpu=0.0, actor_gpu=0.0, evaluator_gpu=0.0), [8], gpu_bytes=H100)
    assert (none.learner, none.actor, none.evaluator, none.transfer) == (0, 0, 0, "object_store")


def test_an_engine_of_several_gpus_is_counted_so() -> None:
    wide = replace(LANGUAGE, gpus_per_engine=2, num_actors=2)
    shares = share_out(wide, [8], gpu_bytes=H100)
    assert (shares.learner, shares.actor, shares.evaluator) == (1.0, 2.0, 2.0)
    assert has_room(wide, shares, 8)
    assert "tensor_parallel_size" in share_out(wide, [4], gpu_bytes=H100).problem


def test_where_only_the_evaluator_has_no_gpu_of_its_own_it_sits_beside_an_actor() -> None:
    wanted = replace(LANGUAGE, num_learners=2, num_actors=2)
    shares = share_out(wanted, [4], gpu_bytes=H100)
    assert (shares.learner, shares.actor, shares.evaluator) == (1.0, 0.75, 0.25)
    assert has_room(wanted, shares, 4)


def test_several_learners_that_share_their_gpus_with_engines_go_through_the_object_store() -> None:
    wanted = replace(LANGUAGE, num_learners=2, num_actors=2, learner_bytes=6 * GIB)
    shares = share_out(wanted, [2], gpu_bytes=H100)
    assert not shares.problem and shares.transfer == "object_store"
    assert has_room(wanted, shares, 2)


@pytest.mark.parametrize(
    ("transfer", "gpus", "said"),
    [
        ("ipc", [0], "weight_transfer=ipc sends weights from GPU to GPU, and there is none"),
        ("nccl", [0, 0], "weight_transfer=nccl sends weights from GPU to GPU, and there is none"),
        ("nccl", [1], "weight_transfer=nccl is between two GPUs, and there is one"),
        ("ipc", [4], "weight_transfer=ipc is within one GPU, and learner and engine have one each"),
    ],
)
def test_a_way_of_the_weights_that_an_engine_would_refuse_is_a_problem_before_it_starts(
    transfer: Transfer, gpus: list[float], said: str
) -> None:
    found = share_out(replace(LANGUAGE, transfer=transfer), gpus, gpu_bytes=H100)
    assert said in found.problem and found.remedy


@pytest.mark.parametrize(("transfer", "gpus"), [("ipc", [1]), ("nccl", [4]), ("nccl", [2]), ("object_store", [0])])
def test_one_that_can_be_is_none(transfer: Transfer, gpus: list[float]) -> None:
    assert not share_out(replace(LANGUAGE, transfer=transfer), gpus, gpu_bytes=H100).problem


def test_gpus_that_are_asked_for_by_number_are_waited_for() -> None:
    asked = replace(LANGUAGE, transfer="nccl", learner_gpu=1.0, actor_gpu=1.0)
    assert not share_out(asked, [0]).problem
