"""Log-probabilities and their gradients in chunks of tokens: the same as of all tokens at once, in no more memory than
was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.maths.sampling import Distribution, Processed
from rollcall.learners.models.language.causal_model import CausalModel
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.logits_in_chunks import process_states
from rollcall.learners.models.language.lora import add_adapters
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from rollcall.learners.models.language.workspace import Workspace, workspace_bytes
from tests.learners.models.language.test_causal_model import make_model, padded_rows
from tests.needs import require_module

require_module("transformers")

WAYS = {
    "whole": SamplingConfig(),
    "warm": SamplingConfig(temperature=0.7),
    "nucleus": SamplingConfig(temperature=1.3, top_p=0.9, top_k=12),
}
NUM_TOKENS = 11  # of padded_rows: four chunks of three, the last of them smaller
THREE_TOKENS = 3 * Workspace(1, 40).bytes_of_token / 2**20


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def directory_of(name: str) -> Path:
        if not (folder / name).exists():
            make_model(name).save_pretrained(folder / name)
        return folder / name

    return directory_of


def said(policy: TokenPolicy, rows: TokenRows) -> tuple[Processed, list[Tensor | None]]:
    """With the gradient of a loss that weighs every token differently."""
    result = policy(rows)
    weights = torch.linspace(-1.0, 2.0, len(result.logprobs))
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return result, list(torch.autograd.grad((weights * result.logprobs).sum(), parameters, allow_unused=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["nothing", "softcap", "divided", "multiplied", "bias", "dropout", "projected"])
def test_values_and_gradients_are_those_of_all_tokens_at_once(
    directory_of: Callable[[str], Path], name: str, way: str
) -> None:
    model = load_policy_model(directory_of(name), LMPolicyConfig())
    whole, gradients = said(TokenPolicy(model, WAYS[way]), padded_rows())
    found, in_chunks = said(TokenPolicy(model, WAYS[way], logits_mib=THREE_TOKENS), padded_rows())
    torch.testing.assert_close(found.logprobs, whole.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, whole.entropy, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.outside, whole.outside)
    assert not found.entropy.requires_grad
    assert len(gradients) == len(in_chunks) > 0
    for one, other in zip(in_chunks, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert float((one - other).norm()) <= 1e-5 * max(float(other.norm()), 1.0)


def test_in_bfloat16_the_chunks_gradients_are_added_up_in_float32(directory_of: Callable[[str], Path]) -> None:
    model = load_policy_model(directory_of("nothing"), LMPolicyConfig())
    precise = said(TokenPolicy(model, SamplingConfig()), padded_rows())[1]
    policies = [
        TokenPolicy(model, SamplingConfig(), autocast=torch.bfloat16, logits_mib=m) for m in (None, THREE_TOKENS)
    ]
    errors = []
    for policy in policies:
        gradients = said(policy, padded_rows())[1]
        pairs = [(a, b) for a, b in zip(gradients, precise, strict=True) if a is not None and b is not None]
        assert all(gradient.dtype == torch.float32 for gradient, _ in pairs)
        errors.append(sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5)
    assert errors[1] < 1.2 * errors[0]


def test_no_call_sees_more_tokens_than_were_asked_for_and_chunks_begin_at_the_same_tokens(
    directory_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    own = CausalModel.logits

    def logits(self: CausalModel, states: Tensor) -> Tensor:
        sizes.append(len(states))
        return own(self, states)

    policy = TokenPolicy(
        load_policy_model(directory_of("nothing"), LMPolicyConfig()), SamplingConfig(), logits_mib=THREE_TOKENS
    )
    monkeypatch.setattr(CausalModel, "logits", logits)
    with torch.no_grad():
        policy(padded_rows())
    assert sizes == [3, 3, 3, 2]
    sizes.clear()
    said(policy, padded_rows())
    assert sizes == [1] + 2 * [3, 3, 3, 2]  # one to see which parameters it takes; forward; backward


def test_a_token_is_said_the_same_of_however_many_come_after_its_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, states = torch.randn(50, 8, generator=generator), torch.randn(40, 8, generator=generator)
    targets = torch.randint(50, (40,), generator=generator)

    def of(count: int) -> Processed:
        return process_states(
            lambda chunk: chunk @ weight.T,
            states=states[:count],
            targets=targets[:count],
            distribution=Distribution(0.7),
            at_once=8,
        )

    every = of(40)
    for count in (16, 24, 32):
        assert torch.equal(of(count).logprobs, every.logprobs[:count])
        assert torch.equal(of(count).entropy, every.entropy[:count])


def test_adapters_learn_the_same_and_the_output_matrix_gets_no_gradient(directory_of: Callable[[str], Path]) -> None:
    model = load_policy_model(directory_of("nothing"), LMPolicyConfig())
    add_adapters(model, LoraConfig(rank=2), seed=0)
    whole = said(TokenPolicy(model, SamplingConfig()), padded_rows())[1]
    found = said(TokenPolicy(model, SamplingConfig(), logits_mib=THREE_TOKENS), padded_rows())[1]
    assert sum(float(gradient.norm()) > 0 for gradient in whole if gradient is not None) > 0
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_frozen_policy_says_the_same_where_gradients_are_on(directory_of: Callable[[str], Path]) -> None:
    model = load_policy_model(directory_of("softcap"), LMPolicyConfig()).requires_grad_(False)
    whole = TokenPolicy(model, SamplingConfig())(padded_rows()).logprobs
    found = TokenPolicy(model, SamplingConfig(), logits_mib=THREE_TOKENS)(padded_rows()).logprobs
    assert not found.requires_grad
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "device", "memory_gib", "expected_mib"),
    [
        (None, "cpu", 24, 512),
        (None, "cpu", 4, 128),
        (None, "cpu", 1, 64),
        (None, "cuda", 80, 2560),
        (None, "cuda", 4, 256),
        (None, "cuda", 192, 4096),
        (300, "cuda", 80, 300),
        (0.5, "cpu", 24, 0.5),
    ],
)
def test_the_default_is_a_share_of_the_device_within_bounds(
    setting: float | None, device: str, memory_gib: int, expected_mib: float
) -> None:
    size = workspace_bytes(setting, device_type=device, device_bytes=memory_gib * 2**30)
    assert size == expected_mib * 2**20


@pytest.mark.parametrize(("vocab_size", "tokens"), [(20, 838_848), (151_936, 96), (262_144, 64), (100_000_000, 1)])
def test_of_a_larger_vocabulary_fewer_tokens_fit(vocab_size: int, tokens: int) -> None:
    workspace = Workspace(256 * 2**20, vocab_size)
    assert workspace.tokens == tokens
    assert workspace.bytes_for(tokens + 1) == tokens * vocab_size * 16
    assert workspace.gradient_bytes_for(tokens, hidden_size=8) == 0
    assert workspace.gradient_bytes_for(tokens + 1, hidden_size=8) == 64 * vocab_size


def test_beside_logits_and_their_gradient_nothing_of_their_size_is_made() -> None:
    """The largest arrays that are made, seen by who makes them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            storages = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in storages:
                made.append(result.numel())
            return result

    from rollcall.learners.maths.sampling import logits_gradient, processed

    logits, targets = torch.randn(256, 20_000), torch.zeros(256, dtype=torch.int64)
    distribution = Distribution(0.7, 0.9)
    with Watch():
        processed(logits, targets, distribution)
    assert max(made) <= 2**19
    made.clear()
    with Watch():
        logits_gradient(logits, targets, distribution, torch.ones(256))
    assert sum(size > 2**19 for size in made) == 1
