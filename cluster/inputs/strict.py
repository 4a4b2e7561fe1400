"""Settings and messages that people or other processes write: no unknown key is passed over, and nothing changes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """What every such model inherits, and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)
