"""All samples of a forward pass in one row, without padding: who sees whom, and the losses and gradients of every kind
of batch, against padded rows; for models of many families, or without it where they cannot have it. FlexAttention is
not compiled here: tests marked gpu compile it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.sft import SFT
from rollcall.learners.algorithms.language.sft_config import SFTConfig
from rollcall.learners.algorithms.preferences.dpo import DPO
from rollcall.learners.algorithms.preferences.dpo_config import DPOConfig
from rollcall.learners.batches.placement import PACKED_MULTIPLE, Layout, PackedSamples
from rollcall.learners.batches.preference_batch import collate_comparisons
from rollcall.learners.batches.prompt_sharing import Sharing
from rollcall.learners.batches.token_batch import TokenBatch, collate_samples
from rollcall.learners.collators.demonstrations import DemonstrationCollator
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.models.language import packed_attention
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.packed_attention import block_mask, works_on
from rollcall.learners.models.language.token_policy import TokenPolicy, autocast_dtype, layout_of, load_policy_model
from tests.learners.batches.test_prompt_sharing import experience, own_tokens, unhurried
from tests.learners.experience import context_of
from tests.needs import require_module

BUDGET = 100
PACKED, SHARED = Layout(packed=True), Layout(Sharing(None, BUDGET), packed=True)
layouts = st.sampled_from([PACKED, SHARED])


def collated(seed: int, layout: Layout, *, prompts: int = 5) -> TokenBatch:
    return collate_samples(experience(seed, prompts=prompts), step=5, layout=layout)


def seen(samples: PackedSamples, window: int | None = None) -> Tensor:
    """bool [T, T]: as the kernel finds it: whole blocks without asking, others by asking, and nothing else."""
    mask = block_mask(samples, window)
    place = torch.arange(len(samples.begin))
    asked = mask.mask_mod(place, place, place[:, None], place)
    whole, partly = (
        _blocks(num, indices).repeat_interleave(PACKED_MULTIPLE, 0).repeat_interleave(PACKED_MULTIPLE, 1)
        for num, indices in (
            (mask.full_kv_num_blocks, mask.full_kv_indices),
            (mask.kv_num_blocks, mask.kv_indices),
        )
    )
    assert not (whole & ~asked).any()
    return whole | (partly & asked)


def _blocks(num: Tensor | None, indices: Tensor | None) -> Tensor:
    assert num is not None
    assert indices is not None
    found = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row in range(len(found)):
        found[row, indices[0, 0, row, : int(num[0, 0, row])].long()] = True
    return found


# Who sees whom.


@unhurried
@given(st.integers(0, 10_000), layouts, st.sampled_from([None, 1, 5]), st.randoms(use_true_random=False))
def test_what_predicts_a_token_sees_exactly_what_stands_before_it_in_its_sample(
    seed: int, layout: Layout, window: int | None, rng: random.Random
) -> None:
    batch = collated(seed, layout, prompts=10)
    chosen = rng.sample(range(batch.num_samples), rng.randint(1, batch.num_samples))
    rows, indices = batch.rows(chosen)
    assert rows.packed is not None
    visible = seen(rows.packed, window)
    for predictor, target, flat in zip(rows.predictors.tolist(), rows.targets.tolist(), indices.tolist(), strict=True):
        i = int(batch.sequence[flat])
        place = int(batch.sampled[flat] - batch.offsets[i])
        first = 0 if window is None else max(0, place - window)
        found = visible[predictor]
        assert rows.packed.positions[0, found].tolist() == list(range(first, place))
        assert rows.token_ids[0, found].tolist() == own_tokens(batch, i)[first:place]
        assert target == own_tokens(batch, i)[place]
    assert visible.any(1).all()  # padding too: nothing is divided by nothing


@unhurried
@given(st.integers(0, 10_000), layouts, st.integers(1, 300))
def test_parts_are_filled_with_whole_rows_to_the_last_token(seed: int, layout: Layout, budget: int) -> None:
    batch = collated(seed, layout)
    parts = batch.micro_batches(range(batch.num_samples), budget)
    assert sorted(i for part in parts for i in part) == list(range(batch.num_samples))
    used = []
    for part in parts:
        rows = batch.rows(part)[0]
        assert rows.packed is not None
        used.append(int((rows.packed.begin != torch.arange(len(rows.packed.begin))).sum()))
        together = {int(batch.row[i]) for i in part}
        assert len(together) == 1 or used[-1] <= budget
        tokens = rows.token_ids.numel()
        assert tokens % PACKED_MULTIPLE == 0
        assert batch.padding_fraction([part]) <= max(PACKED_MULTIPLE, 2 * PACKED_MULTIPLE) / tokens
    assert len({int(batch.row[i]) for part in parts for i in part}) == sum(
        len({int(batch.row[i]) for i in part}) for part in parts
    )


def test_a_prompt_is_shared_wherever_there_is_one() -> None:
    shared, apart = collated(11, SHARED), collated(11, PACKED)
    sizes = [batch._row_sizes(batch._rows_of(range(batch.num_samples))) for batch in (shared, apart)]
    prompts: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, (begin, end) in enumerate(zip(apart.offsets[:-1].tolist(), apart.offsets[1:].tolist(), strict=True)):
        first = int(apart.sampled[apart.sequence == i][0])
        prompts.setdefault((int(apart.group[i]), tuple(apart.token_ids[begin:first].tolist())), []).append(
            first - begin
        )
        assert end > first
    assert sum(sizes[1]) - sum(sizes[0]) == sum([sum(own[1:]) for own in prompts.values()]) > 0


# With FlexAttention itself, forwards: it has no gradient on CPUs.


def random_inputs(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, length, 16, generator=generator) for heads in (6, 2, 2))
    return query, key, value


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_computes_what_the_definition_says(window: int | None, softcap: float | None) -> None:
    rows, _ = (batch := collated(11, SHARED, prompts=30)).rows(range(batch.num_samples))
    assert rows.packed is not None
    mask, inputs = block_mask(rows.packed, window), random_inputs(rows.token_ids.shape[1])
    torch._dynamo.reset()
    flex = torch.compile(packed_attention._flex, fullgraph=True, backend="eager")
    found = flex(*inputs, mask, 0.3, softcap)
    torch.testing.assert_close(found, packed_attention._plain(*inputs, mask, 0.3, softcap), atol=2e-6, rtol=1e-5)


def test_two_lengths_compile_it_for_all_lengths_and_windows() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    flex = torch.compile(packed_attention._flex, fullgraph=True, backend=counter)
    counts = []
    for length in (256, 384, 1024, 640, 128 * 9):
        for window in (None, 5):
            begin = torch.arange(length) // 100 * 100
            samples = PackedSamples((torch.arange(length) - begin)[None], begin.clone(), begin.clone(), begin)
            flex(*random_inputs(length), block_mask(samples, window), 0.25, None)
            counts.append(counter.frame_count)
    assert counts == [1, 1, *[2] * 8]


def test_the_trial_of_a_kernel_sees_another_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert works_on(cpu, torch.bfloat16, 4, 2, 16)
    assert works_on(cpu, torch.float32, 6, 3, 20)
    own = packed_attention.attend
    monkeypatch.setattr(packed_attention, "attend", lambda *given, scaling: own(*given, scaling=0.9 * scaling))
    assert not works_on(cpu, torch.bfloat16, 4, 2, 16)


# With models.

transformers = require_module("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 64}
BOTH = ["sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {**LLAMA, "head_dim": 16, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("GPT2", {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "OPT": ("OPT", {**SIZES, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 16}),
    "Llama": ("Llama", LLAMA),
    "Qwen2": ("Qwen2", LLAMA),
    "Qwen2 with windows": (
        "Qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", {**LLAMA, "head_dim": 16}),
    "Gemma 2": ("Gemma2", {**LLAMA, "head_dim": 16, "sliding_window": 4, "attn_logit_softcapping": None}),
    "Gemma 3": ("Gemma3Text", {**LLAMA, "head_dim": 16, "sliding_window": 4, "layer_types": BOTH}),
    "Mistral": ("Mistral", {**LLAMA, "sliding_window": 4}),
    "Phi-3": ("Phi3", {**LLAMA, "sliding_window": 4}),
    "Qwen3-MoE": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32}),
}
WITHOUT: dict[str, tuple[str, dict[str, Any]]] = {
    "Bloom": ("Bloom", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "gpt-oss": ("GptOss", {**EXPERTS, "num_local_experts": 4, "sliding_window": 4}),
    "Mamba": ("Mamba", {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, (kind, settings) in (FAMILIES | WITHOUT).items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)  # what it says depends much on what it read
        model.save_pretrained(folder / name)
    return {name: folder / name for name in FAMILIES | WITHOUT}


def policy_of(directory: Path, **settings: Any) -> TokenPolicy:
    config = LMPolicyConfig(**settings)
    return TokenPolicy(load_policy_model(directory, config), SamplingConfig(), autocast=autocast_dtype(config))


def grpo(policy: TokenPolicy, layout: Layout) -> tuple[Any, Any]:
    batch = collated(11, layout, prompts=8)
    said = -2.0 - 0.3 * torch.arange(batch.num_sampled).cos()
    rewards = torch.arange(batch.num_samples).sin()
    return GRPO(GRPO.Config(token_budget=BUDGET)), replace(batch, rewards=rewards, tokens=SampledTokens(said))


def sft(policy: TokenPolicy, layout: Layout) -> tuple[Any, Any]:
    batch = collated(12, Layout())
    items = [
        Demonstration(np.array(own_tokens(batch, i), np.int32), np.arange(len(own_tokens(batch, i))) > 0)
        for i in range(batch.num_samples)
    ]
    collator = DemonstrationCollator(layout)
    return SFT(SFTConfig(token_budget=BUDGET)), collator.collate(items, torch.device("cpu"), step=0)


def dpo(policy: TokenPolicy, layout: Layout) -> tuple[Any, Any]:
    rng = random.Random(3)

    def tokens(least: int) -> list[int]:
        return [rng.randrange(50) for _ in range(rng.randint(least, 9))]

    items = []
    for _ in range(20):
        prompt = tokens(1)
        both = [TokenSequence(np.array(prompt + tokens(1), np.int32), len(prompt)) for _ in range(2)]
        items.append(RankedCandidates(tuple(both), (0, 1)))
    return DPO(DPOConfig(beta=0.3, budget=BUDGET)), collate_comparisons(items, layout=layout)


def loss_and_gradient(policy: TokenPolicy, kind: Any, layout: Layout) -> tuple[Tensor, Tensor, int]:
    """Of all micro-batches, and how many those are."""
    algorithm, batch = kind(policy, layout)
    reference = TokenPolicy(policy.model, SamplingConfig(temperature=0.7))
    context = context_of({"policy": policy, "reference": reference})
    (minibatch,) = algorithm.minibatches(context, algorithm.prepare(context, batch))
    parameters = list(policy.parameters())
    losses, total = [], torch.zeros(sum(parameter.numel() for parameter in parameters))
    for part in minibatch.shards(0, 1):
        losses.append(algorithm.loss(context, part).loss)
        gradients = torch.autograd.grad(losses[-1], parameters, allow_unused=True)
        total += torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, gradients, strict=True)]
        )
    return torch.stack(losses).sum().detach(), total, len(losses)


@pytest.mark.parametrize("kind", [grpo, sft, dpo])
@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_those_of_padded_rows(directories: dict[str, Path], name: str, kind: Any) -> None:
    plain, packed = (policy_of(directories[name], attention=attention) for attention in ("sdpa", "flex"))
    loss, expected, parts = loss_and_gradient(plain, kind, layout_of(plain.model, share_prompts=False))
    assert float(expected.norm()) > 0.01
    for share_prompts in (False, True):
        layout = layout_of(packed.model, share_prompts=share_prompts, token_budget=BUDGET)
        assert layout == (SHARED if share_prompts else PACKED)
        found, gradient, own_parts = loss_and_gradient(packed, kind, layout)
        torch.testing.assert_close(found, loss, atol=1e-5, rtol=1e-5)
        assert float((gradient - expected).norm()) < 1e-4 * float(expected.norm())
        assert 1 < own_parts <= parts


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma 3", "Mistral"])
def test_in_bfloat16_too(directories: dict[str, Path], name: str) -> None:
    plain, packed = (policy_of(directories[name], attention=kind, dtype="bfloat16") for kind in ("sdpa", "flex"))
    loss, expected, _ = loss_and_gradient(plain, sft, Layout())
    found, gradient, _ = loss_and_gradient(packed, sft, SHARED)
    torch.testing.assert_close(found, loss, atol=1e-3, rtol=1e-3)
    assert float((gradient - expected).norm()) < 0.05 * float(expected.norm())


@pytest.mark.parametrize("name", WITHOUT)
def test_models_that_cannot_have_it_keep_what_they_have(
    directories: dict[str, Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_policy_model(directories[name], LMPolicyConfig(attention="flex"))
    assert layout_of(model, share_prompts=False) == Layout()
    (record,) = [record for record in caplog.records if record.name == "rollcall"]
    assert type(model).__name__ in record.message


def test_where_nothing_is_said_a_cpu_has_padded_rows(directories: dict[str, Path]) -> None:
    model = load_policy_model(directories["Llama"], LMPolicyConfig())
    assert not layout_of(model).packed
