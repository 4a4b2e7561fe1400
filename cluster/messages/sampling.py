"""How tokens are drawn from a language policy: what its actors do and its learner must know of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SamplingConfig(BaseModel):
    """The distribution that is sampled from, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=1.0, gt=0, description="divides the logits; below 1 sharpens")
    top_p: float = Field(default=1.0, gt=0, le=1, description="mass of the nucleus that is sampled from")
    top_k: int = Field(default=0, ge=0, description="most probable tokens that are sampled from; 0: all")
    max_tokens: int = Field(default=64, ge=1, description="tokens of one completion, or of one turn, at the most")
    ignore_eos: bool = Field(default=False, description="always max_tokens tokens: for measuring speed")
