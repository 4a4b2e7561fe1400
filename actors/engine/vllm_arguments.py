"""What we ask of vLLM: an engine's arguments, how tokens are drawn, and what it reads from the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollcall.actors.engine import vllm_weight_transfer
from rollcall.actors.engine.settings import EngineConfig
from rollcall.actors.engine.vllm_weights import WORKER_EXTENSION
from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages.sampling import SamplingConfig

PREFILL_TOKENS = 8192  # of one step, at the most
_LARGEST_GRAPH = 512  # vLLM's own, by default


def refuse_without_gpu(config: EngineConfig) -> None:
    """Raises RollcallError: for what only a GPU can do, or one GPU."""
    if config.tensor_parallel_size > 1 and config.weight_transfer != "object_store":
        raise RollcallError(
            f"actors.engine.weight_transfer={config.weight_transfer} sends to one GPU, and tensor_parallel_size is "
            f"{config.tensor_parallel_size}: use object_store"
        )
    if vllm_weight_transfer.has_gpu():
        return
    without = "and this engine's machine has none for torch"
    if config.weight_transfer != "object_store":
        raise RollcallError(
            f"actors.engine.weight_transfer={config.weight_transfer} sends weights from GPU to GPU, {without}: use "
            "object_store"
        )
    if config.sleep:
        raise RollcallError(f"actors.engine.sleep=true gives a GPU's memory back, {without}: set it to false")


def engine_arguments(model_directory: Path, config: EngineConfig) -> Any:
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs

    if vllm_weight_transfer.has_gpu():
        arguments: dict[str, Any] = {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enforce_eager": False,
            "enable_sleep_mode": config.sleep,
            "compilation_config": _graphs(config),
            # Two steps at once: `VllmEngine` finishes what is under way before weights change.
            "async_scheduling": config.async_scheduling,
        }
    else:
        # A prompt that is cut between two steps makes vLLM rewind the request's generator: CPU generators cannot.
        arguments = {"enable_chunked_prefill": False, "enforce_eager": config.enforce_eager, "async_scheduling": False}
    if config.tensor_parallel_size > 1:
        arguments |= {"tensor_parallel_size": config.tensor_parallel_size, "distributed_executor_backend": "mp"}
    ours = config.weight_transfer == "object_store"
    return EngineArgs(
        model=str(model_directory),
        skip_tokenizer_init=True,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs + 1,  # a seat more: see prompt_logprobs
        use_tqdm_on_load=False,
        max_num_batched_tokens=max(PREFILL_TOKENS, config.max_model_len),
        logprobs_mode="processed_logprobs",  # the default's ignore temperature and nucleus
        weight_transfer_config=WeightTransferConfig(
            backend=vllm_weight_transfer.register() if ours else config.weight_transfer
        ),
        worker_extension_cls=WORKER_EXTENSION,
        disable_log_stats=True,
        seed=0,
        **arguments,
    )


def _graphs(config: EngineConfig) -> dict[str, Any]:
    """A step of few tokens is hundreds of small kernels, which take longer to start than to run: CUDA graphs, for every
    number of requests, with a compiled model or without."""
    graphs: dict[str, Any] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"} if config.enforce_eager else {}
    if config.max_num_seqs >= _LARGEST_GRAPH:
        graphs["max_cudagraph_capture_size"] = (config.max_num_seqs // 16 + 1) * 16
    return graphs


def sampling_parameters(
    sampling: SamplingConfig, stop_token_ids: Sequence[int], more_stops: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """vLLM's parameters of a request that is sampled, of a greedy one, and of one whose prompt alone is scored."""
    from vllm.sampling_params import SamplingParams

    every: dict[str, Any] = {"logprobs": 0, "detokenize": False}  # log-probabilities of the sampled token alone
    stops = [] if sampling.ignore_eos else list(stop_token_ids)
    ends: dict[str, Any] = {"ignore_eos": sampling.ignore_eos, "stop_token_ids": stops, **every}
    sampled = SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, **ends)
    greedy = SamplingParams(temperature=0.0, **ends)
    for parameters in (sampled, greedy):
        parameters.update_from_generation_config(more_stops)
    alone: dict[str, Any] = {"prompt_logprobs": 0, "max_tokens": 1, "skip_reading_prefix_cache": True}
    return sampled, greedy, SamplingParams(temperature=0.0, ignore_eos=True, **alone, **every)


def environment(config: EngineConfig, threads: int) -> dict[str, str]:
    """vLLM reads these once, when it is first imported or its first engine is built."""
    unless_set = {
        # It listens at a dozen ports, for processes of its own, all on this machine; gloo asks nobody who he is.
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {
        **{name: value for name, value in unless_set.items() if name not in os.environ},
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core in this process: we own its steps
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of an engine's further processes; this one has threads
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every engine of a machine binds to the same cores
        "OMP_NUM_THREADS": str(threads),
    }


def set_environment(config: EngineConfig, threads: int) -> None:
    """Of this process."""
    os.environ.update(environment(config, threads))
