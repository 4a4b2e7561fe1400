"""What a learner says of fixed tokens beside its weights, against the model's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.loop.canary import NUM_TOKENS, canary
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from tests.needs import require

require("transformers")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2: with dropout, as it is by default."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=128, vocab_size=50, bos_token_id=7, eos_token_id=1)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def policy_of(directory: Path) -> TokenPolicy:
    model = load_policy_model(directory, LMPolicyConfig())
    return TokenPolicy(model.train(), SamplingConfig(temperature=0.5, top_p=0.7, top_k=3))


def test_a_canary_is_the_models_own_log_probabilities_without_dropout_temperature_and_nucleus(directory: Path) -> None:
    policy = policy_of(directory)
    found = canary(policy, room=1000, dtype="float32")
    tokens = torch.tensor(found.token_ids, dtype=torch.int64)
    assert len(tokens) == NUM_TOKENS and found.token_ids[0] == 7
    assert len(set(found.token_ids.tolist())) == 50  # all over the vocabulary
    model: Any = policy.model.eval()
    expected = model(input_ids=tokens[None]).logits[0].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(found.logprobs, expected.detach().numpy(), atol=1e-5)


def test_a_canary_changes_nothing_and_draws_no_random_number(directory: Path) -> None:
    policy = policy_of(directory)
    before = torch.get_rng_state()
    first = canary(policy, room=16, dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in policy.parameters())
    again = canary(policy, room=16, dtype="float32")
    assert first.logprobs.tobytes() == again.logprobs.tobytes()
    assert len(first.token_ids) == 15  # and one that an engine generates
