"""How many CPU cores this process may use: of a container its share counts, and not what the host has."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time, and of the period in which they may be used


def usable_cores(quota: Path = QUOTA) -> int:
    """At least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        used, period = quota.read_text().split()
        return max(1, min(cores, math.ceil(int(used) / int(period))))
    except (OSError, ValueError):  # no control groups of version 2, or no limit: "max"
        return max(1, cores)
