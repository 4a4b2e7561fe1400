"""Several samples of one prompt in one row, against a row for each."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.algorithms.language.cispo import CISPO
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.gspo import GSPO
from rollcall.learners.algorithms.language.reinforce_pp import ReinforcePP
from rollcall.learners.algorithms.language.rloo import RLOO
from rollcall.learners.batches.passes import MAX_PADDING
from rollcall.learners.batches.placement import Layout
from rollcall.learners.batches.prompt_sharing import LEAST_SAVING, Sharing, plan_sharing
from rollcall.learners.batches.token_batch import TokenBatch, collate_samples
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model, sharing_size
from tests.learners.experience import context_of
from tests.needs import require

HIDDEN_SIZE = 64
SHARING = Sharing(HIDDEN_SIZE, max_row=200)
unhurried = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def cost(width: int) -> int:
    return width * (6 * HIDDEN_SIZE + width)


@given(st.integers(1, 60), st.lists(st.integers(1, 80), min_size=1, max_size=12))
def test_samples_share_a_row_only_where_that_is_cheaper_and_the_row_is_not_too_long(
    prompt: int, answers: list[int]
) -> None:
    rows = plan_sharing(prompt, [prompt + n for n in answers], SHARING)
    assert rows == sorted(rows)
    assert set(rows) == set(range(rows[-1] + 1))
    for row in set(rows):
        own = [n for n, number in zip(answers, rows, strict=True) if number == row]
        if len(own) > 1:
            assert prompt + sum(own) <= SHARING.max_row
            others = sum(cost(prompt + n) for n in own[1:])
            assert cost(prompt + sum(own)) <= cost(prompt + own[0]) + (1 - LEAST_SAVING) * others


def test_short_answers_to_a_prompt_share_it_and_long_ones_do_not() -> None:
    assert plan_sharing(8, [11] * 8, SHARING) == [0] * 8
    assert plan_sharing(2, [102] * 4, SHARING) == [0, 1, 2, 3]


def experience(seed: int, *, prompts: int = 3, vocab: int = 12) -> list[LMTrajectory]:
    """Groups of short samples; in some a tool speaks between two turns, some begin with other prompts, and what was not
    sampled by anyone is in some of them alike."""
    rng = random.Random(seed)
    made = []
    for number in range(prompts):
        prompt = [rng.randrange(vocab) for _ in range(rng.randint(1, 20))]
        tokens, mask, offsets = [], [], [0]
        for _ in range(rng.randint(1, 6)):
            opening = prompt if rng.random() < 0.8 else [rng.randrange(vocab) for _ in range(rng.randint(1, 5))]
            tokens += opening
            mask += [False] * len(opening)
            for said in [True, *([False, True] if rng.random() < 0.3 else [])]:
                length = rng.randint(1, 4)
                tokens += [rng.randrange(vocab) for _ in range(length)]
                mask += [said] * length
            offsets.append(len(tokens))
        spans = np.array([(0, len(tokens), 4)], np.int64)
        n = len(offsets) - 1
        made.append(
            LMTrajectory(
                header=Header(ticket_id=number, attempt=1, epoch=0, policy_id="policy", actor_id="lm-0"),
                row=number,
                sample_offsets=np.array(offsets, np.int64),
                token_ids=np.array(tokens, np.int32),
                loss_mask=np.array(mask, bool),
                tokens=SampledTokens(np.zeros(len(tokens), np.float32)),
                version_spans=spans,
                rewards=np.zeros(n, np.float32),
                finish_reasons=("stop",) * n,
            )
        )
    return made


def collated(seed: int, *, sharing: Sharing | None = SHARING) -> TokenBatch:
    return collate_samples(experience(seed), step=5, layout=Layout(sharing))


def own_tokens(batch: TokenBatch, i: int) -> list[int]:
    begin, end = batch.offsets[i : i + 2].tolist()
    return batch.token_ids[begin:end].tolist()


@unhurried
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_what_predicts_a_token_sees_exactly_what_stands_before_it_in_its_sample(seed: int, rng: random.Random) -> None:
    batch = collated(seed)
    chosen = rng.sample(range(batch.num_samples), rng.randint(1, batch.num_samples))
    rows, indices = batch.rows(chosen)
    width = rows.token_ids.shape[1]
    for predictor, target, flat in zip(rows.predictors.tolist(), rows.targets.tolist(), indices.tolist(), strict=True):
        i = int(batch.sequence[flat])
        place = int(batch.sampled[flat] - batch.offsets[i])
        row, t = divmod(predictor, width)
        if rows.shared is None:
            seen, positions = rows.token_ids[row, : t + 1], torch.arange(t + 1)
        else:
            visible = rows.shared.attends[row, 0, t]
            seen, positions = rows.token_ids[row, visible], rows.shared.positions[row, visible]
        assert positions.tolist() == list(range(place))
        assert seen.tolist() == own_tokens(batch, i)[:place]
        assert target == own_tokens(batch, i)[place]


@unhurried
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_parts_hold_rows_whole_with_little_padding(seed: int, budget: int) -> None:
    batch = collated(seed)
    parts = batch.micro_batches(range(batch.num_samples), budget)
    assert sorted(i for part in parts for i in part) == list(range(batch.num_samples))
    of_part = [{int(batch.row[i]) for i in part} for part in parts]
    assert sum(map(len, of_part)) == len(set(batch.row.tolist()))
    for part, rows in zip(parts, of_part, strict=True):
        token_ids = batch.rows(part)[0].token_ids
        assert len(rows) == len(token_ids)
        assert len(rows) == 1 or token_ids.numel() <= budget
        assert batch.padding_fraction([part]) <= MAX_PADDING + 1e-9


def test_without_sharing_every_sample_has_its_row() -> None:
    batch = collated(3, sharing=None)
    rows, _ = batch.rows(range(batch.num_samples))
    assert rows.shared is None
    assert len(rows.token_ids) == batch.num_samples


# With models.

require("transformers")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> TokenPolicy:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(
        folder,
        alphabet="0123456789",
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=64,
        seed=3,
    )
    model = load_policy_model(folder, LMPolicyConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # what it says depends much on what it read
    return TokenPolicy(model, SamplingConfig(temperature=0.7))


def gradient(policy: TokenPolicy, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    rows, indices = batch.rows(range(batch.num_samples))
    logprobs = policy(rows).logprobs
    parts = torch.autograd.grad(logprobs.sum(), list(policy.parameters()))
    return logprobs.detach()[indices.argsort()], torch.cat([part.flatten() for part in parts])


def test_log_probabilities_and_gradients_are_those_of_rows_apart(policy: TokenPolicy) -> None:
    shared, apart = collated(11), collated(11, sharing=None)
    assert len(shared.rows(range(shared.num_samples))[0].token_ids) < shared.num_samples
    (one, up), (other, expected) = gradient(policy, shared), gradient(policy, apart)
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    assert float(other.std()) > 0.1
    assert float((up - expected).norm()) < 1e-4 * float(expected.norm())


def tiny(kind: str, **more: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(vocab_size=16, **(sizes | more))
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_models_that_take_positions_and_a_mask_share_prompts(kind: str) -> None:
    assert sharing_size(tiny(kind, **({"num_key_value_heads": 1} if kind == "Llama" else {}))) == 32


@pytest.mark.parametrize(
    ("kind", "more"), [("Bloom", {}), ("Mistral", {"sliding_window": 8, "num_key_value_heads": 1}), ("Mamba", {})]
)
def test_models_that_cannot_do_not(kind: str, more: dict[str, Any]) -> None:
    """Bloom takes its positions from the row, Mistral's window would cut the prompt off, Mamba has no mask."""
    model = tiny(kind, **more)
    assert sharing_size(model) is None
    assert model.training


def test_the_models_of_the_recipes_share_prompts(tmp_path: Path, policy: TokenPolicy) -> None:
    assert sharing_size(policy.model) == 64


@pytest.mark.parametrize("kind", [GRPO, RLOO, ReinforcePP, GSPO, CISPO])
def test_every_algorithms_update_is_that_of_rows_apart(policy: TokenPolicy, kind: Any) -> None:
    """Whether a micro-batch's samples share rows is nothing that a loss, or a correction for lag, may depend on."""
    algorithm = kind(kind.Config(correction={"decoupled": True, "truncate": 1.2}, token_budget=150, kl_coef=0.0))
    updates = []
    for sharing in (SHARING, None):
        batch = collated(11, sharing=sharing)
        rewards = torch.arange(batch.num_samples).sin()
        # Near what the policy says, so that ratios are not all cut off.
        said = torch.zeros(batch.num_sampled)
        rows, indices = batch.rows(range(batch.num_samples))
        said[indices] = policy(rows).logprobs.detach()
        tokens = SampledTokens(said + 0.1 * torch.arange(len(said)).cos())
        batch = replace(batch, rewards=rewards, tokens=tokens)
        context = context_of({"policy": policy})
        prepared = algorithm.prepare(context, batch)
        total = torch.zeros(sum(p.numel() for p in policy.parameters()))
        for minibatch in algorithm.minibatches(context, prepared):
            for part in minibatch.shards(0, 1):
                loss = algorithm.loss(context, part).loss
                total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])
        updates.append(total)
    shared, apart = updates
    assert float((shared - apart).norm()) < 1e-3 * float(apart.norm())
