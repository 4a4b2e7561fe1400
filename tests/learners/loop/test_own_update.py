"""What an algorithm may have beside a loss, through the real learner: an update of its own over the stepper, a hook
after each optimiser step, values of samples, models that follow, and arrays in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.optimizer_config import SGDConfig
from tests.learners.experience import cartpole, make_learner
from tests.learners.loop.own_update import NaturalGradient, PushedGradients, Remembering


def parameters_of(learner: Any, name: str = "actor_critic") -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner._models[name].parameters()])


def step(learner: Any, number: int = 0) -> Any:
    return learner.update(
        [cartpole(learner.weights(epoch=1, version=number), ticket=number)], StepOrder(number, 1, 0.0)
    )


def test_a_natural_gradient_with_backtracking_gains_within_its_bound() -> None:
    algorithm = NaturalGradient(max_kl=0.01)
    learner = make_learner(algorithm)
    report, weights = step(learner)
    assert weights is not None and not report.skipped
    assert 0.001 < report.metrics["kl"] <= 0.01  # the step was made, and the bound held
    assert report.metrics["loss"] < -1.0  # before the step it is -1: the mean reward, at a ratio of 1


def test_a_broken_update_is_taken_back_whole() -> None:
    learner = make_learner(NaturalGradient(max_kl=float("nan")))
    before = {name: tensor.clone() for name, tensor in learner._state_tensors().items()}
    report, _ = step(learner)
    assert report.skipped
    for name, tensor in learner._state_tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_may_come_from_elsewhere() -> None:
    """By plain gradient descent, unclipped: 0.1 more of every gradient is 0.1 rates less of every parameter."""
    after = []
    for pushed in (0.0, 0.1):
        config = LearnerConfig(learning_rate=0.5, optimizer=SGDConfig(), max_grad_norm=None)
        learner = make_learner(PushedGradients(pushed), config=config)
        step(learner)
        after.append(parameters_of(learner))
    torch.testing.assert_close(after[1] - after[0], torch.full_like(after[0], -0.05))


def test_a_target_network_follows_after_each_step_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    config = LearnerConfig(learning_rate=0.5, optimizer=SGDConfig())
    learner = make_learner(PushedGradients(0.1), config=config)
    first = parameters_of(learner)
    assert torch.equal(parameters_of(learner, "target_actor_critic"), first)
    step(learner)
    torch.testing.assert_close(parameters_of(learner, "target_actor_critic"), (first + parameters_of(learner)) / 2)
    learner.save(tmp_path, learner.weights(epoch=1, version=1))
    again = make_learner(PushedGradients(0.1), config=config)
    again.restore(tmp_path)
    for name in ("actor_critic", "target_actor_critic"):
        assert torch.equal(parameters_of(again, name), parameters_of(learner, name))


def test_values_of_samples_reach_the_collator_and_its_arrays_the_checkpoint(tmp_path: Path) -> None:
    learner: Any = make_learner(NaturalGradient(), kind_of_collator=Remembering)
    trajectory = cartpole(learner.weights(epoch=1, version=0))
    learner.update([trajectory], StepOrder(0, 1, 0.0))
    terms = np.where(trajectory.steps.mask, trajectory.steps.rewards, 0.0).flatten()  # at a ratio of 1
    np.testing.assert_allclose(learner._collator.priorities, terms, rtol=1e-5)
    learner.save(tmp_path, learner.weights(epoch=1, version=1))
    again: Any = make_learner(NaturalGradient(), kind_of_collator=Remembering)
    again.restore(tmp_path)
    assert again._collator.priorities.tobytes() == learner._collator.priorities.tobytes()


@pytest.mark.parametrize("shorter", [0.5, 0.25])
def test_the_stepper_reads_and_writes_parameters_side_by_side(shorter: float) -> None:
    learner: Any = make_learner(NaturalGradient())
    stepper, before = learner._stepper, parameters_of(learner)
    stepper.begin()
    stepper.write(shorter * stepper.parameters)
    torch.testing.assert_close(parameters_of(learner), shorter * before)
    for parameter, place in stepper.views(stepper.parameters):
        assert torch.equal(parameter.detach(), place)
