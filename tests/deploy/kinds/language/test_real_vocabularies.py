"""Families of models with the vocabularies that they really have, small otherwise: loaded, learnt from in chunks,
exported, and loaded again. All nine through whole runs: `python -m benchmarks.prove_models --real-vocabularies`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.prove_models import REAL, build
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.deploy.kinds.language.model_directory import save_policy
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from rollcall.learners.models.language.workspace import Workspace
from tests.learners.models.language.test_causal_model import padded_rows
from tests.learners.models.language.test_logits_in_chunks import said
from tests.needs import require_module

require_module("transformers")


@pytest.mark.parametrize("family", ["gpt2", "mistral", "phi3"])  # those whose vocabularies are the smallest
def test_a_real_vocabulary_is_learnt_in_chunks_exported_and_loaded_again(family: str, tmp_path: Path) -> None:
    build(family, tmp_path / "given", real=True)
    rows = padded_rows()
    whole = TokenPolicy(load_policy_model(tmp_path / "given", LMPolicyConfig()), SamplingConfig())
    three_tokens = 3 * Workspace(1, REAL[family]).bytes_of_token / 2**20
    policy = TokenPolicy(whole.model, SamplingConfig(), logits_mib=three_tokens)
    assert whole.model.config.vocab_size == REAL[family]  # type: ignore[union-attr]
    (expected, gradients), (found, in_chunks) = said(whole, rows), said(policy, rows)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for parameter, one, other in zip(policy.parameters(), in_chunks, gradients, strict=True):
            assert one is not None and other is not None
            assert float((one - other).norm()) <= 1e-5 * max(float(other.norm()), 1.0)
            parameter.sub_(0.01 * one.sign())
        learnt = policy(rows).logprobs
    assert float((learnt - found.logprobs.detach()).abs().max()) > 1e-3

    save_policy(module_weights({"policy": policy}, "policy", epoch=0, version=1), tmp_path / "given", tmp_path / "out")
    again = TokenPolicy(load_policy_model(tmp_path / "out", LMPolicyConfig()), SamplingConfig())
    with torch.no_grad():
        torch.testing.assert_close(again(rows).logprobs, learnt, atol=1e-6, rtol=1e-6)
