"""Adapters: they alone are trained, and what is published is the model that they make of the frozen one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from rollcall.learners.algorithms.language.lm_ppo import LMPPO
from rollcall.learners.algorithms.language.lm_ppo_config import LMPPOConfig
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows, collate_samples
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.lora import add_adapters, merged_parameters
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from tests.learners.token_experience import (
    SAMPLING,
    TOKEN_BUDGET,
    make_learner,
    published,
    samples,
    with_lora,
    write_model,
)
from tests.needs import require

require("peft")

GRPO_WITH_KL = GRPOConfig(kl_coef=0.1, epochs=2, num_minibatches=2, token_budget=TOKEN_BUDGET)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, tied=request.param)
    return folder


def trained(directory: Path, steps: int = 3, algorithm: Any = None, **settings: Any) -> Learner:
    learner: Learner = make_learner(directory, algorithm or GRPO(GRPO_WITH_KL), policy=with_lora(**settings))
    for step in range(steps):
        result, _ = learner.update(samples(directory, step=step), StepOrder(step, 1, 0.0))
        assert not result.skipped
    return learner


def policy_of(learner: Learner) -> Any:
    return learner._models["policy"]


def base(module: nn.Module) -> dict[str, Tensor]:
    """What there was before the adapters, under the old names."""
    named = module.named_parameters()
    return {name.replace(".base_layer.", "."): value for name, value in named if ".lora_" not in name}


def rows(directory: Path) -> TokenRows:
    batch: TokenBatch = collate_samples(samples(directory, step=90), step=90)
    return batch.rows(range(batch.num_samples))[0]


@torch.no_grad()
def logprobs(policy: nn.Module, directory: Path) -> Tensor:
    result: Tensor = policy(rows(directory)).logprobs
    return result


def plain_policy(directory: Path) -> TokenPolicy:
    return TokenPolicy(load_policy_model(directory, LMPolicyConfig()), SAMPLING)


def test_adapters_alone_are_trained_and_the_model_beneath_keeps_every_bit(directory: Path) -> None:
    learner = trained(directory)
    policy, given = policy_of(learner), dict(plain_policy(directory).named_parameters())
    kept = base(policy)
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    adapters = {name: value for name, value in policy.named_parameters() if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 7  # A and B, in two layers of seven matrices
    assert all(bool(value.ne(0).any()) for value in adapters.values())  # B was zero
    assert {name for name, value in policy.named_parameters() if value.requires_grad} == adapters.keys()
    # The optimiser's state is that of the adapters, and of nothing else.
    sizes = {name: tensor.numel() for name, tensor in learner._state_tensors().items() if tensor.dim() == 1}
    aligned = sum(-(-value.numel() // 16) * 16 for value in adapters.values())
    assert sizes["parameters.0"] == sizes["optimizer.exp_avg.0"] == sizes["optimizer.exp_avg_sq.0"] == aligned


def test_version_0_is_the_given_model_to_the_bit_under_the_same_names(directory: Path) -> None:
    with_adapters = make_learner(directory, GRPO(GRPO_WITH_KL), policy=with_lora()).weights(epoch=1, version=0)
    without = make_learner(directory, GRPO(GRPO_WITH_KL)).weights(epoch=1, version=0)
    assert with_adapters.index == without.index
    assert with_adapters.checksum == without.checksum


def test_published_weights_are_what_peft_merges(directory: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    learner = trained(directory)
    settings = PeftConfig(r=4, lora_alpha=8, target_modules="all-linear")
    other: Any = get_peft_model(load_policy_model(directory, LMPolicyConfig()), settings)  # type: ignore[arg-type]
    adapters = get_peft_model_state_dict(policy_of(learner).model)
    result: Any = set_peft_model_state_dict(
        other, {f"base_model.model.{name}": value for name, value in adapters.items()}
    )
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if ".lora_" in name]
    merged = dict(other.merge_and_unload().named_parameters())
    mine = {name.removeprefix("policy.model."): array for name, array in published(learner).items()}
    assert mine.keys() == merged.keys()
    for name, array in mine.items():
        np.testing.assert_allclose(array, merged[name].detach().numpy(), atol=1e-6, rtol=0, err_msg=name)


def test_a_plain_model_with_the_published_weights_says_what_the_adapted_one_says(directory: Path) -> None:
    learner = trained(directory)
    plain = plain_policy(directory)
    before = logprobs(plain, directory)
    weights = published(learner)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(torch.from_numpy(weights[f"policy.{name}"]))
    expected = logprobs(policy_of(learner), directory)
    torch.testing.assert_close(logprobs(plain, directory), expected, atol=1e-5, rtol=0)
    assert float((expected - before).abs().max()) > 0.1


def test_publishing_does_not_touch_the_model(directory: Path) -> None:
    learner = trained(directory)
    before = {name: value.detach().clone() for name, value in policy_of(learner).named_parameters()}
    first = learner.weights(epoch=1, version=3)
    assert all(learner.weights(epoch=1, version=3).checksum == first.checksum for _ in range(3))
    assert all(torch.equal(value, before[name]) for name, value in policy_of(learner).named_parameters())


def test_the_reference_is_the_policy_of_version_0_without_a_copy_of_it(directory: Path) -> None:
    learner = trained(directory)
    reference = learner._models["reference"]
    assert not list(reference.parameters())
    expected = logprobs(plain_policy(directory), directory)
    assert torch.equal(logprobs(reference, directory), expected)
    assert not torch.equal(logprobs(policy_of(learner), directory), expected)  # and its adapters are on again
    assert all(value.requires_grad for name, value in policy_of(learner).named_parameters() if ".lora_" in name)


def test_adapters_are_on_again_after_a_reference_pass_that_failed(directory: Path) -> None:
    learner = trained(directory)
    before = logprobs(policy_of(learner), directory)
    with pytest.raises(AttributeError):
        learner._models["reference"]("no rows")
    assert torch.equal(logprobs(policy_of(learner), directory), before)


def test_on_policy_data_has_a_ratio_of_one_before_the_first_update(directory: Path) -> None:
    learner = make_learner(directory, GRPO(GRPOConfig()), policy=with_lora())
    result, _ = learner.update(samples(directory, step=0), StepOrder(0, 1, 0.0))
    assert result.metrics["mismatch"] < 1e-6 and result.metrics["clip_fraction"] == 0.0


def test_a_resumed_learner_goes_on_to_the_same_bits(directory: Path, tmp_path: Path) -> None:
    first = trained(directory, steps=2)
    first.save(tmp_path, first.weights(epoch=1, version=2))
    second = trained(directory, steps=0)
    second.restore(tmp_path)
    checksums = set()
    for learner in (first, second):
        _, weights = learner.update(samples(directory, step=2), StepOrder(2, 1, 0.0))
        assert weights is not None
        checksums.add(weights.checksum)
    assert len(checksums) == 1


def test_two_learners_of_one_seed_begin_with_the_same_adapters(directory: Path) -> None:
    one, other = (dict(policy_of(trained(directory, steps=0)).named_parameters()) for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    before = torch.get_rng_state()
    trained(directory, steps=0)
    assert torch.equal(torch.get_rng_state(), before)  # the process's own random numbers go on undisturbed


def test_a_critic_trains_adapters_of_its_own_and_its_head(directory: Path) -> None:
    learner = trained(directory, algorithm=LMPPO(LMPPOConfig(kl_coef=0.1)))
    critic = learner._models["critic"]
    given = dict(load_policy_model(directory, LMPolicyConfig()).base_model.named_parameters())  # type: ignore[union-attr,operator]
    kept = base(critic)
    assert all(torch.equal(kept[f"body.{name}"], value) for name, value in given.items())
    assert kept.keys() - {f"body.{name}" for name in given} == {"head.weight", "head.bias"}
    trained_names = {name for name, value in critic.named_parameters() if value.requires_grad}
    assert {"head.weight", "head.bias"} < trained_names
    assert all(".lora_" in name for name in trained_names - {"head.weight", "head.bias"})
    assert bool(critic.head.weight.ne(0).any())  # type: ignore[union-attr,operator]
    adapters = [dict(model.named_parameters()) for model in (policy_of(learner).model.base_model, critic.body)]  # type: ignore[union-attr]
    name = "layers.1.mlp.down_proj.lora_B.default.weight"
    assert not torch.equal(adapters[0][name], adapters[1][name])
    assert all(name.startswith("policy.") for name in published(learner))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "q_proj", ("layers.1.mlp.up_proj",)])
def test_targets_are_names_of_layers_or_the_ends_of_their_full_names(directory: Path, targets: Any) -> None:
    model = load_policy_model(directory, LMPolicyConfig())
    add_adapters(model, LoraConfig(targets=targets), seed=0)
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    ends = (targets,) if isinstance(targets, str) else targets
    linear = [name for name, _ in model.named_modules() if name.endswith("_proj")]
    assert adapted == {name for name in linear if name.endswith(ends)}
    assert {item.name for item in merged_parameters(model)} == {
        name for name, _ in load_policy_model(directory, LMPolicyConfig()).named_parameters()
    }


@pytest.mark.parametrize("targets", ["q_prj", ("q_proj", "lm_head"), "embed_tokens", "proj", (), "layers.0"])
def test_a_target_that_is_no_linear_layer_is_refused_in_one_line_that_names_those_there_are(
    directory: Path, targets: Any
) -> None:
    model = load_policy_model(directory, LMPolicyConfig())
    with pytest.raises(BadInput, match=r"lora\.targets: .* but q_proj, k_proj, v_proj, o_proj, gate_proj") as caught:
        add_adapters(model, LoraConfig(targets=targets), seed=0)
    assert "\n" not in str(caught.value)


def test_without_peft_the_extra_to_install_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=r"LoRA needs the package peft: pip install 'rollcall-rl\[lm-cpu\]'"):
        add_adapters(load_policy_model(directory, LMPolicyConfig()), LoraConfig(), seed=0)
