"""On-line DPO against its formula, prompt by prompt, and what it promises: parts and processes add up, prompts without
a pair say nothing, and a learner raises what was worth more."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.language.online_dpo import OnlineDPO
from rollcall.learners.algorithms.language.online_dpo_config import OnlineDPOConfig
from rollcall.learners.batches.sample_pairs import SamplePairs
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows
from rollcall.learners.maths.sampling import Processed
from tests.learners.algorithms.language import test_token_algorithms as tables
from tests.learners.experience import context_of
from tests.learners.token_experience import make_learner, samples, with_lora, write_model
from tests.needs import require

require("transformers")


class ModelItself(tables.TablePolicy):
    """One that refuses to say what it was sampled with."""

    def forward(self, rows: TokenRows, *, as_sampled: bool = True) -> Processed:
        assert not as_sampled, "a pair is judged under the model itself"
        return super().forward(rows)


def models_of(seed: int = 1) -> dict[str, nn.Module]:
    return {"policy": ModelItself(seed), "reference": ModelItself(seed + 2)}


def batch_of(rewards: list[float] = tables.REWARDS, groups: list[int] = tables.GROUPS) -> TokenBatch:
    batch = tables.make_batch(tables.TablePolicy(1))
    return replace(batch, rewards=torch.tensor(rewards), group=torch.tensor(groups))


def found(config: OnlineDPOConfig, models: dict[str, nn.Module], batch: TokenBatch, processes: int = 1) -> Any:
    """(loss, its gradient, metrics, what was noted)"""
    algorithm, context = OnlineDPO(config), context_of(models)
    prepared = algorithm.prepare(context, batch)
    parameters = list(models["policy"].parameters())
    loss, gradient = torch.zeros((), dtype=torch.float64), [torch.zeros_like(p) for p in parameters]
    metrics: dict[str, float] = {}
    for minibatch in algorithm.minibatches(context, prepared):
        for rank in range(processes):
            for part in minibatch.shards(rank, processes):
                own, of_part, _ = algorithm.loss(context, part)
                loss = loss + own.detach()
                for total, more in zip(gradient, torch.autograd.grad(own, parameters), strict=True):
                    total += more
                for name, value in of_part.items():
                    metrics[name] = metrics.get(name, 0.0) + float(value)
    return loss, gradient, metrics, {name: float(value) for name, value in context.noted.items()}


def log_ratio(models: dict[str, nn.Module], batch: TokenBatch, sample: int) -> Tensor:
    """log pi / ref of a whole sample, token by token."""
    rows, _ = batch.rows([sample])
    each = [models[name](rows, as_sampled=False).logprobs for name in ("policy", "reference")]
    return torch.stack([now - then.detach() for now, then in zip(*each, strict=True)]).sum()


def literal(config: OnlineDPOConfig, models: dict[str, nn.Module], batch: TokenBatch) -> Tensor:
    """A mean over prompts with a pair, of the mean over the prompt's pairs."""
    rewards, groups = batch.rewards.tolist(), batch.group.tolist()
    of_prompts = []
    for prompt in dict.fromkeys(groups):
        own = [i for i, group in enumerate(groups) if group == prompt]
        if config.pairs == "all":
            pairs = [(i, j) for i in own for j in own if rewards[i] > rewards[j]]
        else:
            best, worst = max(own, key=lambda i: rewards[i]), min(own, key=lambda i: rewards[i])
            pairs = [(best, worst)] if rewards[best] > rewards[worst] else []
        terms = []
        for better, worse in pairs:
            h = log_ratio(models, batch, better) - log_ratio(models, batch, worse)
            if config.loss == "ipo":
                terms.append((h - 1 / (2 * config.beta)) ** 2)
            else:
                e = config.label_smoothing
                sigmoid = 1 / (1 + (-config.beta * h).exp())
                terms.append(-(1 - e) * sigmoid.log() - e * (1 - sigmoid).log())
        if terms:
            of_prompts.append(torch.stack(terms).mean())
    return torch.stack(of_prompts).mean()


@pytest.mark.parametrize("budget", [1, 20, 10_000])
@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize(
    "settings",
    [{}, {"pairs": "all"}, {"loss": "ipo", "beta": 0.3}, {"label_smoothing": 0.1, "pairs": "all", "beta": 1.0}],
    ids=["best-worst", "all", "ipo", "smoothed"],
)
def test_the_loss_and_its_gradient_are_the_papers_however_the_batch_is_divided(
    settings: dict[str, Any], processes: int, budget: int
) -> None:
    models, batch = models_of(), batch_of()
    config = OnlineDPOConfig(**settings, token_budget=budget)
    expected = literal(config, models, batch)
    loss, gradient, _, _ = found(config, models, batch, processes)
    torch.testing.assert_close(loss, expected.detach().to(loss.dtype), rtol=1e-6, atol=1e-8)
    for mine, paper in zip(gradient, torch.autograd.grad(expected, list(models["policy"].parameters())), strict=True):
        torch.testing.assert_close(mine, paper, rtol=1e-5, atol=1e-8)


def test_at_the_reference_itself_the_loss_is_ln_2_and_the_gradient_raises_the_better_one() -> None:
    models, batch = models_of(), batch_of()
    models["reference"].load_state_dict(models["policy"].state_dict())
    loss, gradient, metrics, noted = found(OnlineDPOConfig(), models, batch)
    assert float(loss) == pytest.approx(math.log(2))
    assert metrics["implicit_margin"] == pytest.approx(0, abs=1e-7)
    assert metrics["kl_reference"] == pytest.approx(0, abs=1e-7)
    assert noted == {"pairs": 2.0, "tied_fraction": 0.0, "reward_gap": pytest.approx(0.875)}  # 1 - 0.25, 1 - 0
    before = [float(log_ratio(models, batch, i).detach()) for i in (0, 2)]
    with torch.no_grad():
        for parameter, own in zip(models["policy"].parameters(), gradient, strict=True):
            parameter.sub_(0.1 * own)
    after = [float(log_ratio(models, batch, i).detach()) for i in (0, 2)]
    assert after[0] - before[0] > after[1] - before[1]  # 0 was worth 1.0, and 2 a quarter


@pytest.mark.parametrize("rewards", [[1.0] * 6, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
def test_prompts_whose_samples_are_worth_the_same_say_nothing(rewards: list[float]) -> None:
    loss, gradient, metrics, noted = found(OnlineDPOConfig(), models_of(), batch_of(rewards))
    assert float(loss) == 0 and not any(part.any() for part in gradient) and not metrics
    assert noted == {"pairs": 0.0, "tied_fraction": 1.0, "reward_gap": 0.0}


def test_a_prompt_counts_the_same_however_many_pairs_it_has() -> None:
    pairs = SamplePairs.of(
        rewards=torch.tensor([3.0, 1.0, 2.0, 0.0, 1.0]), group=torch.tensor([0, 0, 0, 1, 1]), every=True
    )
    assert [(int(i), int(j)) for i, j in zip(pairs.better, pairs.worse, strict=True)] == [
        (0, 1),
        (0, 2),
        (2, 1),
        (4, 3),
    ]
    assert pairs.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert pairs.members == ((0, 1, 2), (4, 3))


@given(
    rewards=st.lists(st.integers(-2, 2), min_size=6, max_size=6),
    groups=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    every=st.booleans(),
)
def test_the_better_one_of_a_pair_was_worth_more_and_is_of_the_same_prompt(
    rewards: list[int], groups: list[int], every: bool
) -> None:
    pairs = SamplePairs.of(rewards=torch.tensor(rewards).float(), group=torch.tensor(groups), every=every)
    for better, worse in zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True):
        assert rewards[better] > rewards[worse] and groups[better] == groups[worse]
    apart = {g for g in groups if len({r for r, own in zip(rewards, groups, strict=True) if own == g}) > 1}
    assert len(pairs.members) == len(apart)
    assert float(pairs.weights.sum()) == pytest.approx(1.0 if apart else 0.0)


def test_a_reward_that_is_not_finite_makes_a_step_that_is_skipped() -> None:
    rewards = [math.nan, *tables.REWARDS[1:]]
    assert math.isnan(float(found(OnlineDPOConfig(), models_of(), batch_of(rewards))[0]))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.mark.parametrize("adapters", [False, True])
def test_a_learner_raises_what_was_worth_more(directory: Path, adapters: bool) -> None:
    policy = with_lora() if adapters else None
    learner = make_learner(directory, OnlineDPO(OnlineDPOConfig(pairs="all", token_budget=24)), policy=policy)
    batch = samples(directory, step=0)
    records = [learner.update(batch, StepOrder(step, 1, 0.0))[0].metrics for step in range(6)]
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["implicit_accuracy"] > 0.9
    assert records[0]["kl_reference"] == pytest.approx(0, abs=1e-6) and records[-1]["kl_reference"] > 1e-4


def test_a_batch_without_a_pair_is_a_step_that_changes_nothing(directory: Path) -> None:
    learner = make_learner(directory, OnlineDPO(OnlineDPOConfig()))
    before = learner.weights(epoch=1, version=0).checksum
    batch = [replace(item, rewards=np.ones_like(item.rewards)) for item in samples(directory, step=0)]
    report, weights = learner.update(batch, StepOrder(0, 1, 0.0))
    assert weights is not None and weights.checksum == before
    assert not report.skipped and report.metrics["tied_fraction"] == 1 and report.metrics["pairs"] == 0


def test_only_which_reward_is_more_is_asked() -> None:
    models, other = models_of(), [100 * reward - 7 for reward in tables.REWARDS]
    one, two = (found(OnlineDPOConfig(pairs="all"), models, batch_of(rewards)) for rewards in (tables.REWARDS, other))
    assert float(one[0]) == float(two[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "is of loss=dpo"),
        ({"pairs": "random"}, "pairs"),
        ({"epochs": 2}, "epochs"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        OnlineDPOConfig(**settings)
