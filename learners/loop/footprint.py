"""What a learner keeps in its device's memory for every parameter, in bytes and by name: what plans are made from. Of
activations and logits, which grow with tokens and not with parameters, it knows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, OptimizerConfig, RMSpropConfig
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig

DTypeName = Literal["float32", "bfloat16", "float16"]  # as engines have them, too
SIZE: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

SNAPSHOT_BYTES = 64 << 20  # state up to this size is copied before each batch, so that an interruption takes it back
STEP_CHUNK = 1 << 22  # parameters that a step takes at once where it works with copies
STEP_WORKSPACE_BYTES = 4 * 4 * STEP_CHUNK  # master, gradient, two averages: where weights are bfloat16, or offloaded


def trained_dtype(policy: LMPolicyConfig, config: LearnerConfig) -> Literal["float32", "bfloat16"]:
    """Of the trained weights as the forward pass reads them: bfloat16 where that is what is asked for, or what it is
    computed in anyway. Adapters are few, and float32 always; so is what another rule than Adam's steps."""
    adam = isinstance(config.optimizer, AdamConfig | AdamWConfig)
    return frozen_dtype(policy) if policy.lora is None and adam else "float32"


def frozen_dtype(policy: LMPolicyConfig) -> Literal["float32", "bfloat16"]:
    """Of a reference, and of the model beside its adapters."""
    return policy.dtype if policy.weights_dtype == "auto" else policy.weights_dtype


def per_trained(
    config: LearnerConfig,
    *,
    weights_dtype: DTypeName = "float32",
    published_dtype: DTypeName | None = None,
    num_sharing: int = 1,
) -> dict[str, float]:
    """Bytes that stay on a learner process's device for each trained parameter.

    Args:
      weights_dtype: what the forward pass reads; with bfloat16 there are float32 masters.
      published_dtype: of the copy that engines fetch from the GPU (weight_transfer nccl and ipc), on process 0; None:
        there is none.
      num_sharing: learner processes among which the parameters lie in pieces (sharding=fsdp).
    """
    mixed = weights_dtype == "bfloat16"
    found = {
        "weights": SIZE[weights_dtype],
        # The lower half of a float32, of which the weights are the upper one. Offloaded, they are whole, on the host.
        "masters": 2 if mixed and not config.offload_optimizer else 0,
        "gradients": SIZE[weights_dtype],
        "optimizer": 0 if config.offload_optimizer else optimizer_bytes(config.optimizer, mixed=mixed),
    }
    shared = {name: size / num_sharing for name, size in found.items()}
    return shared if published_dtype is None else {**shared, "device_copy": float(SIZE[published_dtype])}


def per_frozen(*, weights_dtype: DTypeName = "float32", num_sharing: int = 1) -> dict[str, float]:
    """Bytes for each parameter of a reference, or of a model beside its adapters."""
    return {"weights": SIZE[weights_dtype] / num_sharing}


def per_offloaded(config: LearnerConfig) -> dict[str, float]:
    """Bytes of the host's memory for each trained parameter."""
    if not config.offload_optimizer:
        return {}
    # The step is made in the host's memory, of a copy of the parameters and of the gradients.
    return {"weights": 4.0, "gradients": 4.0, "optimizer": float(optimizer_bytes(config.optimizer))}


def optimizer_bytes(config: OptimizerConfig, *, mixed: bool = False) -> int:
    """Of an optimiser's averages. `mixed`: the average of gradients is bfloat16, that of their squares float32, of
    which a step changes a thousandth, which bfloat16 would round away."""
    if isinstance(config, AdamConfig | AdamWConfig):
        return 6 if mixed else 8
    if isinstance(config, RMSpropConfig):
        return 8 if config.momentum or config.form == "tensorflow" else 4
    return 4 if config.momentum else 0
