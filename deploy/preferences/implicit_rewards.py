"""A policy before comparisons, by its implicit rewards (how much rather than its reference it gives a response), and
how far it has moved from that reference. Must never know files, texts, or how the policy is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.algorithm import Models
from rollcall.learners.algorithms.preferences import direct_preference
from rollcall.learners.batches.placement import PADDED, Layout
from rollcall.learners.batches.preference_batch import PreferenceBatch, collate_comparisons
from rollcall.learners.collective import Collective
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.learners.models.language.token_policy import TokenPolicy

_CHUNK = 256  # comparisons collated at once


@dataclass(frozen=True)
class PolicyJudgement:
    """Of all pairs that are no ties."""

    differences: Tensor  # [P]: of log-ratios, better minus worse
    losses: Tensor  # [P]: the method's own
    groups: Tensor  # int64 [P]
    loss: float  # mean of the losses
    margin: float  # mean difference of implicit rewards


def judge_policy(
    algorithm: Any,
    models: Models,
    comparisons: Sequence[RankedCandidates[TokenSequence]],
    *,
    budget: int,
    layout: Layout = PADDED,
) -> PolicyJudgement:
    """Without gradients."""
    differences, groups = [], []
    for begin in range(0, len(comparisons), _CHUNK):
        batch = collate_comparisons(comparisons[begin : begin + _CHUNK], layout=layout).to(_device(models))
        clear = ~batch.pairs.tied
        differences.append(batch.pairs.differences(_log_ratios(models, batch, budget))[clear].cpu())
        groups.append(batch.pairs.group[clear].cpu())
    found = torch.cat(differences)
    losses = algorithm.pair_losses(found)
    margin = float(algorithm.beta * found.mean()) if len(found) else 0.0
    return PolicyJudgement(found, losses, torch.cat(groups), float(losses.mean()) if len(found) else 0.0, margin)


def sampled_kl(
    models: Models,
    comparisons: Sequence[RankedCandidates[TokenSequence]],
    *,
    max_tokens: int,
    budget: int,
    seed: int,
    layout: Layout = PADDED,
) -> dict[str, float]:
    """KL(pi || reference) of whole responses, in nats: the mean of log pi / ref over two samples of pi for each prompt.
    Unbiased (k1, Schulman, 2020), and for a response cut at max_tokens that of its beginning."""
    policy = cast(TokenPolicy, models["policy"])
    prompts = [item.candidates[0].token_ids[: item.candidates[0].num_prompt] for item in comparisons]
    device = _device(models)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        answers = sampled_pairs(policy, prompts, SamplingConfig(max_tokens=max_tokens), device)
    samples = [
        RankedCandidates(tuple(TokenSequence(np.concatenate([prompt, tokens]), len(prompt)) for tokens in both), (0, 0))
        for prompt, both in zip(prompts, answers, strict=True)
    ]
    ratios = _log_ratios(models, collate_comparisons(samples, layout=layout).to(device), budget).double().cpu()
    return {"kl_reference": float(ratios.mean()), "kl_reference_error": float(ratios.std() / len(ratios) ** 0.5)}


def sampled_pairs(
    policy: TokenPolicy,
    prompts: Sequence[Array],
    sampling: SamplingConfig,
    device: torch.device,
    *,
    ends: Sequence[int] = (),
) -> list[tuple[Array, Array]]:
    """Two samples of the policy for each prompt, with their ends: of the distribution that `sampling` says, as a
    generation engine samples it, whatever the model's own generation config says. Prompts are padded on the left to
    begin together. `ends`: tokens that end a sample, beside the model's own."""
    from transformers import GenerationConfig

    model: Any = policy.model
    width = max(len(prompt) for prompt in prompts)
    token_ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(token_ids)
    for row, prompt in enumerate(prompts):
        token_ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    own = model.generation_config.eos_token_id
    eos = [] if sampling.ignore_eos else sorted({*ends, *([own] if isinstance(own, int) else own or [])})
    configured = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        num_return_sequences=2,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=eos or None,
        pad_token_id=model.config.get_text_config().pad_token_id or 0,
    )
    try:
        with _gathered(policy):
            generated = model.generate(token_ids.to(device), attention_mask=mask.to(device))
    finally:
        model.generation_config = configured
    ended = [_ended(row, eos) for row in generated[:, width:].cpu().numpy()]
    return list(zip(ended[::2], ended[1::2], strict=True))


@contextmanager
def _gathered(policy: TokenPolicy) -> Iterator[None]:
    """Of a policy in pieces, what lies outside its layers: the model within is called past the module that gathers it.
    All processes generate alike."""
    gather, let_go = getattr(policy, "unshard", None), getattr(policy, "reshard", None)
    if gather is None or let_go is None:
        yield
        return
    gather()
    try:
        yield
    finally:
        let_go()


def _ended(tokens: Array, eos: list[int]) -> Array:
    """Without what is padded after the first end-of-sequence token."""
    ends = np.flatnonzero(np.isin(tokens, eos))
    return tokens[: ends[0] + 1] if len(ends) else tokens


def _log_ratios(models: Models, batch: PreferenceBatch, budget: int) -> Tensor:
    """Of each candidate [N]."""
    policy, reference = (
        direct_preference.batch_logprobs(models, batch, name=name, budget=budget, collective=Collective())
        for name in ("policy", "reference")
    )
    return policy - reference


def _device(models: Mapping[str, Any]) -> torch.device:
    return cast(torch.device, next(models["policy"].parameters()).device)
