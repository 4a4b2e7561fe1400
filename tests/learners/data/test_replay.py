"""Kept experience: what is in the ring, what transitions lead over, what is drawn how often, and how it is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.data.mapped import mapped_in
from rollcall.learners.data.priorities import Priorities
from rollcall.learners.data.replay import NO_STEP, ReplayBuffer
from rollcall.learners.data.replay_config import PriorityConfig
from rollcall.learners.data.replay_pages import ReplayPages
from rollcall.learners.data.sum_tree import SumTree
from tests.learners.data.replayed_world import World

DISCOUNT = 0.9


def _filled(world: World, *, num_fragments: int, num_steps: int, capacity: int, surprises: bool = True) -> ReplayBuffer:
    """A buffer with fragments of the world in it, some of which were dropped on their way."""
    stacked = {"observation": world.stack} if world.stack > 1 else None
    buffer = ReplayBuffer(capacity=capacity, num_envs=world.num_shards * world.num_envs, stacked=stacked)
    env_steps = 0
    for _ in range(num_fragments):
        for shard in range(world.num_shards):
            chance = world.rng.random() if surprises else 1.0
            if chance < 0.1:
                world.begin_anew(shard)
            fragment = world.fragment(shard, num_steps, dropped=chance > 0.9 and surprises)
            if not (chance > 0.9 and surprises):
                env_steps += fragment.num_steps
                buffer.add(fragment, env_steps=env_steps)
    return buffer


def _chi_square(counts: Array, expected: Array) -> float:
    """Its statistic over the value that it exceeds once in a thousand seeds (Wilson and Hilferty's approximation)."""
    df = len(counts) - 1
    limit = df * (1 - 2 / (9 * df) + 3.09 * (2 / (9 * df)) ** 0.5) ** 3
    return float(((counts - expected) ** 2 / expected).sum() / limit)


def _begins(buffer: ReplayBuffer) -> Array:
    """Every slot at which a transition begins."""
    found: Array = np.flatnonzero(buffer.arrays["kind"].reshape(-1) > NO_STEP)
    return found


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_shards=st.integers(1, 3),
    num_envs=st.integers(1, 3),
    num_steps=st.integers(1, 6),
    n_step=st.integers(1, 5),
    rows=st.integers(30, 60),
    next_step=st.booleans(),
    end_rate=st.sampled_from([0.0, 0.15, 0.6, 1.0]),
    stack=st.sampled_from([1, 1, 3]),
)
def test_transitions_are_those_of_a_literal_loop_over_what_happened(
    seed: int,
    num_shards: int,
    num_envs: int,
    num_steps: int,
    n_step: int,
    rows: int,
    next_step: bool,
    end_rate: float,
    stack: int,
) -> None:
    world = World(np.random.default_rng(seed), num_shards, num_envs, next_step, end_rate, stack)
    buffer = _filled(world, num_fragments=10, num_steps=num_steps, capacity=rows * num_shards * num_envs)
    slots = _begins(buffer)
    assert buffer.num_transitions == len(slots)
    if not len(slots):
        return
    rows_drawn = buffer.transitions(slots, n_step=n_step, discount=DISCOUNT)
    place_of = {
        step.shown[-1]: (env, place) for env, steps in enumerate(world.happened) for place, step in enumerate(steps)
    }
    for i, slot in enumerate(slots.tolist()):
        env, place = place_of[int(rows_drawn.observations["observation"][i, -1])]
        assert env == slot % buffer.num_envs
        total, discount, then = world.n_steps_from(env, place, n_step=n_step, discount=DISCOUNT)
        assert rows_drawn.rewards[i] == pytest.approx(total, abs=1e-5)
        assert rows_drawn.discounts[i] == pytest.approx(discount, abs=1e-6)
        assert rows_drawn.observations["observation"][i].tolist() == world.happened[env][place].shown
        assert rows_drawn.next_observations["observation"][i].tolist() == then
        assert rows_drawn.actions[i] == world.happened[env][place].action


def test_a_full_ring_has_the_newest_steps_of_each_env() -> None:
    world = World(np.random.default_rng(0), 2, 2, next_step=False, end_rate=0.0)
    buffer = _filled(world, num_fragments=9, num_steps=7, capacity=4 * 20, surprises=False)
    kept = buffer.transitions(_begins(buffer), n_step=1, discount=1.0).observations["observation"][:, 0]
    # Of 20 rows one has what the env shows now, from which no step has been taken.
    expected = [step.shown[0] for steps in world.happened for step in steps[-19:]]
    assert sorted(kept.astype(int)) == sorted(expected)


def test_a_stack_of_frames_is_kept_once_and_lost_with_its_oldest() -> None:
    world = World(np.random.default_rng(0), 1, 2, next_step=False, end_rate=0.0, stack=4)
    buffer = _filled(world, num_fragments=9, num_steps=7, capacity=2 * 20, surprises=False)
    assert buffer.arrays["observations.observation"].shape == (20, 2), "a number a row, and not four"
    kept = buffer.transitions(_begins(buffer), n_step=1, discount=1.0).observations["observation"]
    assert sorted(kept[:, -1].astype(int)) == sorted(step.shown[-1] for steps in world.happened for step in steps[-16:])
    other = World(np.random.default_rng(0), 1, 2, next_step=False, stack=4)
    fragment = other.fragment(0, 7)
    fragment.steps.observations["observation"][3, 0, 1] += 1
    with pytest.raises(ValueError, match="observation is no stack of frames"):
        ReplayBuffer(capacity=40, num_envs=2, stacked={"observation": 4}).add(fragment, env_steps=14)


def test_what_was_added_is_taken_back_to_the_bit() -> None:
    world = World(np.random.default_rng(3), 2, 2, next_step=True, stack=2)
    buffer = _filled(world, num_fragments=9, num_steps=7, capacity=4 * 30)
    buffer.keep()
    before = {name: array.copy() for name, array in buffer.arrays.items()}
    streams, number = buffer.streams.copy(), buffer.num_transitions
    for shard in (0, 1, 0):
        buffer.add(world.fragment(shard, 7), env_steps=0)
    assert any(not np.array_equal(before[name], array) for name, array in buffer.arrays.items())
    buffer.take_back()
    assert all(np.array_equal(before[name], array) for name, array in buffer.arrays.items())
    assert np.array_equal(buffer.streams, streams) and buffer.num_transitions == number


def test_a_unit_that_is_longer_than_the_ring_is_refused() -> None:
    world = World(np.random.default_rng(0), 1, 1, next_step=False)
    buffer = ReplayBuffer(capacity=5, num_envs=1)
    with pytest.raises(ValueError, match="room for 5: raise the capacity"):
        buffer.add(world.fragment(0, 8), env_steps=8)
    with pytest.raises(ValueError, match="capacity=3 of 2 envs"):
        ReplayBuffer(capacity=3, num_envs=2)


def test_uniform_draws_are_uniform_over_what_can_be_drawn() -> None:
    """Seed 0; the bound is passed once in a thousand seeds."""
    world = World(np.random.default_rng(5), 2, 3, next_step=False)
    buffer = _filled(world, num_fragments=6, num_steps=5, capacity=6 * 20)
    slots = _begins(buffer)
    drawn = buffer.uniform(200 * len(slots), np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=buffer.num_slots)
    assert set(np.flatnonzero(counts)) == set(slots)
    assert _chi_square(counts[slots], np.full(len(slots), 200.0)) < 1


def test_nothing_is_found_where_there_is_nothing() -> None:
    with pytest.raises(ValueError, match="all leaves are 0"):
        SumTree(5).find(np.zeros(1))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1024, 40_000])
def test_a_sum_tree_finds_the_leaf_in_whose_share_a_target_lies(size: int) -> None:
    rng = np.random.default_rng(size)
    tree, leaves = SumTree(size), np.zeros(size)
    for _ in range(5):
        index = rng.integers(0, size, 200)
        values = np.where(rng.random(200) < 0.3, 0.0, rng.random(200))
        values[-1] = 0.5
        tree.set(index, values)
        leaves[index] = values
    assert np.array_equal(tree.leaves, leaves)
    assert tree.total == pytest.approx(leaves.sum(), rel=1e-12)
    targets = rng.random(500) * tree.total
    found = tree.find(targets)
    ends = leaves.cumsum()
    assert (leaves[found] > 0).all()
    assert (ends[found] - leaves[found] <= targets + 1e-9).all() and (targets <= ends[found] + 1e-9).all()
    again = SumTree(size)
    again.fill(leaves)
    assert again.total == tree.total and np.array_equal(again.find(targets), found), "a function of its leaves"


def test_transitions_are_drawn_in_proportion_to_their_priorities() -> None:
    """A chi-square test; seed 0, and the bound is passed once in a thousand seeds. Single draws: those of a stratified
    batch are nearer to their expectation than independent ones."""
    errors = np.array([0.0, 0.1, 0.5, 1.0, 3.0, 0.7, 2.0, 0.2])
    priorities = Priorities(PriorityConfig(exponent=0.6, least=0.01), num_slots=50)
    slots = np.arange(10, 18)
    priorities.add(slots, np.arange(8) != 5)  # no transition begins at the sixth
    known = slots[np.arange(8) != 5]
    priorities.set(known, errors[known - 10])
    generator = np.random.default_rng(0)
    drawn = np.concatenate([priorities.draw(1, generator) for _ in range(6_000)])
    expected = (errors[known - 10] + 0.01) ** 0.6
    probability = expected / expected.sum()
    counts = np.bincount(drawn, minlength=50)
    assert counts[known].sum() == 6_000
    assert _chi_square(counts[known], probability * 6_000) < 1
    stratified = np.bincount(priorities.draw(6_000, generator), minlength=50)[known]
    assert np.abs(stratified - probability * 6_000).max() <= 2, "a stratified batch is nearer still"


def test_importance_weights_make_the_mean_that_of_uniform_draws() -> None:
    """With beta = 1, the expectation under the draws of weight * x is in proportion to the plain mean of x."""
    rng = np.random.default_rng(1)
    priorities = Priorities(PriorityConfig(exponent=1.0, importance=0.4), num_slots=16)
    slots, values = np.arange(16), rng.normal(size=16)
    priorities.add(slots, np.ones(16, bool))
    priorities.set(slots, rng.random(16) + 0.1)
    probability = priorities.leaves / priorities.leaves.sum()
    weights = priorities.weights(slots, num_transitions=16, done=1.0).astype(np.float64)
    assert weights.max() == 1.0
    assert (probability * weights * values).sum() / (probability * weights).sum() == pytest.approx(values.mean())
    mild = priorities.weights(slots, num_transitions=16, done=0.0)
    assert mild == pytest.approx(weights**0.4, rel=1e-5)


def test_a_checkpoint_links_to_the_pages_that_did_not_change(tmp_path: Path) -> None:
    """And is whole by itself when the earlier ones are gone."""
    world = World(np.random.default_rng(2), 1, 2, next_step=False)
    buffer = ReplayBuffer(capacity=2 * 400, num_envs=2)
    pages = ReplayPages(buffer, page_bytes=4096)

    def add(number: int) -> None:
        for _ in range(number):
            slots, _ = buffer.add(world.fragment(0, 10), env_steps=0)
            pages.changed(slots)

    def save(name: str) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        pages.write(directory, {"more": np.arange(3)})
        return directory

    add(20)
    first = save("step-00000001")
    num_pages = pages.num_written
    assert num_pages > 3
    add(1)
    second = save("step-00000002")
    assert 1 <= pages.num_written <= 2, "the ring's newest rows"
    shared = {path.name for path in first.iterdir()} & {path.name for path in second.iterdir()} - {"replay.json"}
    assert sum((first / name).samefile(second / name) for name in shared) >= num_pages - 2
    for path in first.iterdir():
        path.unlink()
    other = ReplayBuffer(capacity=2 * 400, num_envs=2)
    again = ReplayPages(other, page_bytes=4096)
    assert np.array_equal(again.read(second)["more"], np.arange(3))
    assert other.num_transitions == buffer.num_transitions
    for name, array in buffer.arrays.items():
        assert np.array_equal(other.arrays[name], array)
    fragment = world.fragment(0, 10)
    assert np.array_equal(other.add(fragment, env_steps=0)[0], buffer.add(fragment, env_steps=0)[0])


def test_a_ring_on_disk_is_the_ring_in_memory(tmp_path: Path) -> None:
    world = World(np.random.default_rng(7), 1, 3, next_step=False)
    here = ReplayBuffer(capacity=3 * 30, num_envs=3)
    there = ReplayBuffer(capacity=3 * 30, num_envs=3, allocate=mapped_in(tmp_path / "replay"))
    for _ in range(8):
        fragment = world.fragment(0, 7)
        here.add(fragment, env_steps=0)
        there.add(fragment, env_steps=0)
    for name, array in here.arrays.items():
        assert np.array_equal(there.arrays[name], array)
        assert isinstance(there.arrays[name], np.memmap)
    assert not list((tmp_path / "replay").iterdir()), "whenever the process ends, nothing is left"
