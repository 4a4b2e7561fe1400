"""Models whose weights do not lie in vLLM, or in transformers, as they do in a checkpoint: after each load the engine
says what transformers says, and so does whoever loads an export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import ROOT
from tests.needs import require

require("vllm")

TEMPORARY = "temporary"  # where the process has its temporary files

TOLERANCE = 1e-5  # of a log-probability in float32
SIZES: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"intermediate_size": 64, "max_position_embeddings": 128, "vocab_size": 90},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}
# What is unusual of each: a width of experts that vLLM's kernel pads; names that transformers and checkpoint spell
# differently; vLLM's code copies into its parameters itself; it has no code of its own, and takes transformers' class.
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {**EXPERTS, "moe_intermediate_size": 48, "decoder_sparse_step": 1},
    "Mixtral": EXPERTS,
    "GptOss": {**EXPERTS, "sliding_window": 16},
    "Phi": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each family, with what was said of it."""
    import transformers

    folder = tmp_path_factory.mktemp("families")
    for name, more in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SIZES, **more)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(4.0)  # far from the uniform distribution
        model.save_pretrained(folder / name)
    command = [sys.executable, "-m", "tests.actors.language.family_process", *(str(folder / name) for name in FAMILIES)]
    (folder / TEMPORARY).mkdir()
    environment = os.environ | {"TMPDIR": str(folder / TEMPORARY)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_engines_leave_no_file_in_the_temporary_folder_in_which_their_processes_met(folder: Path) -> None:
    left = [path.name for path in (folder / TEMPORARY).iterdir()]
    assert not [name for name in left if name.startswith(("vllm_dist", "rollcall-engine"))], left


@pytest.mark.parametrize("name", FAMILIES)
def test_after_each_load_and_from_an_export_vllm_says_what_transformers_says(folder: Path, name: str) -> None:
    from safetensors.numpy import load_file

    said = json.loads((folder / name / "said.json").read_text())
    assert len(said) == 5
    for when, (found, expected) in said.items():
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0, err_msg=when)
        assert np.ptp(expected) > 1.0
    versions = [np.array(said[f"version {version}"][1]) for version in range(3)]
    assert np.abs(versions[1] - versions[0]).max() > 0.1 < np.abs(versions[2] - versions[1]).max()
    given, exported = (load_file(path / "model.safetensors") for path in (folder / name, folder / name / "export"))
    assert given.keys() == exported.keys()
