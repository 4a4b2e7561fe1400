"""How many workers a function has, and how long a call of it may take."""

from __future__ import annotations

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict


class WorkersConfig(Strict):
    """Killable processes."""

    num: int = Field(default=2, ge=1, le=256, description="processes")
    timeout_s: float = Field(default=5.0, gt=0, le=600, description="for one item, until its worker is killed")
    memory_bytes: int = Field(default=2 << 30, ge=128 << 20, description="address space of one process")
    start_timeout_s: float = Field(default=60.0, gt=0, description="for a process to start and import what it needs")
