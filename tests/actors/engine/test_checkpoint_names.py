"""Tensors under the names that a checkpoint has for them: as transformers itself writes them, fused ones too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.cluster.errors import BadInput
from tests.needs import require_module

transformers = require_module("transformers")

SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    **{"intermediate_size": 48, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
    **{"num_experts_per_tok": 2},
}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "Qwen2Moe": {
        **{"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16},
        **{"decoder_sparse_step": 1},
    },
    "GraniteMoe": {"num_local_experts": 4},
    "GptOss": {"num_local_experts": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_in_memory_become_those_that_transformers_writes(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    names = CheckpointNames(tmp_path)
    assert names.kind == f"{kind}ForCausalLM"
    for _ in range(2):  # as often as there are versions
        found = names.tensors({name: parameter.detach() for name, parameter in model.named_parameters()})
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_directory_of_no_causal_language_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for directory in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BadInput, match="no causal language model can be loaded from it") as caught:
            CheckpointNames(directory)
        assert "\n" not in str(caught.value)
