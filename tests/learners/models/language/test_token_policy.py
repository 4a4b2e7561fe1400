"""Language models with padded rows, against the same model run over one sequence at a time; and what holds no model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.maths.sampling import process_logits
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenCritic, TokenPolicy, autocast_dtype, load_policy_model
from tests.needs import require

require("transformers")

ALPHABET = "0123456789+="
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, top_k=12)
# (tokens, places of the sampled ones): a completion, a conversation of two turns, and one token alone.
SEQUENCES = [
    ([3, 4, 5, 6, 7, 8, 1], [3, 4, 5, 6]),
    ([9, 3, 3, 5, 1, 12, 13, 4, 1], [2, 3, 4, 7, 8]),
    ([14, 6], [1]),
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(
        folder,
        alphabet=ALPHABET,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=64,
        tie_word_embeddings=request.param,
        seed=3,
    )
    return folder


def load(directory: Path, **settings: Any) -> nn.Module:
    """A model whose distribution is far from uniform: what it says depends much on what it read."""
    model = load_policy_model(directory, LMPolicyConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def padded_rows(*, width: int, padding: int = 0) -> TokenRows:
    """The sequences, padded on the right with some token."""
    token_ids = torch.full((len(SEQUENCES), width), padding)
    predictors, targets = [], []
    for row, (tokens, sampled) in enumerate(SEQUENCES):
        token_ids[row, : len(tokens)] = torch.tensor(tokens)
        predictors += [row * width + place - 1 for place in sampled]
        targets += [tokens[place] for place in sampled]
    return TokenRows(token_ids, torch.tensor(predictors), torch.tensor(targets))


def alone(model: nn.Module, tokens: list[int], sampled: list[int], sampling: SamplingConfig) -> Tensor:
    """Log-probabilities of one sequence's sampled tokens, through the whole model's own forward pass."""
    logits = model(input_ids=torch.tensor([tokens])).logits[0]
    result = process_logits(
        logits=logits[[place - 1 for place in sampled]],
        targets=torch.tensor([tokens[place] for place in sampled]),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    return result.logprobs


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLING], ids=["whole", "nucleus"])
def test_log_probabilities_of_padded_rows_are_those_of_each_sequence_alone(
    directory: Path, sampling: SamplingConfig
) -> None:
    model = load(directory)
    with torch.no_grad():
        result = TokenPolicy(model, sampling)(padded_rows(width=12))
        expected = torch.cat([alone(model, tokens, sampled, sampling) for tokens, sampled in SEQUENCES])
    torch.testing.assert_close(result.logprobs, expected, atol=2e-5, rtol=1e-5)
    assert float(expected.std()) > 0.1  # it has an opinion


def test_what_stands_in_the_padding_does_not_matter(directory: Path) -> None:
    policy = TokenPolicy(load(directory), SAMPLING)
    with torch.no_grad():
        one, other = (policy(padded_rows(width=12, padding=padding)).logprobs for padding in (0, 7))
        tight = policy(padded_rows(width=9)).logprobs
    assert torch.equal(one, other)
    torch.testing.assert_close(one, tight, atol=2e-5, rtol=1e-5)


def test_the_gradient_is_that_of_the_sequences_alone(directory: Path) -> None:
    model = load(directory)
    parameters = list(model.parameters())
    together = TokenPolicy(model, SamplingConfig())(padded_rows(width=12)).logprobs.sum()
    apart = torch.cat([alone(model, tokens, sampled, SamplingConfig()) for tokens, sampled in SEQUENCES]).sum()
    one, other = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
        for loss in (together, apart)
    )
    assert float((one - other).norm()) < 1e-4 * float(other.norm())


def test_a_critic_knows_nothing_at_first_and_all_values_are_zero(directory: Path) -> None:
    values = TokenCritic(load(directory))(padded_rows(width=12))
    assert torch.equal(values, torch.zeros(10))


def test_a_value_is_a_linear_function_of_the_state_before_the_token(directory: Path) -> None:
    model = load(directory)
    critic = TokenCritic(model)
    with torch.no_grad():
        critic.head.weight.copy_(torch.linspace(-1.0, 1.0, 32)[None])
        critic.head.bias.fill_(0.5)
        values = critic(padded_rows(width=12))
        expected = [
            model(input_ids=torch.tensor([tokens[:place]]), output_hidden_states=True).hidden_states[-1][0, -1]
            @ critic.head.weight[0]
            + 0.5
            for tokens, sampled in SEQUENCES
            for place in sampled
        ]
    torch.testing.assert_close(values, torch.stack(expected), atol=2e-5, rtol=1e-4)


def test_a_critic_trains_its_body_and_its_head_but_no_head_over_words(directory: Path) -> None:
    critic = TokenCritic(load(directory))
    nn.init.ones_(critic.head.weight)
    critic(padded_rows(width=12)).sum().backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
    assert not [name for name, _ in critic.named_parameters() if "lm_head" in name]


def test_in_bfloat16_the_log_probabilities_are_near_and_the_weights_stay_float32(directory: Path) -> None:
    config = LMPolicyConfig(dtype="bfloat16")
    model = load_policy_model(directory, config)
    rows = padded_rows(width=12)
    precise = TokenPolicy(model, SamplingConfig(), autocast=autocast_dtype(LMPolicyConfig()))(rows).logprobs
    policy = TokenPolicy(model, SamplingConfig(), autocast=autocast_dtype(config))
    result = policy(rows).logprobs
    # bfloat16 has 8 bits: logits of size 1 are good to 0.004 each, after two layers to a few times that.
    assert 0 < float((result - precise).detach().abs().max()) < 0.03
    result.sum().backward()
    assert result.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters() if p.grad is not None}
    assert next(model.parameters()).dtype == torch.float32


def test_gradient_checkpointing_computes_the_same_gradient_twice_as_often(directory: Path) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = load(directory, gradient_checkpointing=checkpointing)
        count = _count_calls(model)
        TokenPolicy(model, SAMPLING)(padded_rows(width=12)).logprobs.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        calls.append(count[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert calls == [2, 4]  # two layers, whose activations were kept or computed again


def _count_calls(model: Any) -> list[int]:
    """[calls of the layers' first parts]."""
    count = [0]

    def called(*_: object) -> None:
        count[0] += 1

    for layer in model.base_model.layers:
        layer.input_layernorm.register_forward_hook(called)
    return count


# Directories that hold no model.


def test_a_directory_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no causal language model can be loaded from it") as caught:
        load_policy_model(tmp_path, LMPolicyConfig())
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_its_weights_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copy(directory / "config.json", tmp_path)
    with pytest.raises(BadInput, match="no causal language model"):
        load_policy_model(tmp_path, LMPolicyConfig())


def test_an_architecture_that_nobody_knows_is_refused(directory: Path, tmp_path: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "abacus"}))
    with pytest.raises(BadInput, match="no causal language model"):
        load_policy_model(tmp_path, LMPolicyConfig())


def test_weights_that_were_cut_off_are_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    whole = (directory / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="no causal language model"):
        load_policy_model(tmp_path, LMPolicyConfig())


def test_without_transformers_the_extra_to_install_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"pip install 'rollcall-rl\[lm-cpu\]'"):
        load_policy_model(directory, LMPolicyConfig())
