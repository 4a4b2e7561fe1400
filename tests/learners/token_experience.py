"""A tiny language model, samples that it might have drawn, and a learner of them: for tests of what trains it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.batches.token_batch import collate_samples, each_token
from rollcall.learners.collators.language import LanguageCollator
from rollcall.learners.collective import Collective
from rollcall.learners.loop.canary import canary
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.footprint import frozen_dtype, trained_dtype
from rollcall.learners.loop.learner import Learner, resolve_device
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.lora import WithoutAdapters, add_adapters, merged_parameters
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import (
    TokenCritic,
    TokenPolicy,
    autocast_dtype,
    decoder_layers,
    layout_of,
    load_policy_model,
)

ALPHABET = "0123456789+="
SAMPLING = SamplingConfig(temperature=0.8)
TOKEN_BUDGET = 24


def write_model(directory: Path, *, tied: bool = True) -> None:
    """Two layers, with matrices of odd sizes among them: 15 words, and heads for one."""
    write_tiny_model(
        directory,
        alphabet=ALPHABET,
        hidden_size=33,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=49,
        tie_word_embeddings=tied,
        seed=3,
    )


def make_models(directory: Path, algorithm: Any, config: LMPolicyConfig, device: torch.device) -> dict[str, nn.Module]:
    """As deploy/kinds/language/factory.py makes them."""

    def load() -> nn.Module:
        model = load_policy_model(directory, config, device=device)
        if config.lora is not None:
            add_adapters(model, config.lora, seed=7)
        return model

    autocast, logits_mib = autocast_dtype(config), config.logits_workspace_mib
    policy = TokenPolicy(load(), SAMPLING, autocast=autocast, logits_mib=logits_mib)
    models: dict[str, nn.Module] = {"policy": policy}
    if algorithm.needs.critic:
        torch.manual_seed(0)
        models["critic"] = TokenCritic(load(), autocast=autocast)
    if algorithm.needs.reference:
        other = load_policy_model(directory, config, device=device)
        plain = TokenPolicy(other, SAMPLING, autocast=autocast, logits_mib=logits_mib).requires_grad_(False)
        models["reference"] = plain if config.lora is None else WithoutAdapters(policy)
    return models


def make_learner(
    directory: Path,
    algorithm: Any,
    *,
    policy: LMPolicyConfig | None = None,
    config: LearnerConfig | None = None,
    collective: Collective | None = None,
    keep_on_device: bool = False,
    published_dtype: str = "float32",
) -> Learner:
    policy, config = policy or LMPolicyConfig(), config or LearnerConfig(learning_rate=1e-2)
    models = make_models(directory, algorithm, policy, resolve_device(config.device))
    own: Any = models["policy"]
    # Padded rows share no prompts here: tests of parts count on it.
    share_prompts = layout_of(own.model, share_prompts=False).packed
    layout = layout_of(own.model, share_prompts=share_prompts, token_budget=TOKEN_BUDGET)
    return Learner(
        models=models,
        algorithm=algorithm,
        config=config,
        policy_id="policy",
        run_seed=0,
        collator=LanguageCollator(token_budget=TOKEN_BUDGET, layout=layout),
        published=("policy",),
        collective=collective,
        fsdp_units=decoder_layers,
        read_out=None if policy.lora is None else merged_parameters,
        keep_on_device=keep_on_device,
        published_dtype=published_dtype,
        weights_dtype=trained_dtype(policy, config),
        frozen_dtype=frozen_dtype(policy),
        canary=lambda models: canary(models["policy"], room=32, dtype=policy.dtype),  # type: ignore[arg-type]
    )


def with_lora(**settings: Any) -> LMPolicyConfig:
    return LMPolicyConfig(lora=LoraConfig(rank=4, alpha=8, **settings))


def samples(directory: Path, *, step: int, num_prompts: int = 3) -> list[LMTrajectory]:
    """One batch: prompts with three samples each, of 3 to 12 tokens, drawn from the model as it is in the directory
    (as far as their log-probabilities tell)."""
    rng = np.random.default_rng(step)
    drafts = [_draft(rng, ticket) for ticket in range(num_prompts)]
    batch = collate_samples(drafts, step=0)
    policy = TokenPolicy(load_policy_model(directory, LMPolicyConfig()), SAMPLING)
    logprobs = each_token(batch, lambda rows: policy(rows).logprobs, token_budget=1000, rank=0, num_processes=1).numpy()
    finished = []
    for draft in drafts:
        own: Array = np.zeros(len(draft.token_ids), np.float32)
        own[draft.loss_mask], logprobs = np.split(logprobs, [int(draft.loss_mask.sum())])
        finished.append(replace(draft, tokens=SampledTokens(own)))
    return finished


def _draft(rng: np.random.Generator, ticket: int) -> LMTrajectory:
    lengths = rng.integers(1, 9, size=3)
    prompt = rng.integers(1, 4)
    masks = [np.arange(prompt + length) >= prompt for length in lengths]
    total = int(sum(map(len, masks)))
    return LMTrajectory(
        header=Header(ticket_id=ticket, attempt=1, epoch=1, policy_id="policy", actor_id="lm-0"),
        row=ticket,
        sample_offsets=np.cumsum([0, *map(len, masks)]).astype(np.int64),
        token_ids=rng.integers(1, len(ALPHABET) + 3, size=total).astype(np.int32),
        loss_mask=np.concatenate(masks),
        tokens=SampledTokens(np.zeros(total, np.float32)),
        version_spans=np.array([(0, total, 0)], np.int64),
        rewards=rng.random(3).astype(np.float32),
        finish_reasons=("stop",) * 3,
    )


def published(learner: Learner) -> dict[str, Array]:
    return {name: array.copy() for name, array in learner.weights(epoch=1, version=0).tensors()}
