"""The optimisers against their published updates, written out; schedules; and the spellings of both in a recipe."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, OptimizerConfig, RMSpropConfig, SGDConfig
from rollcall.learners.loop.rules import TorchRule
from rollcall.learners.loop.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, rate_fraction

GRADIENTS = (2.0, -1.0, 3.0, 0.5)
RATE = 0.1


def literal_adam(config: AdamConfig | AdamWConfig) -> float:
    x = mean = square = 0.0
    for t, gradient in enumerate(GRADIENTS, start=1):
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        unbiased = mean / (1 - config.beta1**t), square / (1 - config.beta2**t)
        x -= RATE * unbiased[0] / (math.sqrt(unbiased[1]) + (config.eps or 1e-5))
    return x


def literal_rmsprop(config: RMSpropConfig) -> float:
    eps, torchs = config.eps or 1e-5, config.form == "torch"
    x, step, square = 0.0, 0.0, 0.0 if torchs else 1.0
    for gradient in GRADIENTS:
        square = config.decay * square + (1 - config.decay) * gradient**2
        ratio = gradient / (math.sqrt(square) + eps if torchs else math.sqrt(square + eps))
        step = config.momentum * step + (ratio if torchs else RATE * ratio)
        x -= RATE * step if torchs else step
    return x


def literal_sgd(config: SGDConfig) -> float:
    x = step = 0.0
    for gradient in GRADIENTS:
        step = config.momentum * step + gradient
        x -= RATE * step
    return x


@pytest.mark.parametrize(
    ("config", "literal"),
    [
        (AdamConfig(), literal_adam),
        (AdamConfig(beta1=0.5, beta2=0.9, eps=0.1), literal_adam),
        (AdamWConfig(beta2=0.95), literal_adam),
        (RMSpropConfig(eps=0.5), literal_rmsprop),
        (RMSpropConfig(decay=0.9, momentum=0.9), literal_rmsprop),
        (RMSpropConfig(form="tensorflow", eps=0.1), literal_rmsprop),
        (RMSpropConfig(form="tensorflow", decay=0.9, momentum=0.5, eps=0.01), literal_rmsprop),
        (SGDConfig(), literal_sgd),
        (SGDConfig(momentum=0.9), literal_sgd),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_optimiser_makes_its_published_update(config: Any, literal: Callable[[Any], float]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.zeros_like(parameter)
    rule = TorchRule([parameter], [], config, learning_rate=RATE)
    for name, tensor in rule.state_tensors().items():  # as a checkpoint holds it before the first step
        assert float(tensor.detach()) == (name == "optimizer.square_avg.0" and config.form == "tensorflow")
    for gradient in GRADIENTS:
        parameter.grad.fill_(gradient)
        rule.step(torch.zeros(()))
    assert float(parameter.detach()) == pytest.approx(literal(config), rel=1e-9)


def test_the_first_steps_of_tensorflows_rmsprop_are_smaller_by_its_average_that_begins_at_one() -> None:
    """Of a small gradient g the first step is g / sqrt(0.99 + 0.01 g^2 + eps) rates, torch's g / (0.1 |g| + eps)."""
    steps = []
    for form in ("torch", "tensorflow"):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        parameter.grad = torch.full_like(parameter, 0.1)
        config = RMSpropConfig.model_validate({"form": form, "eps": 0.01})
        TorchRule([parameter], [], config, learning_rate=1.0).step(torch.zeros(()))
        steps.append(-float(parameter.detach()))
    assert steps == pytest.approx([0.1 / (0.01 + 0.01), 0.1 / math.sqrt(0.99 + 0.0001 + 0.01)], rel=1e-9)


def test_adams_step_is_the_learning_rate_for_the_small_gradients_of_language_too() -> None:
    """The first step is g / (|g| + epsilon) learning rates: at a gradient of 1e-6, a tenth of one by PPO's 1e-5."""
    for config, share in ((LearnerConfig(), 1 / 11), (LearnerConfig().for_language(), 1 / 1.01)):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        parameter.grad = torch.full_like(parameter, 1e-6)
        TorchRule([parameter], [], config.optimizer, learning_rate=1.0).step(torch.zeros(()))
        assert float(-parameter.detach()) == pytest.approx(share, rel=1e-4)
    given = LearnerConfig(optimizer=AdamConfig(eps=1e-3))
    assert given.for_language() == given
    assert LearnerConfig(optimizer=SGDConfig()).for_language().optimizer == SGDConfig()


def test_schedules_are_functions_of_what_is_consumed_and_warm_up_over_learner_steps() -> None:
    half = {"step": 9, "progress": 0.5}
    assert rate_fraction(ConstantSchedule(), **half) == 1.0  # type: ignore[arg-type]
    assert rate_fraction(LinearSchedule(), step=9, progress=0.25) == 0.75
    assert rate_fraction(LinearSchedule(final_fraction=0.2), **half) == pytest.approx(0.6)  # type: ignore[arg-type]
    assert rate_fraction(CosineSchedule(), step=9, progress=0.25) == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert rate_fraction(CosineSchedule(final_fraction=0.1), step=9, progress=1.0) == pytest.approx(0.1)
    for schedule in (ConstantSchedule(warmup_steps=4), LinearSchedule(warmup_steps=4), CosineSchedule(warmup_steps=4)):
        rates = [rate_fraction(schedule, step=step, progress=0.0) for step in range(5)]
        assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("written", "optimizer"),
    [
        ({}, AdamConfig()),
        ({"optimizer": "rmsprop"}, RMSpropConfig()),
        ({"optimizer": {"beta2": 0.95}}, AdamConfig(beta2=0.95)),
        ({"optimizer": "adam", "optimizer_eps": 1e-5, "weight_decay": 0.1}, AdamConfig(eps=1e-5, weight_decay=0.1)),
        ({"optimizer": {"kind": "adamw", "weight_decay": 0.1}, "weight_decay": 0.2}, AdamWConfig(weight_decay=0.2)),
        ({"optimizer": "sgd", "optimizer_eps": None, "weight_decay": 0.0}, SGDConfig()),
    ],
    ids=str,
)
def test_an_optimiser_is_written_short_or_as_a_section(written: dict[str, Any], optimizer: OptimizerConfig) -> None:
    assert LearnerConfig.model_validate(written).optimizer == optimizer


def test_a_schedule_is_written_short_or_as_a_section() -> None:
    def of(**written: Any) -> Any:
        return LearnerConfig.model_validate(written).schedule

    assert of(warmup_steps=3, anneal_learning_rate=True) == LinearSchedule(warmup_steps=3)
    assert of(warmup_steps=0, anneal_learning_rate=False) == of() == ConstantSchedule()
    assert of(schedule="cosine", warmup_steps=3) == CosineSchedule(warmup_steps=3)
    linear = {"kind": "linear", "final_fraction": 0.1}
    assert of(schedule=linear, anneal_learning_rate=False) == ConstantSchedule()
    for wrong in ({"schedule": "linar"}, {"optimizer": "adm"}, {"anneal_learning_rate": 3}, {"beta1": 0.9}):
        with pytest.raises(ValidationError):
            LearnerConfig.model_validate(wrong)


def test_a_process_that_learns_with_adam_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys, torch; from rollcall.learners.loop.optimizer_config import AdamConfig;"
        "from rollcall.learners.loop.learner import Learner; from rollcall.learners.loop.rules import TorchRule;"
        "one = torch.nn.Parameter(torch.ones(1)); one.grad = torch.ones(1);"
        "rule = TorchRule([one], [], AdamConfig(), learning_rate=0.1); rule.step(torch.zeros(()));"
        "sys.exit('torch._dynamo' in sys.modules or one.item() == 1.0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
