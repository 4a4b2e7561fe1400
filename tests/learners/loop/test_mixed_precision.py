"""Weights in bfloat16 that are stepped as float32, and an optimiser in the host's memory: what they keep of plain Adam,
and what a learner holds for every parameter."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollcall.cluster.checkpoint import read_state
from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from rollcall.learners.algorithms.language.lm_ppo import LMPPO
from rollcall.learners.algorithms.language.lm_ppo_config import LMPPOConfig
from rollcall.learners.collective import Collective
from rollcall.learners.loop import footprint, mixed
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.mixed import MixedAdam
from rollcall.learners.loop.offload import HostRule
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, RMSpropConfig
from rollcall.learners.loop.parameters import WHOLE, ReplicatedParameters
from rollcall.learners.loop.rules import TorchRule
from rollcall.learners.models.halves import joined, split_into
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from tests.learners.loop.sharded_process import held_bytes
from tests.learners.token_experience import ALPHABET, TOKEN_BUDGET, make_learner, samples, with_lora, write_model
from tests.needs import require

require("transformers")

GO_ON, SKIP = torch.tensor(0.0), torch.tensor(1.0)
BFLOAT16 = LMPolicyConfig(dtype="bfloat16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


def halves_of(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    upper, rest = torch.empty_like(value, dtype=torch.bfloat16), torch.empty_like(value, dtype=torch.int16)
    split_into(value, upper, rest)
    return upper, rest


def test_two_halves_are_the_nearest_bfloat16_and_the_same_float32_again() -> None:
    scale = torch.logspace(-30, 30, 200_000, base=2)
    value = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * scale
    upper, rest = halves_of(value)
    assert torch.equal(upper, value.bfloat16())
    again = joined(upper, rest)
    in_the_middle = value.view(torch.int32).remainder(1 << 16) == 1 << 15
    assert in_the_middle.sum() < 20 and torch.equal(again[~in_the_middle], value[~in_the_middle])
    assert torch.equal(
        joined(*halves_of(torch.tensor([0.0, -0.0, 1e-42, -3.0]))), torch.tensor([0.0, -0.0, 1e-42, -3.0])
    )


def test_what_was_joined_once_stays_for_ever_also_in_the_middle_between_two_bfloat16() -> None:
    middle = (torch.arange(-30_000, 30_000, dtype=torch.int32) << 16) + (1 << 15)
    value = middle.view(torch.float32)
    value = value[value.isfinite()]
    upper, rest = halves_of(value)
    once = joined(upper, rest)
    assert int((once.view(torch.int32) - value.view(torch.int32)).abs().max()) == 1
    assert all(torch.equal(*pair) for pair in zip(halves_of(once), (upper, rest), strict=True))


def rule_of(kind: type, values: torch.Tensor, config: Any, *, decayed: list[Any] | None = None) -> Any:
    """Over one tensor of these values, whose gradient the test sets."""
    if kind is MixedAdam:
        upper, rest = halves_of(values)
        parameter = nn.Parameter(upper)
        rests = [rest]
    else:
        parameter, rests = nn.Parameter(values.clone()), [values]
    parameter.grad = torch.zeros_like(parameter)
    if kind is TorchRule:
        return TorchRule([parameter], decayed or [], config, learning_rate=1e-3)
    return kind([parameter], rests, decayed or [], config, learning_rate=1e-3)


def step(rule: Any, gradient: torch.Tensor, *, skip: torch.Tensor = GO_ON) -> None:
    parameter = (rule._parameters if hasattr(rule, "_parameters") else rule.live("parameters"))[0]
    parameter.grad.copy_(gradient)
    rule.scale_gradients(torch.tensor(0.5))
    rule.step(skip)


@pytest.mark.parametrize("chunk", [1 << 22, 37], ids=["whole", "in-chunks"])
def test_masters_take_the_steps_of_float32_adam_to_the_bit_where_no_average_of_gradients_is_rounded(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "STEP_CHUNK", chunk)
    config = AdamWConfig(beta1=0.0, weight_decay=0.1)  # the average is the gradient, which is a bfloat16
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, generator=generator)
    plain, halved = (rule_of(kind, values, config, decayed=[(0, slice(16, 120))]) for kind in (TorchRule, MixedAdam))
    for _ in range(50):
        gradient = torch.randn(200, generator=generator).bfloat16().float()
        for rule in (plain, halved):
            step(rule, gradient)
    assert plain.names() == halved.names()
    for name in ("parameters", "optimizer.exp_avg_sq", "optimizer.step"):
        one, other = plain.read(name, 0), halved.read(name, 0)
        torch.testing.assert_close(one, other, rtol=0 if chunk > 200 else 1e-6, atol=0, msg=name)  # loops' ends round


def test_steps_that_bfloat16_would_round_away_add_up() -> None:
    values = torch.full((64,), 1.0)
    plain, halved = (rule_of(kind, values, AdamConfig()) for kind in (TorchRule, MixedAdam))
    for rule in (plain, halved):
        rule.set_learning_rate(1e-5)  # of 1, where bfloat16 knows steps of 4e-3
        for _ in range(300):
            step(rule, torch.full((64,), 0.3))
    moved = 1.0 - plain.read("parameters", 0)
    assert float(moved.min()) > 2.9e-3
    # An average of gradients stops short of what it comes to by at most half a digit over 1 - beta1: 2 %.
    torch.testing.assert_close(1.0 - halved.read("parameters", 0), moved, atol=0, rtol=0.025)


@pytest.mark.parametrize("kind", [TorchRule, MixedAdam, HostRule])
@pytest.mark.parametrize(
    "config", [AdamWConfig(weight_decay=0.1), RMSpropConfig(weight_decay=0.1)], ids=["adamw", "rms"]
)
def test_a_skipped_step_leaves_every_bit(kind: type, config: Any) -> None:
    if kind is MixedAdam and isinstance(config, RMSpropConfig):
        return  # Adam alone
    rule = rule_of(kind, torch.linspace(-1, 1, 100), config, decayed=[(0, slice(0, 100))])
    step(rule, torch.linspace(2, 3, 100))
    before = {name: tensor.clone() for name, tensor in rule.state_tensors().items()}
    step(rule, torch.full((100,), torch.nan), skip=SKIP)
    for name, tensor in rule.state_tensors().items():
        assert torch.equal(tensor, before[name]), name
    step(rule, torch.linspace(2, 3, 100))
    assert not torch.equal(rule.read("parameters", 0), before.popitem()[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimiser_in_the_hosts_memory_takes_the_same_steps(dtype: torch.dtype) -> None:
    """On a CPU both memories are one; the copies are made all the same."""
    found = []
    for offload in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
        config = AdamWConfig(beta1=0.0, weight_decay=0.1)
        settings: dict[str, Any] = {"optimizer": config, "learning_rate": 1e-2, "dtype": dtype, "offload": offload}
        trained = ReplicatedParameters({"network": network}, collective=Collective(), **settings)
        for _ in range(5):
            trained.zero_gradients()
            network(torch.ones(2, 7, dtype=dtype)).float().square().sum().backward()
            trained.clip_gradients(1.0, trained.gradient_norm())
            trained.step(GO_ON)
        assert isinstance(trained._rules[WHOLE], HostRule) == offload
        found.append(trained.state() | {"flat": trained.flat().detach().float().numpy()})
        again = ReplicatedParameters(
            {"network": nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))}, collective=Collective(), **settings
        )
        again.load_state(found[-1])
        for name, array in again.state().items():
            np.testing.assert_array_equal(array, found[-1][name])
        assert torch.equal(again.flat(), trained.flat())
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        if not (name == "optimizer.exp_avg" and dtype == torch.bfloat16):  # on the host that is float32
            rtol = 0 if dtype == torch.float32 else 1e-6  # loops' ends round
            np.testing.assert_allclose(array, found[1][name], rtol=rtol, atol=0, err_msg=name)


def learner_of(model: Path, policy: LMPolicyConfig, **settings: Any) -> Any:
    algorithm = GRPO(GRPOConfig(kl_coef=0.1, token_budget=TOKEN_BUDGET))
    config = LearnerConfig(learning_rate=1e-3, optimizer=AdamWConfig())
    return make_learner(model, algorithm, policy=policy, config=config, **settings)


def test_bfloat16_weights_go_on_from_a_checkpoint_to_the_same_bits_and_float32_from_theirs(
    model: Path, tmp_path: Path
) -> None:
    whole = learner_of(model, BFLOAT16)
    whole.update(samples(model, step=0), StepOrder(0, 1, 0.0, tmp_path))
    resumed, as_float32 = learner_of(model, BFLOAT16), learner_of(model, LMPolicyConfig())
    for learner in (resumed, as_float32):
        learner.restore(tmp_path)
    for name, array in as_float32._trained.state().items():  # the form of a checkpoint is one
        np.testing.assert_array_equal(array, whole._trained.state()[name], err_msg=name)
    for learner in (whole, resumed):
        learner.update(samples(model, step=1), StepOrder(1, 1, 0.0))
    for name, tensor in whole._state_tensors().items():
        assert torch.equal(tensor, resumed._state_tensors()[name]), name
    # The policy in the checkpoint is what is stepped, not what it was rounded to.
    weights, state = read_state(tmp_path, "weights"), read_state(tmp_path, "learner")
    assert weights is not None and state is not None
    values = np.concatenate([array.reshape(-1) for array in weights[0].values()])
    assert set(values.tolist()) <= set(state[0]["parameters"].tolist())
    assert (torch.from_numpy(values) != torch.from_numpy(values).bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("algorithm", [GRPO(GRPOConfig(kl_coef=0.05)), LMPPO(LMPPOConfig())], ids=["grpo", "critic"])
def test_bfloat16_weights_learn_like_float32(model: Path, algorithm: Any) -> None:
    """Samples are drawn once and learnt from again and again, so that nothing but arithmetic differs. The loss of
    bfloat16 comes from the last digits of ratios near 1: the masters' way is looked at, against how far they went."""
    ways = {}
    for name, policy in (
        ("float32", LMPolicyConfig()),
        ("autocast", LMPolicyConfig(dtype="bfloat16", weights_dtype="float32")),
        ("mixed", BFLOAT16),
    ):
        learner: Any = make_learner(model, algorithm, policy=policy, config=LearnerConfig(learning_rate=3e-4))
        begin = learner._trained.state()["parameters"].copy()
        batches = [samples(model, step=number) for number in range(3)]
        for number in range(30):
            report, _ = learner.update(batches[number % 3], StepOrder(number, 1, 0.0))
            assert not report.skipped
        ways[name] = learner._trained.state()["parameters"] - begin
    size = np.linalg.norm(ways["float32"])
    apart = {name: np.linalg.norm(way - ways["float32"]) / size for name, way in ways.items()}
    assert size > 0.3 and apart["mixed"] < 0.3
    assert apart["mixed"] < 1.5 * apart["autocast"]  # which is bfloat16 compute with all else in float32


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A model of which bookkeeping is nothing beside the parameters, and their number."""
    folder = tmp_path_factory.mktemp("larger")
    write_tiny_model(folder, alphabet=ALPHABET, hidden_size=256, num_layers=3, num_heads=4, num_kv_heads=4, seed=0)
    learner = make_learner(folder, GRPO(GRPOConfig()))
    return folder, sum(parameter.numel() for parameter in learner._models["policy"].parameters())


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [(LMPolicyConfig(), 16), (BFLOAT16, 12), (LMPolicyConfig(dtype="bfloat16", weights_dtype="float32"), 16)],
    ids=["float32", "bfloat16", "autocast"],
)
@pytest.mark.parametrize("reference", [False, True])
def test_a_learner_holds_what_is_said_for_every_parameter(
    larger: tuple[Path, int], policy: LMPolicyConfig, allowed: int, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, number = larger
    assert number > 1_000_000
    monkeypatch.setattr("rollcall.learners.loop.learner.SNAPSHOT_BYTES", 0)
    gc.collect()
    before = held_bytes()
    algorithm = GRPO(GRPOConfig(kl_coef=0.1 if reference else 0.0, token_budget=TOKEN_BUDGET))
    config = LearnerConfig()
    learner = make_learner(folder, algorithm, policy=policy, config=config, published_dtype="bfloat16")
    learner.update(samples(folder, step=0), StepOrder(0, 1, 0.0))
    held = (held_bytes() - before) / number
    said = sum(footprint.per_trained(config, weights_dtype=footprint.trained_dtype(policy, config)).values())
    assert said == allowed
    if reference:
        said += sum(footprint.per_frozen(weights_dtype=footprint.frozen_dtype(policy)).values())
    assert held == pytest.approx(said, rel=0.02)


def test_a_model_beneath_adapters_is_held_in_bfloat16_and_published_with_them(larger: tuple[Path, int]) -> None:
    folder, number = larger
    before = held_bytes()
    policy = with_lora().model_copy(update={"dtype": "bfloat16"})
    learner = make_learner(folder, GRPO(GRPOConfig(kl_coef=0.1, token_budget=TOKEN_BUDGET)), policy=policy)
    report, weights = learner.update(samples(folder, step=0), StepOrder(0, 1, 0.0))
    assert not report.skipped and weights is not None and list(weights.buffers) == ["float32"]
    trained = sum(parameter.numel() for parameter in learner._models["policy"].parameters() if parameter.requires_grad)
    assert held_bytes() - before == pytest.approx(2 * number + 16 * trained, rel=0.02)
