"""`rollcall export` of a language model that was trained: a whole model or its adapters alone, in a dtype, with a card,
and on the hub where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rollcall.cluster.checkpoint import read_manifest
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.language.adapters import adapters_of, peft_settings, refuse_without_adapters
from rollcall.deploy.kinds.language.hub import push
from rollcall.deploy.kinds.language.model_card import CARD, Training, model_card
from rollcall.deploy.kinds.language.model_directory import check_goal, save_policy, write_directory, write_tensors
from rollcall.deploy.kinds.language.models import language_models
from rollcall.deploy.rundir.files import ADAPTERS, POLICY
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.learners.models.language.token_policy import TokenPolicy


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's language model, and what is needed to write it down."""

    weights: Weights
    checkpoint: Path
    source: Path  # whose config and tokenizer are the model's
    given: Path  # what the run calls the model that the adapters are beside: a directory, or a name on the hub
    taken: Collection[Path]  # that no export may replace
    policy: LMPolicyConfig
    lora: LoraConfig | None
    has_critic: bool  # trained beside the policy
    training: Training


def export_language(trained: TrainedModel, options: ExportOptions) -> Exported:
    """As LoadedRun.export."""
    run_directory = trained.training.run_directory
    options.refuse_for_language(run_directory)
    goal = options.directory or run_directory / (ADAPTERS if options.adapters else POLICY)
    check_goal(goal, trained.taken)
    try:
        told = _write_adapters(trained, goal, options) if options.adapters else _write_model(trained, goal, options)
    except OSError as error:
        raise BadInput(f"cannot write {goal}: {error.strerror or error}") from None
    if options.push is not None:
        told = (*told, push(goal, options.push, public=options.public))
    return Exported(goal, told)


def _marker(trained: TrainedModel) -> dict[str, object]:
    weights = trained.weights
    return {
        "config_hash": read_manifest(trained.checkpoint).config_hash,
        "policy_id": weights.policy_id,
        "policy_version": weights.version,
        "weights": weights.checksum,
    }


def _write_model(trained: TrainedModel, goal: Path, options: ExportOptions) -> tuple[str, ...]:
    marker, dtype = _marker(trained), options.dtype
    card = model_card(trained.training, marker=marker, dtype=dtype or "float32", adapters=False)
    save_policy(trained.weights, trained.source, goal, marker=marker, dtype=dtype, texts={CARD: card})
    return ()


def _write_adapters(trained: TrainedModel, goal: Path, options: ExportOptions) -> tuple[str, ...]:
    lora = refuse_without_adapters(trained.lora, trained.training.run_directory)
    plain = language_models(
        trained.given,
        trained.policy.model_copy(update={"lora": lora, "attention": "sdpa", "warm_start": None}),
        SamplingConfig(),
        critic=trained.has_critic,
        reference=False,
        seed=0,
        device=torch.device("cpu"),
    )
    policy = plain["policy"]
    assert isinstance(policy, TokenPolicy)
    base = str(trained.given.resolve()) if trained.given.exists() else str(trained.given)
    if options.push is not None:
        base = trained.given.name if trained.given.exists() else base  # others have no such path
    settings = peft_settings(policy.model, lora, base=base)
    tensors = adapters_of(trained.checkpoint, plain)
    marker = _marker(trained)
    card = model_card(trained.training, marker=marker, dtype=options.dtype or "float32", adapters=True)
    texts: Mapping[str, str] = {CARD: card, "adapter_config.json": json.dumps(settings, indent=1, default=str) + "\n"}
    with write_directory(goal, marker=marker, texts=texts) as aside:
        write_tensors(tensors, aside / "adapter_model.safetensors", dtype=options.dtype)
    return (f"rank {lora.rank}, beside {base}",)
