"""How a learned reward model is run: apart from what runs it, so that services without one need no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict


class RewardModelConfig(Strict):
    """A reward model's directory, and how it is run."""

    kind: Literal["reward_model"] = "reward_model"
    path: str = Field(description="what rollcall reward train wrote, or any sequence classifier with one label")
    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward pass; with bfloat16 the batch's company shows in the third digit"
    )
    max_tokens: int = Field(default=2048, ge=1, description="of prompt and response together, or steps of a segment")
    batch_tokens: int = Field(default=8192, ge=1, description="padded tokens, or steps, of one forward pass")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads of a forward pass")
