"""The settings of a user's own scorer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.scorer import Taken
from rollcall.reward_service.workers.workers_config import WorkersConfig


class FunctionConfig(Strict):
    """A scorer by import path, found from the working directory as from anywhere else."""

    kind: Literal["function"] = "function"
    path: str = Field(pattern=r"^[\w.]+:\w+$", description="my_module:score")
    # No set: its order would differ from process to process, and with it the digest that is the version.
    takes: tuple[Taken, ...] = Field(default=("text", "segment"), min_length=1, description="what it scores")
    cacheable: bool = Field(default=True, description="an item has the same score tomorrow")
    batch_size: int = Field(default=32, ge=1, description="items of one call, where the function is batched")
    workers: WorkersConfig = WorkersConfig()
