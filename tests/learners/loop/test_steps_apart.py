"""Several optimisers in one learner: each model's own learning rate, clip and averages, in a checkpoint and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithm import for_acting
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.a2c_config import A2CConfig
from rollcall.learners.algorithms.control.off_policy.sac import SAC
from rollcall.learners.algorithms.control.off_policy.sac_config import SACConfig
from rollcall.learners.collective import Collective
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.optimizer_config import AdamConfig, OptimizerConfig, RMSpropConfig, SGDConfig
from rollcall.learners.loop.parameters import ReplicatedParameters
from tests.learners.experience import cartpole, make_learner

RATES = {"one": 0.1, "two": 0.01}
ON, OFF = torch.zeros(()), torch.ones(())


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"one": nn.Linear(3, 2), "two": nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 1)), "frozen": frozen()}


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


def parameters(
    these: Mapping[str, nn.Module], optimizer: OptimizerConfig, *, rates: dict[str, float] | None = RATES
) -> ReplicatedParameters:
    return ReplicatedParameters(these, collective=Collective(), optimizer=optimizer, learning_rate=0.1, apart=rates)


@pytest.mark.parametrize(
    "optimizer", [AdamConfig(weight_decay=0.1), RMSpropConfig(weight_decay=0.1), SGDConfig(momentum=0.9)]
)
def test_models_stepped_apart_are_stepped_as_each_by_an_optimiser_of_its_own(optimizer: OptimizerConfig) -> None:
    together, alone = models(), models()
    apart = parameters(together, optimizer)
    own = {
        name: ReplicatedParameters(
            {name: alone[name]}, collective=Collective(), optimizer=optimizer, learning_rate=rate
        )
        for name, rate in RATES.items()
    }
    turns: list[tuple[str, ...] | None] = [None, ("two",), None, ("one",)]
    for step, turn in enumerate(turns):
        gradient = torch.randn(len(apart.gradient), generator=torch.Generator().manual_seed(step))
        apart.gradient.copy_(gradient)
        apart.scale_learning_rates(1.0 / (step + 1))
        apart.step(ON, turn)
        begin = 0
        for name, trained in own.items():
            trained.gradient.copy_(gradient[begin : begin + len(trained.gradient)])
            begin += len(trained.gradient)
            trained.scale_learning_rates(1.0 / (step + 1))
            if turn is None or name in turn:
                trained.step(ON)
    for name in RATES:
        for ours, theirs in zip(together[name].parameters(), alone[name].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    before = {name: tensor.detach().clone() for name, tensor in apart.tensors().items()}
    apart.step(OFF)
    assert all(torch.equal(tensor, before[name]) for name, tensor in apart.tensors().items())


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    apart = parameters(models(), SGDConfig())
    places = dict(apart._gradients)
    apart.gradient.fill_(1.0)
    places["two"].fill_(1e-3)
    expected = {name: part.clone() for name, part in places.items()}
    expected["one"] /= expected["one"].norm()
    apart.clip_gradients(1.0, apart.gradient_norm())
    for name, part in places.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-5, atol=0)


def test_their_state_goes_through_a_checkpoint_by_the_models_names() -> None:
    one = parameters(models(), AdamConfig())
    one.gradient.normal_()
    one.step(ON, ("two",))
    state = one.state()
    assert {f"optimizer.exp_avg.{name}" for name in RATES} < state.keys()
    assert float(state["optimizer.step.one"]) == 0.0 and float(state["optimizer.step.two"]) == 1.0
    other = parameters(models(), AdamConfig())
    assert {name: array.shape for name, array in state.items()} == other.state_shapes()
    other.load_state(state)
    for trained in (one, other):
        trained.gradient.copy_(torch.ones(len(trained.gradient)))
        trained.step(ON)
    for name, array in one.state().items():
        assert array.tobytes() == other.state()[name].tobytes(), name


def test_a_model_that_is_forgotten_is_an_error_and_an_offloaded_one_is_told() -> None:
    with pytest.raises(KeyError, match="two"):
        parameters(models(), AdamConfig(), rates={"one": 0.1})
    with pytest.raises(ValueError, match=r"learner\.offload_optimizer"):
        ReplicatedParameters(
            models(), collective=Collective(), optimizer=AdamConfig(), learning_rate=0.1, apart=RATES, offload=True
        )


class ApartA2C(A2C):
    """A2C and a number of its own, which the loss pushes down."""

    def extra_models(self) -> Mapping[str, nn.Module]:
        number = nn.Module()
        number.register_parameter("value", nn.Parameter(torch.zeros(1)))
        return {"number": number}

    def learning_rates(self) -> Mapping[str, float | None]:
        return {"actor_critic": None, "number": 0.25}

    def loss(self, context: Any, minibatch: Any) -> Any:
        found = super().loss(context, minibatch)
        return found._replace(loss=found.loss + context.models["number"].value.sum())


def test_a_learner_steps_them_and_restores_them(tmp_path: Path) -> None:
    """Adam's first step is the learning rate, whatever the gradient is."""
    config = LearnerConfig(learning_rate=1e-3, optimizer=AdamConfig(eps=1e-12), max_grad_norm=0.5)
    learner: Any = make_learner(ApartA2C(A2CConfig()), config=config)
    before = {name: array.copy() for name, array in learner.weights(epoch=1, version=0).tensors()}
    batch = [cartpole(learner.weights(epoch=1, version=0))]
    learner.update(batch, StepOrder(0, 1, 0.0))
    after = dict(learner.weights(epoch=1, version=1).tensors())
    assert float(before["number.value"][0] - after["number.value"][0]) == pytest.approx(0.25)
    moved = max(float(abs(after[name] - before[name]).max()) for name in after if name.startswith("actor_critic."))
    assert math.isclose(moved, 1e-3, rel_tol=1e-3)
    learner.save(tmp_path, learner.weights(epoch=1, version=1))
    again: Any = make_learner(ApartA2C(A2CConfig()), config=config)
    again.restore(tmp_path)
    for one in (learner, again):
        one.update(batch, StepOrder(1, 1, 0.0))
    for name, tensor in learner._state_tensors().items():
        assert torch.equal(tensor, again._state_tensors()[name]), name


def test_who_acts_is_given_the_policy_alone() -> None:
    names = {
        name: nn.Module() for name in ("actor_critic", "critic", "temperature", "target_critic", "reward_normaliser")
    }
    assert for_acting(SAC(SACConfig()), names) == ["actor_critic", "reward_normaliser"]
    assert for_acting(A2C(A2CConfig()), names) == ["actor_critic", "critic", "temperature", "reward_normaliser"]
