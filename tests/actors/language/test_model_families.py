"""Models whose weights do not lie in vLLM, or in transformers, as they do in a checkpoint: after each load the engine
says what transformers says, and so does whoever loads an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollcall.actors.vllm_engine import EngineConfig, VllmEngine
from rollcall.cluster.messages import Array, Weights
from rollcall.cluster.sampling import SamplingConfig
from rollcall.deploy.export import save_policy
from rollcall.learners.flat import module_weights
from rollcall.learners.token_policy import LMPolicyConfig, TokenPolicy, load_policy_model

pytest.importorskip("vllm", reason="needs rollcall-rl[lm-cpu]")
pytestmark = [  # vLLM's own, while parts of it are imported
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"),
]

TOLERANCE = 1e-5  # of a log-probability in float32
TOKENS = [(37 * index + 5) % 90 for index in range(40)]
SIZES: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"intermediate_size": 64, "max_position_embeddings": 128, "vocab_size": 90},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}
# What is unusual of each: a width of experts that vLLM's kernel pads; names that transformers and checkpoint spell
# differently; no code of vLLM's own, so that it takes transformers' class.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "padded experts": ("Qwen3Moe", {**SIZES, **EXPERTS, "moe_intermediate_size": 48, "decoder_sparse_step": 1}),
    "other names": ("Mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}),
    "transformers' class": ("Phi", SIZES),
}


@contextmanager
def engine_of(directory: Path) -> Iterator[VllmEngine]:
    config = EngineConfig(max_model_len=64, max_num_seqs=8, enforce_eager=True)
    engine = VllmEngine(directory, config, sampling=SamplingConfig(), stop_token_ids=[1], threads=1)
    yield engine
    engine.close()


@dataclass
class Model:
    """A directory, and the learner's model of it: built while an engine of the same kind is in this process."""

    directory: Path
    engine: VllmEngine
    policy: TokenPolicy

    def says(self, model: nn.Module | None = None) -> Array:
        model = (model or self.policy.model).eval()
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([TOKENS])).logits[0].log_softmax(-1)
        return np.array(logprobs[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])].numpy())

    def move(self) -> None:
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))

    def weights(self, version: int) -> Weights:
        return module_weights({"policy": self.policy}, "policy", epoch=1, version=version)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    import transformers

    name, settings = FAMILIES[request.param]
    directory = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    built: Any = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)  # far from the uniform distribution
    built.save_pretrained(directory)
    with engine_of(directory) as engine:
        policy = TokenPolicy(load_policy_model(directory, LMPolicyConfig()), SamplingConfig())
        yield Model(directory, engine, policy)


def test_after_each_load_the_engine_says_what_transformers_says(model: Model) -> None:
    for version in (0, 1, 2):
        model.engine.load(model.weights(version))
        said = model.says()
        np.testing.assert_allclose(model.engine.prompt_logprobs(TOKENS), said, atol=TOLERANCE, rtol=0)
        assert np.ptp(said) > 1.0
        model.move()


def test_an_export_is_a_checkpoint_that_transformers_and_vllm_load_to_the_same_log_probabilities(
    model: Model, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    model.move()
    said, export = model.says(), tmp_path / "export"
    save_policy(model.weights(7), model.directory, export)
    assert load_file(export / "model.safetensors").keys() == load_file(model.directory / "model.safetensors").keys()
    np.testing.assert_allclose(model.says(AutoModelForCausalLM.from_pretrained(export)), said, atol=TOLERANCE, rtol=0)
    with engine_of(export) as engine:
        np.testing.assert_allclose(engine.prompt_logprobs(TOKENS), said, atol=TOLERANCE, rtol=0)
