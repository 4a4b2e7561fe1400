"""The settings of a language model as a policy, as a recipe has them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.models.language.lora_config import LoraConfig


class WarmStartConfig(BaseModel):
    """Supervised fine-tuning on a task's demonstrations, before reinforcement learning or on its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=400, ge=1, description="gradient steps")
    batch_size: int = Field(default=128, ge=1, description="demonstrations of one step")
    learning_rate: float = Field(default=1e-3, gt=0, description="step size")
    anneal_learning_rate: bool = Field(
        default=True,
        description="linearly to zero: the best model for its steps, but in so sharp a minimum that reinforcement "
        "learning at a useful rate first throws it out again; false before that",
    )
    num_rows: int | None = Field(
        default=None, ge=1, description="demonstrations there are: the first of the task's shuffled rows; None: all"
    )
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="CPU threads; none: half of the machine's cores, since the run's processes start beside it",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train adapters alone, and merge them into the model at the end; none: train all of it",
    )


class LMPolicyConfig(BaseModel):
    """The language model, and in what precision it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default="tiny", description="a Hugging Face directory or name; tiny: made by the run itself")
    tiny: dict[str, Any] = Field(
        default_factory=dict, description="for model=tiny: hidden_size, num_layers and so on; see learners/tiny_model"
    )
    warm_start: WarmStartConfig | None = Field(
        default=None, description="imitate the task's demonstrations first; none: begin with the model as it is"
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="begin with the policy of another run (its directory, its name under runs/, or one of its "
        "checkpoints) in place of `model`; optimiser, schedules and books begin anew",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward and backward pass (autocast)"
    )
    weights_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the weights that the pass reads; bfloat16: 12 bytes a parameter with Adam in place of 16, "
        "stepped as float32 all the same (the other half of each weight is kept beside it), gradients and their "
        "average in bfloat16; auto: as dtype",
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory, a third more time")
    logits_workspace_mib: float | None = Field(
        default=None,
        gt=0,
        description="memory that logits may take at once; more of them are computed in chunks of tokens, and again for "
        "the gradient: the same numbers; none: 1/32 of the device's memory, at most 512 MiB (on a GPU 4096)",
    )
    attention: Literal["auto", "sdpa", "flex"] = Field(
        default="auto",
        description="sdpa: padded rows; flex: FlexAttention over all samples of a forward pass in one row, without "
        "padding, sharing prompts wherever there are some: the same result; models that cannot have it keep sdpa; "
        "auto: flex on a GPU, sdpa on a CPU, where flex is slow and there for checks",
    )
    share_prompts: bool = Field(
        default=True,
        description="compute a prompt once for several of its samples where that is cheaper: the same result; models "
        "that cannot do without by themselves: without flex, those with attention over a window are among them",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train adapters alone: a fraction of the memory; actors get them merged; none: train all",
    )
