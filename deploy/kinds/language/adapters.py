"""The LoRA adapters of a checkpoint, alone, as peft keeps them: for peft and for vLLM to put beside the model that the
run began with. The published weights have them merged, so they are read from the learner's own state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.checkpoint import read_state
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.learners.loop.rules import PARAMETERS
from rollcall.learners.models.flat import flatten_module
from rollcall.learners.models.language.lora import adapted_names, adapter_tensors
from rollcall.learners.models.language.lora_config import LoraConfig

_OWNER = "policy"  # among the models that are trained


def adapters_of(checkpoint: Path, models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Of the policy, float32, by peft's names in a file of adapters. `models`: of the run, which take the checkpoint's
    values of all that is trained.

    Raises:
      CheckpointDamaged: when they are not the models of this checkpoint.
    """
    state = read_state(checkpoint, "learner")
    flat = flatten_module(nn.ModuleDict(dict(models)), only_trained=True)
    values = None if state is None else state[0].get(PARAMETERS)
    if values is None or values.shape != flat.parameter.shape:
        raise CheckpointDamaged(f"{checkpoint}: its learner's state is not of this run's adapters")
    with torch.no_grad():
        flat.parameter.copy_(torch.from_numpy(np.array(values, np.float32)))
    return adapter_tensors(models[_OWNER].get_submodule("model"))


def peft_settings(model: nn.Module, config: LoraConfig, *, base: str) -> dict[str, object]:
    """adapter_config.json, of a model with its adapters: `base` is the model that they belong to."""
    from peft import LoraConfig as PeftConfig

    settings: Any = PeftConfig(
        r=config.rank,
        lora_alpha=cast(int, config.alpha),
        target_modules=adapted_names(model),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    found = settings.to_dict().items()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in found}


def refuse_without_adapters(config: LoraConfig | None, run_directory: Path) -> LoraConfig:
    """Raises BadInput: for a run that trained all of its model."""
    if config is None:
        raise BadInput(f"{run_directory}: --adapters: the run has none (policy.lora): leave it out")
    return config
