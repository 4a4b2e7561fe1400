"""The script that is run once there is a GPU, tried without one: every part of it, with tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.proofs import ROOT
from tests.needs import require


@pytest.mark.prove
@pytest.mark.timeout(1900)
def test_every_part_of_the_gpu_proof_works_without_one(tmp_path: Path) -> None:
    require("vllm", "transformers")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.prove_gpu", "--tiny", "--limit-s", "1700"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    parts = {name: part for name, part in found.items() if isinstance(part, dict)}
    assert found["card"] == "none" and parts.pop("tests")["left_out"] == "there is no GPU"
    assert len(parts) == 9 and not [name for name, part in found.items() if part == "left out: no time was left"]
    for name, part in parts.items():
        assert "failed" not in part and part.get("exit_code", 0) == 0, (name, part)
        if name.endswith("learner"):
            assert part["tokens_per_s"] > 0
        elif name.endswith("generation"):
            assert part["results"][0]["share"] > 0
        else:
            assert part["steady"]["update_s"] > 0
