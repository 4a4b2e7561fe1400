"""Memory that a learner's pass frees is there for its next one. In a process of its own: the setting is a process's."""

from __future__ import annotations

import os
import subprocess
import sys

# Prints the pages that the system has to find for a pass that frees all that it made: twice, without and with.
PASSES = """
import resource
import torch
from rollcall.learners.loop.heap import keep_freed_memory, return_freed_memory

def faults(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        made = [torch.ones(2**22) for _ in range(16)]  # 256 MiB in arrays of 16
        del made
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / passes

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults(3)
given_back = faults(5)
keep_freed_memory()
faults(3)
kept, size = faults(5), resident()
return_freed_memory()
print(given_back, kept, size - resident())
"""


def test_a_pass_finds_the_memory_of_the_one_before() -> None:
    glibc = os.environ | {"MALLOC_TRIM_THRESHOLD_": "131072"}  # its default, which otherwise adapts itself a little
    told = subprocess.run(
        [sys.executable, "-c", PASSES], capture_output=True, text=True, timeout=120, check=True, env=glibc
    )
    given_back, kept, returned = map(float, told.stdout.split())
    assert given_back > 1000, "otherwise there is nothing to be gained"
    assert kept < given_back / 20
    assert returned > 100 * 2**20, "what is kept can be handed back"
