"""Who generates, and in what portions, as a recipe has it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.engine.settings import EngineConfig
from rollcall.cluster.messages.sampling import SamplingConfig


class LMActorsConfig(BaseModel):
    """Who generates, and in what portions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num: int = Field(default=1, ge=1, le=4096, description="actor processes, each with an engine of its own")
    samples_per_prompt: int = Field(default=8, ge=1, le=4096, description="completions of one prompt: a group")
    prompts_per_batch: int = Field(default=64, ge=1, le=1_000_000, description="prompts of one learner step")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="how tokens are drawn")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="the generation engine")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads of one engine")
    ticket_deadline_s: float = Field(default=300.0, gt=0.0, description="seconds within which a ticket is produced")
    on_stale: Literal["wait", "drop"] = Field(
        default="wait", description="before the lag bound is passed: wait for stragglers, or drop what is too old"
    )
