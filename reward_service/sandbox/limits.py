"""What one run of code may use."""

from __future__ import annotations

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict


class Limits(Strict):
    """What one run of the code may use."""

    wall_s: float = Field(default=10.0, gt=0, le=600, description="until everything of the run is killed")
    cpu_s: int = Field(default=5, ge=1, le=600, description="processor time of one process")
    memory_bytes: int = Field(
        default=512 << 20, ge=64 << 20, description="address space of a process; all memory, with a control group"
    )
    processes: int = Field(default=16, ge=1, le=1024, description="processes and threads")
    file_bytes: int = Field(default=16 << 20, ge=0, description="size of one file")
    disk_bytes: int = Field(default=64 << 20, ge=1 << 16, description="all files together, in memory")
    disk_files: int = Field(default=1024, ge=16, description="number of files")
    open_files: int = Field(default=64, ge=16, le=4096, description="open at once")
    output_bytes: int = Field(default=1 << 20, ge=1, description="printed, before the run is ended")
