"""The models that a language algorithm learns with, all of them from one directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.batches.placement import Layout
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.lora import WithoutAdapters, add_adapters
from rollcall.learners.models.language.token_policy import (
    TokenCritic,
    TokenPolicy,
    autocast_dtype,
    layout_of,
    load_policy_model,
)


def language_models(
    directory: Path,
    config: LMPolicyConfig,
    sampling: SamplingConfig,
    *,
    critic: bool,
    reference: bool,
    seed: int,
    device: torch.device,
) -> dict[str, nn.Module]:
    """policy, and critic and reference where they are wanted. With LoRA, policy and critic have adapters, and the
    reference is the policy without: the adapters of version 0 change nothing."""
    autocast = autocast_dtype(config)

    def load(name: str) -> nn.Module:
        model = load_policy_model(directory, config, device=device)
        if config.lora is not None:
            add_adapters(model, config.lora, seed=derive_seed(seed, "lora", name))
        return model

    models: dict[str, nn.Module] = {
        "policy": TokenPolicy(load("policy"), sampling, autocast=autocast, logits_mib=config.logits_workspace_mib)
    }
    if critic:
        models["critic"] = TokenCritic(load("critic"), autocast=autocast)
    if reference and config.lora is not None:
        models["reference"] = WithoutAdapters(models["policy"])
    elif reference:
        models["reference"] = TokenPolicy(
            load("reference"), sampling, autocast=autocast, logits_mib=config.logits_workspace_mib
        ).requires_grad_(False)
    return models


def policy_layout(models: Mapping[str, nn.Module], config: LMPolicyConfig, token_budget: int) -> Layout:
    """How samples stand in these models' passes."""
    policy = models["policy"]
    assert isinstance(policy, TokenPolicy)
    return layout_of(policy.model, share_prompts=config.share_prompts, token_budget=token_budget)
