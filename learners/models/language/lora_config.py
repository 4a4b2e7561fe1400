"""The settings of low-rank adapters, as a recipe has them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

ALL_LINEAR = "all-linear"


class LoraConfig(BaseModel):
    """A matrix W becomes W + alpha / rank * B A, of which only B and A are trained. There is no dropout: with it, the
    ratio of a policy to itself would not be 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1, description="of B A: what can be learnt grows with it, and the memory")
    alpha: float = Field(default=32, gt=0, description="B A is multiplied by alpha / rank")
    targets: str | tuple[str, ...] = Field(
        default=ALL_LINEAR,
        description="names of the layers with adapters (q_proj, say); all-linear: all but the output",
    )
