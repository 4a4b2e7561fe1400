"""How often kept experience is drawn, what a step that is taken back leaves behind, what a checkpoint brings back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.learners.batches.replay_batch import ReplayBatch
from rollcall.learners.collators.replay import ReplayCollator
from rollcall.learners.data.replay_config import PriorityConfig, ReplayConfig
from tests.learners.data.replayed_world import World

CPU = torch.device("cpu")


def _collator(**settings: Any) -> ReplayCollator:
    given = {"capacity": 400, "batch_size": 8, "learning_starts": 0, "n_step": 2, **settings}
    return ReplayCollator(ReplayConfig(**given), discount=0.9, num_envs=4, seed=3, total_env_steps=500)


def _world(seed: int = 0) -> World:
    return World(np.random.default_rng(seed), 2, 2, next_step=True)


def _units(world: World) -> list[GymTrajectory]:
    return [world.fragment(shard, 5) for shard in range(2)]


def _drawn(batch: ReplayBatch) -> list[list[float]]:
    return [batch.drawn[i].observations["observation"][:, 0].tolist() for i in range(len(batch.drawn))]


@pytest.mark.parametrize(("ratio", "starts"), [(1.0, 0), (0.1, 0), (0.29, 37), (2.5, 60)])
def test_gradient_steps_are_exactly_as_many_as_env_steps_ask_for(ratio: float, starts: int) -> None:
    """After each learner step the largest whole number of them that the ratio allows, as it is written."""
    collator, world = _collator(updates_per_env_step=ratio, learning_starts=starts), _world()
    env_steps = done = 0
    for step in range(20):
        units = _units(world)
        env_steps += sum(unit.num_steps for unit in units)
        batch = collator.collate(units, CPU, step=step)
        done += len(batch.drawn)
        assert batch.env_steps == env_steps
        assert done == (max(0, env_steps - starts) * round(ratio * 100)) // 100
        assert all(len(batch.drawn[i]) == 8 for i in range(len(batch.drawn)))


@pytest.mark.parametrize("prioritised", [None, PriorityConfig()])
def test_a_step_that_is_taken_back_is_as_if_it_had_not_been(prioritised: PriorityConfig | None) -> None:
    """Also where the ring is full, and what came in took the place of what was kept."""
    once, twice = _collator(capacity=80, prioritised=prioritised), _collator(capacity=80, prioritised=prioritised)
    world, same = _world(), _world()
    for step in range(12):
        units, others = _units(world), _units(same)
        before = twice.state()
        twice.collate(_units(_world(7)), CPU, step=step)
        twice.load_state(before)
        one, other = once.collate(units, CPU, step=step), twice.collate(others, CPU, step=step)
        assert _drawn(one) == _drawn(other)
        errors = torch.arange(len(one.drawn) * 8, dtype=torch.float32)
        once.learned(one, errors)
        twice.learned(other, errors)
    if once.priorities is not None and twice.priorities is not None:
        assert np.array_equal(once.priorities.leaves, twice.priorities.leaves)


@pytest.mark.parametrize("prioritised", [None, PriorityConfig()])
def test_a_checkpoint_goes_on_to_the_same_draws(prioritised: PriorityConfig | None, tmp_path: Path) -> None:
    collator, world = _collator(capacity=120, prioritised=prioritised), _world()

    def learn(own: ReplayCollator, units: list[GymTrajectory], step: int) -> list[list[float]]:
        batch = own.collate(units, CPU, step=step)
        own.learned(batch, torch.arange(len(batch.drawn) * 8, dtype=torch.float32))
        return _drawn(batch)

    for step in range(9):
        learn(collator, _units(world), step)
    state = collator.state()
    collator.write_files(tmp_path)
    again = _collator(capacity=120, prioritised=prioritised)
    again.load_state(state)
    again.read_files(tmp_path)
    for step in range(9, 14):
        units = _units(world)
        assert learn(again, units, step) == learn(collator, units, step)


def test_what_was_drawn_is_named_by_its_attempts_and_its_age() -> None:
    collator, world = _collator(updates_per_env_step=0.5), _world()
    for step in range(4):
        batch = collator.collate(_units(world), CPU, step=step)
    number, tickets, attempts = collator.sampled(batch)
    assert number == len(batch.drawn) * 8 > 0
    shown = {value for drawn in _drawn(batch) for value in drawn}
    ticket_of: dict[float, int] = {}
    for ticket, unit in enumerate(_all_units(4), start=1):
        ticket_of |= dict.fromkeys(unit.steps.observations["observation"][unit.steps.mask][:, 0], ticket)
    assert tickets.tolist() == sorted({ticket_of[value] for value in shown})
    assert set(attempts.tolist()) == {1}
    metrics = collator.metrics(batch)
    assert 0 <= metrics["replay_age_env_steps"] <= batch.env_steps
    assert metrics["replay_transitions"] == sum(unit.num_steps for unit in _all_units(4))
    assert metrics["gradient_steps"] == len(batch.drawn)


def _all_units(steps: int) -> list[GymTrajectory]:
    world = _world()
    return [unit for _ in range(steps) for unit in _units(world)]


def test_the_actors_td_errors_are_the_first_priorities() -> None:
    priorities = PriorityConfig(exponent=1.0, least=1e-9, initial="actor")
    collator, (unit, _) = _collator(prioritised=priorities), _units(_world())
    errors = np.arange(10, dtype=np.float32).reshape(5, 2) + 1
    judged = GymTrajectory(
        unit.header, unit.shard, unit.incarnation, unit.policy_version, unit.unroll.with_td_errors(errors)
    )
    batch = collator.collate([judged], CPU, step=0)
    assert batch.added.steps.td_errors is None
    assert collator.priorities is not None
    leaves = collator.priorities.leaves
    assert sorted(leaves[leaves > 0].tolist()) == pytest.approx(sorted(errors[unit.steps.mask].tolist()))
