"""The driver's own process runs out of memory: the same two lines that a learner's does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rollcall.cluster.errors import RollcallError
from rollcall.deploy.plan.machine import Machine
from rollcall.deploy.plan.needs import GIB, Needs, Part, Role
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.plan.shortage import memory_explained
from tests.needs import require_module

MACHINE = Machine("this machine", 24 * GIB, 24 * GIB, 0, 0)
DRIVER = Role("driver", (Part("activations", 3 * GIB, "policy.warm_start.token_budget"),))
BESIDE = Plan(Needs("a model", (Role("learner process", (Part("logits", GIB, "b"),), 1, "learner"), DRIVER)), [MACHINE])


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)])
def test_an_allocation_that_fails_becomes_what_the_driver_holds_and_what_takes_less(allocate: object) -> None:
    with pytest.raises(RollcallError) as raised, memory_explained(lambda: BESIDE):
        allocate()  # type: ignore[operator]
    assert raised.value.headline.startswith("the driver ran out of memory: ")
    assert raised.value.headline.endswith("; by its plan it takes 3.0 GiB (activations 3.0 GiB)")
    assert raised.value.remedy == "what makes it smaller: policy.warm_start.token_budget"


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), RollcallError("can't allocate memory")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, memory_explained(lambda: BESIDE):
        raise error
    assert raised.value is error


LIMITED = """
import resource, sys, torch, transformers
from pathlib import Path
from rollcall.deploy.cli.main import main
from rollcall.deploy.drive import lifecycle
from rollcall.deploy.kinds.preferences import direct
has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + (1 << 30), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""
# Small, but for what a training pass keeps of each token.
WIDE = "{hidden_size: 64, num_layers: 16, num_heads: 2, num_kv_heads: 1, intermediate_size: 2048}"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_trainer_without_memory_ends_in_two_lines(tmp_path: Path) -> None:
    require_module("transformers")
    settings = ("data.generate={pairs: 240, eval_pairs: 8}", f"policy.tiny={WIDE}", "policy.warm_start=null")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train", "synthetic-dpo", *settings, "batch_size=200", "kl_prompts=0"],
        env={**os.environ, "ROLLCALL_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("rollcall: error: ")]
    assert done.returncode == 1 and len(said) == 2, done.stderr[-3000:]
    assert "the trainer ran out of memory: can't allocate memory" in said[0] and "by its plan it takes" in said[0]
    assert "activations" in said[0] and "algorithm.budget" in said[1]
