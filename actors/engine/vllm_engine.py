"""vLLM, in this process: requests of tokens in, tokens with log-probabilities and policy versions out, and new weights
between two steps. All that depends on vLLM's version is in the files of this room whose names begin with vllm."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rollcall.actors.engine import vllm_repairs, vllm_weight_transfer
from rollcall.actors.engine.canary import bound_of, check_canary
from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.published_weights import MODEL_PREFIX, WeightsOffer
from rollcall.actors.engine.requests import Completion, LoadSums, Running
from rollcall.actors.engine.settings import EngineConfig, check_installed
from rollcall.actors.engine.vllm_arguments import (
    engine_arguments,
    refuse_without_gpu,
    sampling_parameters,
    set_environment,
)
from rollcall.actors.engine.vllm_rendezvous import rendezvous
from rollcall.actors.engine.vllm_weights import EngineWeights, in_words
from rollcall.cluster.errors import EngineMismatch, RollcallError
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import EngineLoad
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Canary, Weights


def preload(config: EngineConfig, *, threads: int) -> None:
    """Imports what an engine needs: seconds, for which no model has to be there."""
    check_installed()
    set_environment(config, threads)
    vllm_repairs.install()
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: F401


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
        config = config.resolved(on_gpu=vllm_weight_transfer.has_gpu())
        refuse_without_gpu(config)
        set_environment(config, threads)
        names = CheckpointNames(model_directory)
        vllm_repairs.install()
        import torch
        from vllm.v1.engine import EngineCoreRequest, FinishReason
        from vllm.v1.engine.llm_engine import LLMEngine

        try:
            with rendezvous():
                engine = LLMEngine.from_engine_args(engine_arguments(model_directory, config))
        except Exception as error:
            raise RollcallError(
                f"{model_directory} ({names.kind}): vLLM does not start with this model: {in_words(error)}"
            ) from error
        torch.set_num_threads(threads)
        more_stops = (
            engine.input_processor.generation_config_fields
        )  # a model may name more tokens that end a completion
        self._sampled, self._greedy, self._scored = sampling_parameters(sampling, stop_token_ids, more_stops)
        core: Any = engine.engine_core
        self._core, self._scheduler = core, core.engine_core.scheduler
        self._request, self._reasons = EngineCoreRequest, FinishReason
        self._running: dict[str, Running] = {}  # by vLLM's name for it
        self._held: list[Completion] = []  # finished, and not yet handed out
        self._count = 0  # of requests, for those names
        self._load = LoadSums()
        self._scheduler.max_num_active_reqs = config.max_num_seqs
        self._canary_nats: float | None = None  # how far it was from the learner under its newest weights
        self._canary_bound_nats: float | None = None
        self.dtype = str(core.engine_core.vllm_config.model_config.dtype).removeprefix("torch.")
        self._weights = EngineWeights(self._core, model_directory, names, dtype=self.dtype)
        self._may_sleep, self._sleeps = config.sleep, False
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

    def _admit(self, request_id: str, prompt: Sequence[int], params: Any, *, cache_salt: str) -> Running:
        self._wake()
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
        self._running[name] = Running(request_id)
        return self._running[name]

    def step(self) -> list[Completion]:
        """One step of all running requests, under one version of the weights; returns those that it finished.

        Raises:
          RollcallError: when vLLM gave a request up.
        """
        held, self._held = self._held, []
        return [*held, *self._step()] if self._running else held

    def _step(self) -> list[Completion]:
        return self._take(self._core.get_output().outputs)

    def _settle(self) -> None:
        """Takes what is still being computed, of steps that began ahead: it belongs to the weights until now."""
        core = self._core.engine_core
        while core.batch_queue:
            future, scheduled, _ = core.batch_queue.pop()
            outputs = core.scheduler.update_from_output(scheduled, future.result()).get(0)
            self._held += self._take(outputs.outputs if outputs is not None else [])

    def _take(self, outputs: Sequence[Any]) -> list[Completion]:
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
        load, self._load = self._load, LoadSums()
        return replace(load.mean(), canary_nats=self._canary_nats, canary_bound_nats=self._canary_bound_nats)

    def rest(self) -> None:
        """Nothing is to be generated for a while: where it may, it gives the memory of keys and values back until
        something is, or new weights come. What the prefix cache held is lost."""
        if self._may_sleep and not self._sleeps and not self.num_unfinished:
            self._settle()
            self._core.engine_core.pause_scheduler(mode="abort", clear_cache=True)
            self._core.release_kv_cache_memory()
            self._sleeps = True

    def _wake(self) -> None:
        if self._sleeps:
            self._core.wake_up()
            self._sleeps = False

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
          EngineMismatch: when this model's weights do not arrive whole or as they were published, or give other
            log-probabilities than their canary; from an engine's first load also when they cannot be loaded.
          Exception: from vLLM; the model is half loaded then, and this engine must not be used again.
        """
        self._settle()
        self._weights.load(weights, prefix=prefix)
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
        load, self._load = self._load, LoadSums()
        running = self._admit("", token_ids, self._scored, cache_salt="scored")
        waiting, limit = self._scheduler.waiting, self._scheduler.max_num_active_reqs
        request = self._scheduler.requests[str(self._count)]
        waiting.remove_request(request)  # it goes first, and has a seat of its own: nobody waits for it for long
        waiting.prepend_request(request)
        self._scheduler.max_num_active_reqs = limit + 1
        try:
            while running.prompt_logprobs is None:
                self._held += [completion for completion in self._step() if completion.request_id]
        finally:
            self._load, self._scheduler.max_num_active_reqs = load, limit
        return running.prompt_logprobs

    def receive(self, offer: WeightsOffer) -> int:
        """As `load`, with weights that are sent to vLLM's own transfer engine. Returns their epoch.

        Raises:
          EngineMismatch: as `load`.
          Exception: from vLLM or the sender; the model may be half loaded then, as after `load`.
        """
        self._settle()
        epoch, version, canary = self._weights.receive(offer)
        self._loaded(epoch, version, canary)
        return epoch

    def _loaded(self, epoch: int, version: int, canary: Canary | None) -> None:
        # Numbers come again after a restore, for other weights: a version is only known with its epoch.
        self._label = f"{epoch}.{version}"
        self.version = version
        if canary is not None:
            try:
                self.check(canary)
            except RollcallError:
                raise
            except Exception as error:
                if not self._weights.is_first:
                    raise
                raise EngineMismatch(
                    f"{self._weights.model}: vLLM cannot compute this model: {in_words(error)}"
                ) from error
        self._weights.is_first = False  # last: an engine that did not pass is none

    def check(self, canary: Canary) -> float:
        """How far this engine is from what the learner says under the weights loaded last: the mean difference of their
        log-probabilities of the same tokens, in nats.

        Raises:
          EngineMismatch: when it is beyond what rounding explains.
        """
        said = self.prompt_logprobs(canary.token_ids.tolist())
        bound = bound_of(self.dtype, canary.dtype, on_gpu=vllm_weight_transfer.has_gpu())
        nats = check_canary(
            canary, said, bound=bound, version=self.version, model=self._weights.model, dtype=self.dtype
        )
        self._canary_nats, self._canary_bound_nats = nats, bound
        return nats

    def close(self) -> None:
        self._core.shutdown()
