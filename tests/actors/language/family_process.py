"""Loads models of many kinds, one after the other, as a run does, and writes what engine and transformers say of the
same tokens: `python -m tests.actors.language.family_process DIRECTORY...`. In a process of its own: vLLM has no
room for experts in one that began with a model without. Run by test_model_families.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rollcall.actors.engine.settings import EngineConfig
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.deploy.kinds.language.model_directory import save_policy
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model

TOKENS = [(37 * index + 5) % 90 for index in range(40)]


def engine_of(directory: Path) -> VllmEngine:
    config = EngineConfig(max_model_len=64, max_num_seqs=8, enforce_eager=True)
    return VllmEngine(directory, config, sampling=SamplingConfig(), stop_token_ids=[1], threads=1)


@torch.no_grad()
def says(model: Any) -> list[float]:
    logprobs = model.eval()(input_ids=torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    return logprobs[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])].tolist()


def main(directory: Path) -> None:
    engine = engine_of(directory)  # first: the learner's model is built beside it, as in a serial run
    policy: Any = TokenPolicy(load_policy_model(directory, LMPolicyConfig()), SamplingConfig())
    generator = torch.Generator().manual_seed(0)
    pairs: dict[str, Any] = {}
    for version in range(3):
        weights = module_weights({"policy": policy}, "policy", epoch=1, version=version)
        engine.load(weights)
        pairs[f"version {version}"] = (engine.prompt_logprobs(TOKENS).tolist(), says(policy.model))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    engine.close()
    expected, export = pairs["version 2"][1], directory / "export"
    save_policy(weights, directory, export)
    pairs["transformers of the export"] = (says(AutoModelForCausalLM.from_pretrained(export)), expected)
    engine = engine_of(export)
    pairs["vLLM of the export"] = (engine.prompt_logprobs(TOKENS).tolist(), expected)
    engine.close()
    (directory / "said.json").write_text(json.dumps(pairs))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
