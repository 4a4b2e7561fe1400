"""The six language algorithms against their papers' formulas as loops over sequences and tokens, and what they all
promise: parts add up to the whole, on-policy data is not clipped, corrections reduce to nothing where nothing lags."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.algorithms.language.cispo import CISPO
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.gspo import GSPO
from rollcall.learners.algorithms.language.lm_ppo import LMPPO
from rollcall.learners.algorithms.language.reinforce_pp import ReinforcePP
from rollcall.learners.algorithms.language.rloo import RLOO
from rollcall.learners.algorithms.language.supervised_term import MixedMinibatch
from rollcall.learners.algorithms.language.token_algorithm import LMMinibatch
from rollcall.learners.algorithms.language.token_settings import LagCorrection
from rollcall.learners.batches import token_batch
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows
from rollcall.learners.maths.sampling import Processed
from rollcall.learners.maths.trust_region import proportional_coefficient
from tests.learners.experience import context_of

VOCABULARY, WIDTH = 5, 8
PROMPTS = [2, 1, 3, 1, 2, 2]  # tokens of each sample's prompt
LENGTHS = [3, 5, 1, 4, 2, 3]
GROUPS = [0, 1, 0, 1, 0, 1]
REWARDS = [1.0, 0.0, 0.25, 1.0, 0.5, 0.0]
ALL = [GRPO, RLOO, ReinforcePP, LMPPO, GSPO, CISPO]
DECOUPLED: Any = {"decoupled": True, "truncate": 1.2}


class TablePolicy(nn.Module):
    """Logits of the next token by position and last token. Tokens of number `outside` lie outside its nucleus."""

    def __init__(self, seed: int, outside: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(WIDTH, VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64))
        self.outside = outside

    def forward(self, rows: TokenRows) -> Processed:
        last = rows.token_ids.flatten()[rows.predictors]
        logprobs = self.table[rows.predictors % rows.token_ids.shape[1], last].log_softmax(-1)
        entropy = torch.special.entr(logprobs.detach().exp()).sum(-1)
        outside = torch.zeros_like(rows.targets, dtype=torch.bool)
        if self.outside is not None:
            outside = rows.targets == self.outside
        return Processed(logprobs.gather(-1, rows.targets.unsqueeze(-1)).squeeze(-1), entropy, outside)

    def moved(self, scale: float, seed: int = 9) -> TablePolicy:
        """Another policy, near this one."""
        other = TablePolicy(seed)
        with torch.no_grad():
            other.table.mul_(scale).add_(self.table)
        other.outside = self.outside
        return other


class TableCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.table = nn.Parameter(torch.randn(WIDTH, VOCABULARY, generator=generator))

    def forward(self, rows: TokenRows) -> Tensor:
        return self.table[rows.predictors % rows.token_ids.shape[1], rows.token_ids.flatten()[rows.predictors]]


def make_batch(behaviour: TablePolicy, lengths: list[int] = LENGTHS) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(PROMPTS) + torch.tensor(lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    begins, ends = offsets[:-1].tolist(), offsets[1:].tolist()
    batch = TokenBatch(
        token_ids=torch.randint(VOCABULARY, (int(sizes.sum()),), generator=generator),
        offsets=offsets,
        sampled=torch.cat([torch.arange(b + p, e) for b, e, p in zip(begins, ends, PROMPTS, strict=True)]),
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        lengths=torch.tensor(lengths),
        tokens=SampledTokens(torch.zeros(sum(lengths))),
        policy_lags=torch.zeros(sum(lengths), dtype=torch.int64),
        group=torch.tensor(GROUPS),
        rewards=torch.tensor(REWARDS),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        row=torch.arange(len(lengths)),
        shared_prompt=torch.zeros(len(lengths), dtype=torch.int64),
    )
    return replace(batch, tokens=SampledTokens(passes(batch)(lambda rows: behaviour(rows).logprobs)))


def passes(batch: TokenBatch) -> Callable[[Callable[[TokenRows], Tensor]], Tensor]:
    return partial(token_batch.each_token, batch, token_budget=16, rank=0, num_processes=1)


def make_models(outside: int | None = None) -> tuple[dict[str, nn.Module], TablePolicy]:
    policy = TablePolicy(1, outside)
    return {"policy": policy, "reference": policy.moved(0.3, seed=3), "critic": TableCritic()}, policy


def minibatches_of(algorithm: Any, models: dict[str, nn.Module], batch: TokenBatch) -> list[LMMinibatch]:
    context = context_of(models)
    return list(algorithm.minibatches(context, algorithm.prepare(context, batch)))


def summed_gradient(
    algorithm: Any, models: dict[str, nn.Module], *minibatches: LMMinibatch | MixedMinibatch, num_processes: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of policy and critic as one vector, and the metrics with the loss, summed over parts and processes."""
    (minibatch,) = minibatches
    parameters = [*models["policy"].parameters(), *models["critic"].parameters()]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    metrics: dict[str, Tensor] = {}
    for rank in range(num_processes):
        for part in minibatch.shards(rank, num_processes):
            loss, of_part, _ = algorithm.loss(context_of(models), part)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            total += torch.cat([g.flatten().double() for g in gradients])
            for name, value in {**of_part, "loss": loss.detach()}.items():
                metrics[name] = metrics.get(name, torch.zeros(())) + value
    return total, metrics


class Case:
    """What a paper's formula speaks of, one sequence and one token at a time."""

    def __init__(self, models: dict[str, nn.Module], batch: TokenBatch) -> None:
        rows, _ = batch.rows(range(batch.num_samples))
        counts = batch.lengths.tolist()
        self.batch, self.counts = batch, counts
        self.now = models["policy"](rows).logprobs.split(counts)
        self.reference = models["reference"](rows).logprobs.detach().split(counts)
        self.values = models["critic"](rows).split(counts)
        self.behaviour = batch.tokens.behaviour_logprobs.double().split(counts)
        self.rewards, self.groups = batch.rewards.tolist(), batch.group.tolist()
        self.tokens = [(i, t) for i, count in enumerate(counts) for t in range(count)]

    def peers(self, i: int, rewards: list[float] | None = None) -> list[float]:
        rewards = self.rewards if rewards is None else rewards
        return [r for r, group in zip(rewards, self.groups, strict=True) if group == self.groups[i]]

    def group_advantage(self, i: int) -> float:
        peers = self.peers(i)
        return (self.rewards[i] - statistics.mean(peers)) / (statistics.stdev(peers) + 1e-6)

    def k1(self, i: int, t: int) -> float:
        return float(self.now[i][t].detach() - self.reference[i][t])

    def whitened(self, advantages: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        mean, deviation = statistics.mean(advantages.values()), statistics.pstdev(advantages.values())
        return {token: (a - mean) / (deviation + 1e-8) for token, a in advantages.items()}

    def clipped(self, ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
        bound = min(max(ratio.item(), 1 - low), 1 + high) * advantage
        return -ratio * advantage if ratio.item() * advantage <= bound else torch.tensor(-bound, dtype=ratio.dtype)

    def token_mean(self, advantage: Callable[[int, int], float], low: float, high: float) -> Tensor:
        """The clipped surrogate of every token, averaged over all of them."""
        terms = [
            self.clipped((self.now[i][t] - self.behaviour[i][t]).exp(), advantage(i, t), low, high)
            for i, t in self.tokens
        ]
        return torch.stack(terms).sum() / len(self.tokens)


def literal_grpo(case: Case) -> Tensor:
    loss = case.token_mean(lambda i, t: case.group_advantage(i), 0.2, 0.28)
    log_r = [case.reference[i][t] - case.now[i][t] for i, t in case.tokens]
    return loss + 0.1 * torch.stack([x.exp() - x - 1 for x in log_r]).sum() / len(case.tokens)


def literal_rloo(case: Case) -> Tensor:
    rewards = [r - 0.1 * sum(case.k1(i, t) for t in range(case.counts[i])) for i, r in enumerate(case.rewards)]

    def advantage(i: int, t: int) -> float:
        others = [r for j, r in enumerate(rewards) if case.groups[j] == case.groups[i] and j != i]
        return rewards[i] - statistics.mean(others)

    return case.token_mean(advantage, 0.2, 0.2)


def literal_reinforce_pp(case: Case) -> Tensor:
    to_go = {
        (i, t): case.rewards[i] - 0.1 * sum(case.k1(i, k) for k in range(t, case.counts[i])) for i, t in case.tokens
    }
    white = case.whitened(to_go)
    return case.token_mean(lambda i, t: white[i, t], 0.2, 0.2)


def literal_reinforce_pp_baseline(case: Case) -> Tensor:
    """The KL is a loss of its own, by k2: half the squared log-ratio to the reference."""
    white = case.whitened({(i, t): case.rewards[i] - statistics.mean(case.peers(i)) for i, t in case.tokens})
    loss = case.token_mean(lambda i, t: white[i, t], 0.2, 0.2)
    k2 = [0.5 * (case.now[i][t] - case.reference[i][t]) ** 2 for i, t in case.tokens]
    return loss + 0.1 * torch.stack(k2).sum() / len(case.tokens)


def literal_lm_ppo(case: Case) -> Tensor:
    advantages, value_terms = {}, []
    for i, count in enumerate(case.counts):
        values = case.values[i].tolist()
        rewards = [-0.1 * case.k1(i, t) + (case.rewards[i] if t == count - 1 else 0.0) for t in range(count)]
        deltas = [r + after - v for r, v, after in zip(rewards, values, [*values[1:], 0.0], strict=True)]
        for t in range(count):
            advantages[i, t] = sum(0.95**k * deltas[t + k] for k in range(count - t))
            value_terms.append(0.5 * (case.values[i][t] - (advantages[i, t] + values[t])) ** 2)
    white = case.whitened(advantages)
    policy_loss = case.token_mean(lambda i, t: white[i, t], 0.2, 0.2)
    return policy_loss + 0.5 * torch.stack(value_terms).sum() / len(case.tokens)


def literal_gspo(case: Case) -> Tensor:
    terms = []
    for i, count in enumerate(case.counts):
        ratio = (sum((case.now[i][t] - case.behaviour[i][t] for t in range(count)), torch.zeros(())) / count).exp()
        terms.append(case.clipped(ratio, case.group_advantage(i), 0.1, 0.15))
    return torch.stack(terms).mean()


def literal_cispo(case: Case) -> Tensor:
    terms = []
    for i, t in case.tokens:
        ratio = float((case.now[i][t] - case.behaviour[i][t]).exp().detach())
        terms.append(-min(max(ratio, 0.0), 1.3) * case.group_advantage(i) * case.now[i][t])
    return torch.stack(terms).sum() / len(case.tokens)


LITERALS = [
    pytest.param(GRPO, {"kl_coef": 0.1}, literal_grpo, id="grpo"),
    pytest.param(RLOO, {"kl_coef": 0.1}, literal_rloo, id="rloo"),
    pytest.param(ReinforcePP, {"kl_coef": 0.1}, literal_reinforce_pp, id="reinforce_pp"),
    pytest.param(
        ReinforcePP,
        {"kl_coef": 0.1, "group_baseline": True},
        literal_reinforce_pp_baseline,
        id="reinforce_pp-baseline",
    ),
    pytest.param(LMPPO, {"kl_coef": 0.1}, literal_lm_ppo, id="lm_ppo"),
    pytest.param(GSPO, {"clip_low": 0.1, "clip_high": 0.15}, literal_gspo, id="gspo"),
    pytest.param(CISPO, {"clip_high": 0.3}, literal_cispo, id="cispo"),
]


@pytest.mark.parametrize(("kind", "settings", "literal"), LITERALS)
def test_loss_and_gradient_equal_the_papers_formula_as_a_loop(
    kind: Any, settings: dict[str, Any], literal: Callable[[Case], Tensor]
) -> None:
    models, policy = make_models()
    batch = make_batch(policy.moved(0.3))
    algorithm = kind(kind.Config(**settings))
    (minibatch,) = minibatches_of(algorithm, models, batch)
    gradient, metrics = summed_gradient(algorithm, models, minibatch)
    expected = literal(Case(models, batch))
    parameters = [*policy.parameters(), *models["critic"].parameters()]
    of_literal = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(metrics["loss"].double(), expected.detach().double(), rtol=1e-5, atol=1e-6)
    expected_gradient = torch.cat([g.flatten().double() for g in of_literal])
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert 0 < float(metrics["clip_fraction"]) < 1, "both branches are to be compared"


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("kind", ALL)
def test_any_division_into_parts_and_processes_gives_the_same_update(kind: Any, aggregation: str) -> None:
    models, policy = make_models(outside=2)
    batch = make_batch(policy.moved(0.3))
    common = {
        "kl_coef": 0.1,
        "num_minibatches": 2,
        "aggregation": aggregation,
        "fixed_length": 6 if aggregation == "fixed_length" else None,
        "correction": {**DECOUPLED, "band": (0.5, 2.0)},
    }
    results = []
    for token_budget, num_processes in ((1000, 1), (1, 1), (12, 2)):
        algorithm = kind(kind.Config(**common, token_budget=token_budget))
        shuffled = minibatches_of(algorithm, models, batch)[1]
        results.append(summed_gradient(algorithm, models, shuffled, num_processes=num_processes))
    for gradient, metrics in results[1:]:
        torch.testing.assert_close(gradient, results[0][0], rtol=1e-6, atol=1e-6)
        for name, value in results[0][1].items():
            torch.testing.assert_close(metrics[name].double(), value.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_on_policy_data_is_not_clipped_and_does_not_differ_from_the_policy(kind: Any) -> None:
    models, policy = make_models()
    batch, algorithm = make_batch(policy), kind(kind.Config(clip_low=1e-3, clip_high=1e-3))
    _, metrics = summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))
    assert float(metrics["clip_fraction"]) == 0.0
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["mismatch"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_where_proximal_and_behaviour_policy_are_one_the_corrections_change_nothing(kind: Any) -> None:
    models, policy = make_models()
    batch = make_batch(policy)
    results = []
    for correction in ({}, {"decoupled": True}, {**DECOUPLED, "band": (0.9, 1.1)}):
        algorithm = kind(kind.Config(correction=correction, epochs=2))
        prepared = algorithm.prepare(context_of(models), batch)
        later = {**models, "policy": policy.moved(0.2)}  # as after some updates on this batch
        minibatch = list(algorithm.minibatches(context_of(models), prepared))[1]
        results.append(summed_gradient(algorithm, later, minibatch)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-5, atol=1e-6)


def decoupled_weights(truncate: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one GRPO step on lagging data: decoupled, the literal one weighed by all of proximal / behaviour,
    and the literal one with the cap of 1.2."""
    models, policy = make_models()
    batch = make_batch(policy.moved(0.5))
    algorithm = GRPO(GRPO.Config(correction=LagCorrection(decoupled=True, truncate=truncate)))
    gradient, _ = summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))
    case = Case(models, batch)
    expected = []
    for cap in (torch.inf, 1.2):
        terms = []
        for i, t in case.tokens:
            weight = (case.now[i][t] - case.behaviour[i][t]).detach().exp().clamp(max=cap)
            terms.append(-weight * case.group_advantage(i) * case.now[i][t])
        (of_policy,) = torch.autograd.grad(torch.stack(terms).mean(), policy.table, retain_graph=True)
        expected.append(of_policy.flatten())
    return gradient[: policy.table.numel()], expected[0], expected[1]


def test_decoupled_without_a_cap_is_exact_importance_weighting_and_nothing_is_clipped() -> None:
    gradient, exact, capped = decoupled_weights(truncate=None)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(exact, capped, atol=1e-4)


def test_truncation_bounds_the_weight_of_an_old_token() -> None:
    gradient, _, capped = decoupled_weights(truncate=1.2)
    torch.testing.assert_close(gradient, capped, rtol=1e-5, atol=1e-6)


def test_decoupled_gspo_weighs_a_sequence_by_its_capped_sequence_ratio() -> None:
    models, policy = make_models()
    batch = make_batch(policy.moved(0.5))
    algorithm = GSPO(GSPO.Config(correction=LagCorrection(decoupled=True, truncate=1.1)))
    gradient, _ = summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))
    case, terms, capped = Case(models, batch), [], 0
    for i in range(batch.num_samples):
        weight = float((case.now[i].detach() - case.behaviour[i]).mean().exp())
        capped += weight > 1.1
        terms.append(-min(weight, 1.1) * case.group_advantage(i) * case.now[i].mean())
    (expected,) = torch.autograd.grad(torch.stack(terms).mean(), policy.table)
    torch.testing.assert_close(gradient[: policy.table.numel()], expected.flatten(), rtol=1e-5, atol=1e-6)
    assert 0 < capped < batch.num_samples


def test_the_pass_left_out_before_a_single_step_would_have_given_the_same_update() -> None:
    models, policy = make_models()
    batch = make_batch(policy.moved(0.5))
    first, correction = [], DECOUPLED | {"band": (0.6, 1.5)}
    for epochs in (1, 2):
        algorithm = GRPO(GRPO.Config(correction=correction, epochs=epochs))
        prepared = algorithm.prepare(context_of(models), batch)
        assert (prepared.targets.proximal_logprobs is not None) == (epochs == 2)
        minibatch = next(algorithm.minibatches(context_of(models), prepared))
        first.append(summed_gradient(algorithm, models, minibatch)[0])
    torch.testing.assert_close(first[0], first[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [GRPO, RLOO, ReinforcePP, GSPO, CISPO])
def test_tokens_outside_the_nucleus_are_left_out_of_loss_and_gradient(kind: Any) -> None:
    models, policy = make_models(outside=2)
    batch, algorithm = make_batch(policy.moved(0.3)), kind(kind.Config(clip_low=0.9, clip_high=9.0))
    gradient, metrics = summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))
    sampled = batch.token_ids[batch.sampled]
    assert float(metrics["outside_nucleus"]) == pytest.approx(float((sampled == 2).double().mean()))
    # A row of the table gets a gradient only from tokens that were sampled after it and lie inside.
    position = batch.sampled - batch.offsets[batch.sequence] - 1
    touched = torch.zeros(WIDTH, VOCABULARY, dtype=torch.bool)
    inside = sampled != 2
    touched[position[inside], batch.token_ids[batch.sampled - 1][inside]] = True
    reached = gradient[: policy.table.numel()].view(WIDTH, VOCABULARY, VOCABULARY).abs().sum(-1) > 1e-12
    assert not bool((reached & ~touched).any())
    assert bool(reached.any())


def test_a_sequence_ratio_is_of_the_tokens_inside_the_nucleus_alone() -> None:
    models, policy = make_models(outside=2)
    batch, algorithm = make_batch(policy.moved(0.5)), GSPO(GSPO.Config(clip_low=0.9, clip_high=9.0))
    gradient, _ = summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))
    case, terms = Case(models, batch), []
    for i, sampled in enumerate(batch.token_ids[batch.sampled].split(case.counts)):
        inside = (sampled != 2).nonzero().squeeze(-1)
        if len(inside):
            ratio = (case.now[i] - case.behaviour[i])[inside].mean().exp()
            # The sample weighs by what is left of it, so that a token inside weighs as it would in a whole one.
            terms.append(-ratio * case.group_advantage(i) * len(inside) / case.counts[i] / batch.num_samples)
    (expected,) = torch.autograd.grad(torch.stack(terms).sum(), policy.table)
    torch.testing.assert_close(gradient[: policy.table.numel()], expected.flatten(), rtol=1e-5, atol=1e-6)


def test_the_band_leaves_out_tokens_whose_policies_are_far_apart() -> None:
    models, policy = make_models()
    batch = make_batch(policy.moved(0.5))
    algorithm = GRPO(GRPO.Config(clip_low=1.0, clip_high=99.0, correction=LagCorrection(band=(0.8, 1.25))))
    gradient, metrics = summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))
    case = Case(models, batch)
    terms, masked = [], 0
    for i, t in case.tokens:
        ratio = (case.now[i][t] - case.behaviour[i][t]).exp()
        if 0.8 <= float(ratio.detach()) <= 1.25:
            terms.append(-ratio * case.group_advantage(i) / len(case.tokens))
        else:
            masked += 1
    (expected,) = torch.autograd.grad(torch.stack(terms).sum(), policy.table)
    torch.testing.assert_close(gradient[: policy.table.numel()], expected.flatten(), rtol=1e-5, atol=1e-6)
    assert 0 < masked < len(case.tokens)
    assert float(metrics["masked_fraction"]) == pytest.approx(masked / len(case.tokens))


def test_gspo_of_one_token_completions_is_grpo_with_the_same_clip() -> None:
    models, policy = make_models()
    batch = make_batch(policy.moved(0.5), lengths=[1] * 6)
    gradients = []
    kind: Any
    for kind in (GRPO, GSPO):
        algorithm = kind(kind.Config(clip_low=0.2, clip_high=0.28, correction=DECOUPLED, aggregation="token_mean"))
        gradients.append(summed_gradient(algorithm, models, *minibatches_of(algorithm, models, batch))[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_every_epoch_sees_every_sample_once_and_says_when_it_ends(kind: Any) -> None:
    (models, policy), algorithm = make_models(), kind(kind.Config(epochs=2, num_minibatches=4, token_budget=10))
    minibatches = minibatches_of(algorithm, models, make_batch(policy))
    assert [m.ends_epoch for m in minibatches] == [False, False, False, True] * 2
    for epoch in (minibatches[:4], minibatches[4:]):
        assert sorted(i for m in epoch for samples in m.parts for i in samples) == list(range(6))


@pytest.mark.parametrize("kind", ALL)
def test_an_overlong_sample_loses_reward_before_the_limit(kind: Any) -> None:
    models, policy = make_models()
    batch = make_batch(policy)
    # Lengths 3 5 1 4 2 3, the limit 5 and the buffer 4: penalties 0.5, 1, 0, 0.75, 0.25, 0.5.
    shaped = replace(batch, rewards=batch.rewards - torch.tensor([0.5, 1.0, 0.0, 0.75, 0.25, 0.5]))
    prepared = kind(kind.Config(overlong_buffer=4), max_tokens=5).prepare(context_of(models), batch)
    expected = kind(kind.Config()).prepare(context_of(models), shaped)
    torch.testing.assert_close(prepared.targets.advantages, expected.targets.advantages)


def in_turns(batch: TokenBatch, *, answered: int) -> TokenBatch:
    """The batch, its samples of three tokens and more in two turns: before the last two of their tokens, as many as
    `answered` tokens of the environment."""
    begins = [0, *batch.lengths.cumsum(0).tolist()][:-1]
    positions, ids, offsets = [], [], [0]
    for i, begin in enumerate(begins):
        first, end = int(batch.offsets[i]), int(batch.offsets[i + 1])
        own, length = batch.token_ids[first:end].tolist(), int(batch.lengths[i])
        gap = answered if length > 2 else 0
        start = offsets[-1] + len(own) - length
        cut = length - 2 if gap else length
        positions += [*range(start, start + cut), *range(start + cut + gap, start + length + gap)]
        ids += own[: len(own) - length + cut] + [0] * gap + own[len(own) - length + cut :]
        offsets.append(len(ids))
        assert begin + length <= batch.num_sampled
    return replace(batch, token_ids=torch.tensor(ids), offsets=torch.tensor(offsets), sampled=torch.tensor(positions))


@pytest.mark.parametrize("kind", ALL)
def test_the_overlong_penalty_of_a_conversation_is_that_of_its_longest_turn(kind: Any) -> None:
    """The limit is one turn's: 3, the buffer 2. Lengths 3 5 1 4 2 3 are turns of 1+2, 3+2, 1, 2+2, 2, 1+2."""
    models, policy = make_models()
    batch = in_turns(make_batch(policy), answered=1)
    assert batch.longest_turns().tolist() == [2, 3, 1, 2, 2, 2]
    shaped = replace(batch, rewards=batch.rewards - torch.tensor([0.5, 1.0, 0.0, 0.5, 0.5, 0.5]))
    prepared = kind(kind.Config(overlong_buffer=2), max_tokens=3).prepare(context_of(models), batch)
    expected = kind(kind.Config()).prepare(context_of(models), shaped)
    torch.testing.assert_close(prepared.targets.advantages, expected.targets.advantages)


def test_a_turns_reward_is_credited_at_that_turn_where_credit_differs_within_a_sample() -> None:
    """Rewards to go of 0.75 for the first turn and 0.25 for the second are 1, ..., 0.25; after the first turn, 0.75 is
    no reason to have sampled what came later."""
    models, policy = make_models()
    batch = make_batch(policy)
    earlier = torch.zeros(batch.num_sampled)
    earlier[1] = 0.75  # at the second of the three tokens of the first sample
    batch = replace(
        batch,
        rewards=torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        tokens=replace(batch.tokens, turn_rewards=earlier),
    )
    to_go = torch.zeros(batch.num_sampled)
    to_go[:3] = torch.tensor([1.0, 1.0, 0.25])
    advantages = ReinforcePP(ReinforcePP.Config()).prepare(context_of(models), batch).targets.advantages
    torch.testing.assert_close(advantages, (to_go - to_go.mean()) / (to_go.std(correction=0) + 1e-8))
    critic = LMPPO(LMPPO.Config(gae_lambda=1.0)).prepare(context_of(models), batch)
    torch.testing.assert_close(critic.targets.returns, to_go)


@pytest.mark.parametrize("kind", [GRPO, RLOO, GSPO, CISPO])
def test_where_a_sample_is_one_action_the_sum_of_its_turns_counts(kind: Any) -> None:
    models, policy = make_models()
    batch = make_batch(policy)
    earned = torch.rand(batch.num_sampled, generator=torch.Generator().manual_seed(1))
    turns = replace(batch, tokens=replace(batch.tokens, turn_rewards=earned))
    algorithm = kind(kind.Config())
    prepared = [algorithm.prepare(context_of(models), b).targets.advantages for b in (batch, turns)]
    torch.testing.assert_close(*prepared)


def test_a_clipped_value_does_not_leap() -> None:
    (models, policy), critic = make_models(), TableCritic()
    batch = make_batch(policy)
    algorithm = LMPPO(LMPPO.Config(value_clip_range=0.1, value_coef=1.0, epochs=2))
    prepared = algorithm.prepare(context_of(models), batch)
    with torch.no_grad():
        critic.table.add_(0.3)
    rows, _ = batch.rows(range(batch.num_samples))
    before, returns = prepared.targets.proximal_values, prepared.targets.returns
    assert before is not None and returns is not None
    terms = [
        0.5 * max((v - r) ** 2, (o + min(max(v - o, -0.1), 0.1) - r) ** 2)
        for v, o, r in zip(critic(rows).tolist(), before.tolist(), returns.tolist(), strict=True)
    ]
    minibatch = next(algorithm.minibatches(context_of(models), prepared))
    _, metrics = summed_gradient(algorithm, {**models, "critic": critic}, minibatch)
    assert float(metrics["value_loss"]) == pytest.approx(statistics.mean(terms), rel=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_a_reference_is_needed_only_for_a_kl(kind: Any) -> None:
    assert not kind(kind.Config()).needs.reference
    assert kind(kind.Config(kl_coef=0.1)).needs.reference


@pytest.mark.parametrize("kind", ALL)
def test_settings_that_contradict_each_other_are_refused(kind: Any) -> None:
    for settings, named in (
        ({"aggregation": "fixed_length"}, "fixed_length=None"),
        ({"fixed_length": 8, "aggregation": "token_mean"}, "fixed_length=8"),
        ({"correction": {"truncate": 2.0}}, "needs decoupled"),
        ({"correction": {"band": (1.1, 2.0)}}, "low <= 1"),
    ):
        with pytest.raises(ValidationError, match=named):
            kind.Config(**settings)
    with pytest.raises(ValueError, match="overlong_buffer=4 with max_tokens=None"):
        kind(kind.Config(overlong_buffer=4))


def test_a_kl_in_the_loss_refuses_the_estimator_without_a_gradient() -> None:
    kind: Any
    for kind in (GRPO, GSPO, CISPO):
        with pytest.raises(ValidationError):
            kind.Config(kl_estimator="k1")


def test_an_adaptive_weight_of_the_kl_is_the_first_ones_for_this_batch_and_grows_for_the_next_where_it_is_too_far() -> (
    None
):
    """Far above the target: by `gain` times a fifth; far below it falls likewise (Ziegler et al., 2019)."""
    models, policy = make_models()
    batch = make_batch(policy)
    for target, gain, factor in ((1e-6, 0.1, 1.02), (1e6, 0.1, 0.98), (1e-6, 2.0, 1.4), (1e6, 2.0, 0.6)):
        algorithm = LMPPO(LMPPO.Config(kl_coef=0.1, kl_target=target, kl_gain=gain))
        own = {**models, **algorithm.extra_models()}
        context = context_of(own)
        first = algorithm.prepare(context, batch).targets.advantages
        assert float(context.noted["kl_coef"]) == pytest.approx(0.1)
        fixed = LMPPO(LMPPO.Config(kl_coef=0.1)).prepare(context_of(models), batch).targets.advantages
        torch.testing.assert_close(first, fixed)
        algorithm.prepare(context, batch)
        assert float(context.noted["kl_coef"]) == pytest.approx(0.1 * factor)
    assert LMPPO(LMPPO.Config(kl_coef=0.1)).extra_models() == {}
    with pytest.raises(ValueError, match="no weight to adapt"):
        LMPPO.Config(kl_target=0.1)
    with pytest.raises(ValueError, match="nothing is adapted: set kl_target"):
        LMPPO.Config(kl_coef=0.1, kl_gain=0.5)


@pytest.mark.parametrize(("kl", "factor"), [(0.2, 1.0), (0.21, 1.005), (0.3, 1.02), (0.0, 0.98), (math.nan, 1.0)])
def test_the_weight_grows_in_proportion_to_the_error_and_by_a_fiftieth_at_the_most(kl: float, factor: float) -> None:
    found = proportional_coefficient(coef=torch.tensor(0.5), kl=torch.tensor(kl), target=0.2)
    assert float(found) == pytest.approx(0.5 * factor)
