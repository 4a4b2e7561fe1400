"""`rollcall bench weights`: how long a new version of the weights takes from the learner's parameters into an actor's,
through the object store, against a plain copy of the same bytes. The production processes, with nothing else to do."""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

from rollcall.actors.engine.settings import EngineConfig
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.drive.online import KEEP_VERSIONS
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster import connect
from rollcall.deploy.runtimes.on_ray.weights import ParameterServerProcess, PrefetchedWeights, RayWeightsSource
from rollcall.deploy.tools.bench.aside import Aside
from rollcall.deploy.tools.bench.result import achieved_line, bound_line, last_lines, say, tell
from rollcall.learners.models.flat import flatten_module, load_module_weights, module_weights
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model

MODEL = "policy"
EPOCH = 1
VOCABULARY = 64
MEGABYTE = 1_000_000
WARM_UP = 2  # publications that are not counted: the object store's pages are touched for the first time
ROUNDS = 3  # publications in each repeat
WAIT_TIMEOUT_S = 60.0
POLL_S = 0.0005  # between looks for weights that are at hand, in place of an engine's steps
# Qwen3s for `--engine`, by their megabytes: what learners/models/language/tiny_model.py takes.
ENGINE_MODELS: Mapping[int, Mapping[str, Any]] = {
    1: {"hidden_size": 64, "num_layers": 4, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 224},
    10: {"hidden_size": 192, "num_layers": 6, "num_heads": 6, "num_kv_heads": 3, "intermediate_size": 528},
}


def qwen3_like(size_bytes: int) -> nn.Module:
    """Random float32 parameters in the shapes of a Qwen3 of about that size, 11 tensors a layer. Computes nothing."""
    num_layers = 4 if size_bytes < 4 * MEGABYTE else 6 if size_bytes < 40 * MEGABYTE else 12
    width = max(8, 8 * round(math.sqrt(size_bytes / 4 / (12 * num_layers)) / 8))  # 12 width^2 parameters a layer
    shapes = {"q": (width, width), "k": (width, width // 2), "v": (width, width // 2), "o": (width, width)}
    shapes |= {"gate": (width, 3 * width), "up": (width, 3 * width), "down": (3 * width, width)}

    def layer() -> nn.Module:
        linear = {f"{name}_proj": nn.Linear(*shape, bias=False) for name, shape in shapes.items()}
        norms = {name: nn.RMSNorm(32) for name in ("q_norm", "k_norm")}
        norms |= {name: nn.RMSNorm(width) for name in ("input_layernorm", "post_attention_layernorm")}
        return nn.ModuleDict({**linear, **norms})

    layers = nn.ModuleList(layer() for _ in range(num_layers))
    return nn.ModuleDict({"embed_tokens": nn.Embedding(VOCABULARY, width), "layers": layers})


class Publisher:
    """The learner's end: a flattened model, read out as a version of the weights."""

    def __init__(self, size_bytes: int) -> None:
        torch.set_num_threads(1)
        self._models = {MODEL: qwen3_like(size_bytes)}
        flatten_module(self._models[MODEL])

    def weights(self, version: int) -> tuple[tuple[float, float], Weights]:
        """(when it began, when they were read out), and the weights. Clocks of one machine are one clock."""
        began = time.monotonic()
        weights = module_weights(self._models, MODEL, epoch=EPOCH, version=version)
        return (began, time.monotonic()), weights


class Receiver:
    """The actor's end: what a generation actor's process does, with a module in place of its engine."""

    def __init__(self, server: Any, size_bytes: int) -> None:
        torch.set_num_threads(1)
        self._model = qwen3_like(size_bytes)
        flatten_module(self._model)
        self._source = PrefetchedWeights(RayWeightsSource(server), "bench")
        self._source.use_epoch(EPOCH)

    def receive(self, version: int) -> tuple[float, float]:
        """When the version was at hand (its checksum verified by the server), and when it was in the parameters."""
        weights = self._wait(version)
        received = time.monotonic()
        load_module_weights(self._model, weights, name=MODEL)
        return received, time.monotonic()

    def alone(self, version: int) -> dict[str, float]:
        """Seconds of single operations on the same bytes, in memory that was touched before."""
        weights = self._wait(version)
        buffer = weights.buffers["float32"]
        target = np.zeros_like(buffer)
        np.copyto(target, buffer)
        seconds = {"copy": _timed(partial(np.copyto, target, buffer)), "checksum": _timed(weights.compute_checksum)}
        return {**seconds, "store": _timed(partial(ray.put, weights))}

    def _wait(self, version: int) -> Weights:
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while time.monotonic() < deadline:
            weights = self._source.latest(epoch=EPOCH, newer_than=version - 1, timeout_s=0.0)
            if weights is not None:
                assert isinstance(weights, Weights)
                return weights
            time.sleep(POLL_S)
        raise TimeoutError(f"version {version} did not come within {WAIT_TIMEOUT_S:.0f} s")


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class EngineLoading:
    """Seconds in which a real engine takes weights that are at hand."""

    def __init__(self, directory: Path) -> None:
        sampling = SamplingConfig()
        config = EngineConfig(max_model_len=32, max_num_seqs=8, enforce_eager=True)
        self._engine = VllmEngine(directory, config, sampling=sampling, stop_token_ids=[1], threads=1)
        self._models = {MODEL: TokenPolicy(load_policy_model(directory, LMPolicyConfig()), sampling)}

    def __call__(self, version: int) -> tuple[int, float]:
        """Bytes, and seconds."""
        weights = module_weights(self._models, MODEL, epoch=EPOCH, version=version)
        return weights.size_bytes, _timed(partial(self._engine.load, weights))


def main(args: argparse.Namespace) -> int:
    """Runs the benchmark and prints its result. `args`: as arguments.py makes them."""
    sizes = _sizes(args.sizes)
    cluster = connect(num_cpus=2)
    try:
        measured = []
        for size in sizes:
            measured.append(summarise(_publications(round(size * MEGABYTE), args.repeats * ROUNDS)))
            say(_line(measured[-1]))
    finally:
        cluster.close()
    result = _result(measured)
    result["engine_load"] = _engine_loads() if args.engine else []
    result["settings"] = {"sizes": list(sizes), "repeats": args.repeats, "rounds": ROUNDS, "engine": args.engine}
    return tell(result, _table, args)


def _sizes(text: str) -> list[float]:
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(0.01 <= size <= 200 for size in sizes):
        raise BadInput(f"--sizes = {text!r} (command line): must be megabytes between 0.01 and 200, such as 1,10,100")
    return sizes


def _publications(size_bytes: int, count: int) -> list[dict[str, float]]:
    """Publishes versions one by one; of each, when what was done, and the single operations measured beside it."""

    def spawn(process: type, *arguments: Any, **options: Any) -> Any:
        remote: Any = ray.remote(process)
        return remote.options(**options).remote(*arguments)

    server = spawn(ParameterServerProcess, KEEP_VERSIONS, num_cpus=0, max_concurrency=9)
    publisher = spawn(Publisher, size_bytes, num_cpus=1)
    receiver = spawn(Receiver, server, size_bytes, num_cpus=1)
    publications = []
    for version in range(WARM_UP + count):
        arrival = receiver.receive.remote(version)
        stamps, weights = publisher.weights.options(num_returns=2).remote(version)
        began, read_out = ray.get(stamps, timeout=WAIT_TIMEOUT_S)
        handed_over = time.monotonic()
        ray.get(server.publish.remote(weights, [weights]), timeout=WAIT_TIMEOUT_S)
        published = time.monotonic()
        received, applied = ray.get(arrival, timeout=WAIT_TIMEOUT_S)
        alone = ray.get(receiver.alone.remote(version), timeout=WAIT_TIMEOUT_S)
        whens = {"began": began, "read_out": read_out, "handed_over": handed_over, "published": published}
        whens |= {"received": received, "applied": applied}
        size = ray.get(weights, timeout=WAIT_TIMEOUT_S).size_bytes
        publications.append({**whens, **alone, "size_bytes": size})
    for handle in (publisher, receiver, server):
        ray.kill(handle)
    return publications[WARM_UP:]


def summarise(publications: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Milliseconds of the publication that took the median time: publish, transfer, checksum and apply add up to it.

    publish: the learner's flat copy, and that copy into the object store, where the driver hears of it. transfer: the
    server takes it over, wakes the reader, who maps it. checksum: made by the learner, verified by the server. The
    checksum's time is what it takes alone. The single operations after them are medians.
    """
    by_total = sorted(publications, key=lambda item: item["applied"] - item["began"])
    item = by_total[(len(by_total) - 1) // 2]
    alone = {name: statistics.median(item[name] for item in publications) for name in ("copy", "checksum", "store")}
    total_s, checksum_s = item["applied"] - item["began"], alone["checksum"]
    seconds = {
        "publish": item["handed_over"] - item["began"] - checksum_s,
        "transfer": item["received"] - item["handed_over"] - checksum_s,
        "checksum": 2 * checksum_s,
        "apply": item["applied"] - item["received"],
        "total": total_s,
        # Of those, more closely, and single operations for comparison.
        "flat_copy": item["read_out"] - item["began"] - checksum_s,
        "into_store": item["handed_over"] - item["read_out"],
        "server_publish": item["published"] - item["handed_over"],
        "ray_put_alone": alone["store"],
        "copy": alone["copy"],
    }
    milliseconds = {f"{name}_ms": round(1e3 * value, 3) for name, value in seconds.items()}
    return {"size_bytes": item["size_bytes"], "ratio": round(alone["copy"] / total_s, 4), **milliseconds}


def _result(measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """In the terms of every benchmark, for the largest model."""
    largest = max(measured, key=lambda item: item["size_bytes"])
    megabytes = largest["size_bytes"] / MEGABYTE
    parts = {name: largest[f"{name}_ms"] for name in ("publish", "transfer", "checksum", "apply")}
    shares = ", ".join(f"{name} {ms:.1f} ms" for name, ms in sorted(parts.items(), key=lambda part: -part[1]))
    return {
        "bound": round(1e3 * megabytes / largest["copy_ms"]),
        "achieved": round(1e3 * megabytes / largest["total_ms"]),
        "ratio_to_bound": largest["ratio"],
        "peer": None,
        "ratio_to_peer": None,
        "unit": "MB/s",
        "limiter": f"{max(parts, key=parts.__getitem__)} ({shares}; one plain copy {largest['copy_ms']:.1f} ms)",
        "sizes": list(measured),
    }


def _engine_loads() -> list[dict[str, float]]:
    """vLLM's own time to take new weights, for models of 1 and 10 MB."""
    loads = []
    for megabytes, shape in ENGINE_MODELS.items():
        say(f"starting an engine with a model of {megabytes} MB ...")
        with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as folder:
            write_tiny_model(Path(folder), alphabet="0123456789+=", seed=0, **shape)
            engine = Aside("the engine", EngineLoading, Path(folder))
            try:
                timed = [engine(version) for version in range(WARM_UP + ROUNDS)][WARM_UP:]
            finally:
                engine.close()
        load_ms = 1e3 * statistics.median(seconds for _, seconds in timed)
        loads.append({"size_bytes": timed[0][0], "load_ms": round(load_ms, 3)})
    return loads


def _line(item: Mapping[str, float]) -> str:
    return (
        f"{item['size_bytes'] / MEGABYTE:7.1f} MB   {item['total_ms']:8.2f} ms from publishing to applied: publish "
        f"{item['publish_ms']:.2f} (flat copy {item['flat_copy_ms']:.2f}, into the store {item['into_store_ms']:.2f}), "
        f"transfer and wake {item['transfer_ms']:.2f}, checksum {item['checksum_ms']:.2f}, apply "
        f"{item['apply_ms']:.2f}; a plain copy {item['copy_ms']:.2f}: {item['ratio']:.3f} of the total"
    )


def _table(result: Mapping[str, Any]) -> list[str]:
    return [
        *map(_line, result["sizes"]),
        bound_line(result, "one plain copy of the largest model"),
        achieved_line(result, digits=3),
        *last_lines(result),
        *(
            f"vLLM takes  {load['load_ms']:8.2f} ms to load {load['size_bytes'] / MEGABYTE:.1f} MB"
            for load in result["engine_load"]
        ),
    ]
