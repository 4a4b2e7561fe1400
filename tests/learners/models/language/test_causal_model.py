"""Models of many architectures as the learner uses them, against their own forward pass over one sequence at a time:
what follows the output layer is kept, nothing drops out, and what cannot be taken apart is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.preferences.dpo import DPO
from rollcall.learners.algorithms.preferences.dpo_config import DPOConfig
from rollcall.learners.batches.preference_batch import collate_comparisons
from rollcall.learners.batches.prompt_sharing import PROMPT, SharedPrompts, attends
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.collators.language import LanguageCollator
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.lora import WithoutAdapters, add_adapters
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.learners.models.language.token_policy import TokenCritic, TokenPolicy, load_policy_model, sharing_size
from tests.learners.experience import context_of
from tests.needs import require_module

transformers = require_module("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 64}
GPT2: dict[str, Any] = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 16}

# What each does that a linear layer on the last hidden states does not, or how it comes to those.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("Llama", LLAMA),
    "softcap": ("Gemma2", {**LLAMA, "head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 4}),
    "divided": ("Granite", {**LLAMA, "logits_scaling": 8.0, "embedding_multiplier": 4.0}),
    "multiplied": ("Cohere", {**LLAMA, "logit_scale": 0.25}),
    "bias": ("Phi", LLAMA),
    "dropout": ("GPT2", GPT2),
    "projected": ("OPT", {**OPT, "do_layer_norm_before": False, "layerdrop": 0.5}),
    "alibi": ("Bloom", {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.3}),
    "experts": (
        "Mixtral",
        {**LLAMA, "num_local_experts": 4, "router_jitter_noise": 0.5, "output_router_logits": True},
    ),
}
DROPPING = ["dropout", "projected", "alibi", "experts"]
# (tokens, places of the sampled ones)
SEQUENCES = [
    ([3, 14, 15, 6, 27, 38, 39, 10, 21, 1], [4, 5, 6, 7, 8, 9]),
    ([33, 4, 5, 1, 12, 13, 4, 1], [2, 3, 6, 7]),
    ([24, 16], [1]),
]


def make_model(name: str) -> Any:
    """Random, with a distribution that is far from uniform."""
    kind, settings = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    return model


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name in ARCHITECTURES:
        make_model(name).save_pretrained(folder / name)
    return {name: folder / name for name in ARCHITECTURES}


def policy_of(directory: Path, **settings: Any) -> TokenPolicy:
    return TokenPolicy(load_policy_model(directory, LMPolicyConfig(**settings)), SamplingConfig())


def padded_rows() -> TokenRows:
    token_ids = torch.zeros(len(SEQUENCES), 12, dtype=torch.int64)
    predictors, targets = [], []
    for row, (tokens, sampled) in enumerate(SEQUENCES):
        token_ids[row, : len(tokens)] = torch.tensor(tokens)
        predictors += [row * 12 + place - 1 for place in sampled]
        targets += [tokens[place] for place in sampled]
    return TokenRows(token_ids, torch.tensor(predictors), torch.tensor(targets))


def alone(model: Any) -> Tensor:
    """Log-probabilities of the sampled tokens by the model's own forward pass."""
    found = []
    for tokens, sampled in SEQUENCES:
        said = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        found += [said[place - 1, tokens[place]] for place in sampled]
    return torch.stack(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_policy_says_and_its_gradient_are_those_of_the_models_own_forward_pass(
    directories: dict[str, Path], name: str
) -> None:
    policy = policy_of(directories[name])
    parameters = list(policy.parameters())
    own = transformers.AutoModelForCausalLM.from_pretrained(directories[name]).eval()
    expected = alone(own)
    found = policy(padded_rows()).logprobs
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert float(expected.detach().std()) > 0.1  # it has an opinion
    names = [key for key, _ in policy.model.named_parameters()]
    gradient = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected.sum(), list(own.parameters()), allow_unused=True)
    for key, one, other in zip(names, gradient, theirs, strict=True):
        if other is not None and float(other.norm()) > 1e-3:
            assert one is not None, key
            assert float((one - other).norm()) < 1e-3 * float(other.norm()), key


@pytest.mark.parametrize("name", ["divided", "multiplied", "bias", "dropout", "projected"])
def test_in_rows_that_share_a_prompt_it_is_the_same(directories: dict[str, Path], name: str) -> None:
    policy = policy_of(directories[name])
    assert sharing_size(policy.model) is not None
    prompt, answers = [3, 14, 15], [[6, 27, 1], [8, 1]]
    token_ids = torch.tensor([[*prompt, *answers[0], *answers[1]]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4]])
    owner = torch.tensor([[PROMPT] * 3 + [1] * 3 + [2] * 2])
    rows = TokenRows(
        token_ids,
        predictors=torch.tensor([2, 3, 4, 2, 6]),
        targets=torch.tensor([*answers[0], *answers[1]]),
        shared=SharedPrompts(positions, attends(owner)),
    )
    expected = []
    for answer in answers:
        said = policy.model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)  # type: ignore[operator]
        expected += [said[2 + place, token] for place, token in enumerate(answer)]
    with torch.no_grad():
        torch.testing.assert_close(policy(rows).logprobs, torch.stack(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["softcap", "divided", "multiplied"])
def test_in_bfloat16_too_what_follows_the_output_layer_is_kept(directories: dict[str, Path], name: str) -> None:
    model = load_policy_model(directories[name], LMPolicyConfig())
    found = TokenPolicy(model, SamplingConfig(), autocast=torch.bfloat16)(padded_rows()).logprobs
    assert 0 < float((found - alone(model)).detach().abs().mean()) < 0.05


def test_an_empty_part_says_nothing(directories: dict[str, Path]) -> None:
    """As a learner process with nothing to do passes it through all layers, for the sake of the others."""
    none = torch.zeros(0, dtype=torch.int64)
    policy = policy_of(directories["softcap"])
    assert policy(TokenRows(torch.zeros(1, 1, dtype=torch.int64), none, none)).logprobs.shape == (0,)


def test_the_model_is_left_as_it_was(directories: dict[str, Path]) -> None:
    policy = policy_of(directories["softcap"])
    before = alone(policy.model)
    policy(padded_rows())
    assert torch.equal(alone(policy.model), before)
    with pytest.raises(IndexError):  # a token that the vocabulary does not have
        policy(TokenRows(torch.tensor([[40]]), torch.tensor([0]), torch.tensor([0])))
    assert torch.equal(alone(policy.model), before)


# Dropout.


@pytest.mark.parametrize("name", DROPPING)
def test_nothing_drops_out_of_policy_reference_or_critic(directories: dict[str, Path], name: str) -> None:
    """Two passes say the same to the last bit, whatever mode somebody asks for; so do two models that were loaded."""
    rows = padded_rows()
    policy, reference = (policy_of(directories[name]).train() for _ in range(2))
    critic = TokenCritic(load_policy_model(directories[name], LMPolicyConfig())).train()
    nn.init.ones_(critic.head.weight)
    first = policy(rows).logprobs
    assert torch.equal(first, policy(rows).logprobs)
    assert torch.equal(first, reference(rows).logprobs)
    assert torch.equal(critic(rows), critic(rows))


@pytest.mark.parametrize("name", ["dropout", "projected"])
def test_with_gradient_checkpointing_nothing_drops_out_either_and_the_gradient_is_the_same(
    directories: dict[str, Path], name: str
) -> None:
    found = []
    for checkpointing in (False, True):
        policy = policy_of(directories[name], gradient_checkpointing=checkpointing).train()
        logprobs = policy(padded_rows()).logprobs
        found.append([logprobs.detach(), *torch.autograd.grad(logprobs.sum(), list(policy.parameters()))])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_adapters_of_a_model_with_dropout_change_nothing_at_first(directories: dict[str, Path]) -> None:
    policy = policy_of(directories["projected"])
    before = policy(padded_rows()).logprobs
    add_adapters(policy.model, LoraConfig(rank=2), seed=0)
    policy.train()
    assert torch.equal(policy(padded_rows()).logprobs, before)
    assert torch.equal(WithoutAdapters(policy)(padded_rows()).logprobs, before)


@pytest.mark.parametrize("name", DROPPING)
def test_the_first_loss_of_dpo_is_the_logarithm_of_2(directories: dict[str, Path], name: str) -> None:
    models = {"policy": policy_of(directories[name]), "reference": policy_of(directories[name]).requires_grad_(False)}

    def sequence(*response: int) -> TokenSequence:
        return TokenSequence(np.array([3, 4, *response], np.int32), 2)

    batch = collate_comparisons([RankedCandidates((sequence(5, 16, 1), sequence(27, 1)), (0, 1))])
    algorithm = DPO(DPOConfig(beta=1.0))
    context = context_of(models)
    (minibatch,) = algorithm.minibatches(context, algorithm.prepare(context, batch))
    (part,) = minibatch.shards(0, 1)
    loss = algorithm.loss(context, part).loss
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", DROPPING)
def test_at_lag_0_the_ratio_is_1_and_the_kl_to_the_reference_0(directories: dict[str, Path], name: str) -> None:
    models = {"policy": policy_of(directories[name]), "reference": policy_of(directories[name]).requires_grad_(False)}
    tokens = np.concatenate([np.array(tokens, np.int32) for tokens, _ in SEQUENCES])
    offsets = np.cumsum([0, *(len(tokens) for tokens, _ in SEQUENCES)])
    mask = np.zeros(len(tokens), bool)
    for begin, (_, sampled) in zip(offsets[:-1], SEQUENCES, strict=True):
        mask[[begin + place for place in sampled]] = True
    said = np.zeros(len(tokens), np.float32)
    with torch.no_grad():
        own = transformers.AutoModelForCausalLM.from_pretrained(directories[name]).eval()
        said[mask] = alone(own).numpy()  # as an engine does that has the weights
    trajectory = LMTrajectory(
        header=Header(ticket_id=0, attempt=1, epoch=0, policy_id="policy", actor_id=""),
        row=0,
        sample_offsets=offsets.astype(np.int64),
        token_ids=tokens,
        loss_mask=mask,
        tokens=SampledTokens(said),
        version_spans=np.array([(0, len(tokens), 0)], np.int64),
        rewards=np.array([1.0, 0.0, 0.5], np.float32),
        finish_reasons=("stop",) * len(SEQUENCES),
    )
    algorithm = GRPO(GRPO.Config(kl_coef=0.1))
    experience = LanguageCollator(token_budget=1000)
    batch = experience.collate([trajectory], torch.device("cpu"), step=0)
    context = context_of(models)
    (minibatch,) = algorithm.minibatches(context, algorithm.prepare(context, batch))
    metrics = [algorithm.loss(context, part).metrics for part in minibatch.shards(0, 1)]
    assert sum(float(part["mismatch"]) for part in metrics) < 1e-5
    assert sum(float(part["kl_reference"]) for part in metrics) == 0.0


# What cannot be taken apart.


def test_a_model_that_sees_what_comes_later_is_refused_by_its_name(tmp_path: Path) -> None:
    """BERT has an output layer over words, and looks at padding and at the tokens that it is to predict."""
    config = transformers.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=64)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="BertLMHeadModel: models of this architecture cannot be trained here") as caught:
        load_policy_model(tmp_path, LMPolicyConfig())
    assert "\n" not in str(caught.value)


def test_a_model_whose_forward_pass_does_something_before_the_body_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("nothing").save_pretrained(tmp_path)
    forward = transformers.LlamaForCausalLM.forward

    def shifted(self: Any, input_ids: Tensor, **more: Any) -> Any:
        return forward(self, input_ids=(input_ids + 1) % 40, **more)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", shifted)
    with pytest.raises(BadInput, match=r"LlamaForCausalLM: .* it says something else"):
        load_policy_model(tmp_path, LMPolicyConfig())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            "GPTNeo",
            {"vocab_size": 40, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
            | {"attention_types": [[["global", "local"], 1]], "window_size": 16},
        ),
        ("Lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]}),
    ],
)
def test_attention_over_a_window_by_any_name_shares_no_prompt(kind: str, settings: dict[str, Any]) -> None:
    """Rows of fewer tokens than the window would not show it."""
    config = getattr(transformers, f"{kind}Config")(**settings)
    assert sharing_size(transformers.AutoModelForCausalLM.from_config(config)) is None
