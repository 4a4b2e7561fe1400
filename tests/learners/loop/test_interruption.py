"""A learner step that is interrupted leaves nothing behind: the next one is what it would have been without it. Of a
large model that is so until its first optimiser step; then the batch is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.ppo_config import PPOConfig
from rollcall.learners.loop import learner as learner_module
from rollcall.learners.models.policy_config import PolicyConfig
from tests.learners.experience import cartpole, make_learner

# What a step changes before, within and after the optimiser's work: statistics of rewards and of observations.
POLICY = PolicyConfig(normalise_observations=True, normalise_rewards=True)


def state_of(learner: Any, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    learner.save(folder, learner.weights(epoch=1, version=0))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("looks", [0, 1, 3, 7])  # at whether to go on, before one says no
def test_an_interrupted_step_is_taken_back_whole(tmp_path: Path, looks: int) -> None:
    learner, reference = (make_learner(PPO(PPOConfig(epochs=2, num_minibatches=4)), policy=POLICY) for _ in "ab")
    trajectories = [cartpole(learner.weights(epoch=1, version=0), ticket=0, policy=POLICY)]
    for one in (learner, reference):
        one.update(trajectories, StepOrder(0, 1, 0.0))
    before = state_of(learner, tmp_path / "before")
    answers = iter([False] * looks + [True] * 100)
    learner.interrupted = lambda: next(answers)
    result, weights = learner.update(trajectories, StepOrder(1, 1, 0.1))
    assert result.interrupted and weights is None and result.step == 1
    assert state_of(learner, tmp_path / "after") == before
    learner.interrupted = lambda: False
    (again, got), (_, expected) = (one.update(trajectories, StepOrder(1, 1, 0.1)) for one in (learner, reference))
    assert not again.interrupted and got is not None and expected is not None
    assert got.checksum == expected.checksum


@pytest.mark.parametrize("looks", [0, 1])  # before anything is done, and before the first minibatch's gradient
def test_a_large_model_is_taken_back_without_a_copy_before_its_first_optimiser_step(
    tmp_path: Path, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "SNAPSHOT_BYTES", 1000)
    test_an_interrupted_step_is_taken_back_whole(tmp_path, looks)


def test_a_large_model_finishes_a_batch_that_has_changed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "SNAPSHOT_BYTES", 1000)
    learner, reference = (make_learner(PPO(PPOConfig(epochs=2, num_minibatches=4)), policy=POLICY) for _ in "ab")
    trajectories = [cartpole(learner.weights(epoch=1, version=0), ticket=0, policy=POLICY)]
    answers = iter([False, False, *[True] * 100])
    learner.interrupted = lambda: next(answers)
    (report, got), (_, expected) = (one.update(trajectories, StepOrder(0, 1, 0.0)) for one in (learner, reference))
    assert not report.interrupted and got is not None and expected is not None
    assert got.checksum == expected.checksum
    result, _ = learner.update(trajectories, StepOrder(1, 1, 0.1))  # and begins no other
    assert result.interrupted
    assert state_of(learner, tmp_path / "learner") == state_of(reference, tmp_path / "reference")
