"""`rollcall bench reward`: the service under many clients against its model's forward pass alone, interleaved on the
same cores, with the load generator beside it. Every score is checked. Measures the production service and client."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.deploy.tools.bench.aside import Aside
from rollcall.deploy.tools.bench.result import achieved_line, bound_line, last_lines, say, tell
from rollcall.deploy.tools.bench.reward_load import LONGEST, MODEL, SHORTEST, Asked, Clients, OpenLoop, length_of
from rollcall.deploy.tools.bench.reward_model import Forward, write_classifier
from rollcall.reward_service.service.private import start_private
from rollcall.reward_service.service.service_config import ServiceConfig

NUM_PROCESSES = 4  # that the clients are shared out over
RAW_S = 8.0  # how long the model alone is measured, before, between and after
WARM_UP_S = 5.0
OVERLOAD_S = 30.0
OVERLOAD = 2.0  # times the measured throughput
OVERLOAD_DEADLINES = 2.0  # deadline of a request, in full batches
CACHE_ITEMS = 40
TOLERANCE = 1e-3  # of a score against a direct forward pass; scores spread over several units
NUMBERS = 1_000_000  # items of each process
BATCHING: Mapping[str, Any] = {}  # the service's own defaults


class Memory:
    """The service's resident memory, looked at once in a while."""

    def __init__(self, pid: int) -> None:
        self.bytes: list[int] = []
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.bytes.append(self._process.memory_info().rss)

    def close(self) -> tuple[float, float]:
        """Megabytes, at the beginning and at the end: medians of the first and the last fifth."""
        self._stop.set()
        self._thread.join()
        part = max(1, len(self.bytes) // 5)
        return tuple(round(statistics.median(p) / 1e6, 1) for p in (self.bytes[:part], self.bytes[-part:]))  # type: ignore[return-value]


@dataclass
class Load:
    """What the clients saw in all repeats."""

    asked: list[Asked] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    clients_cpu_s: float = 0.0
    service_cpu_s: float = 0.0
    seconds: float = 0.0


class Measurement:
    """One benchmark, from its model to its result."""

    def __init__(self, args: argparse.Namespace, scratch: Path, stack: ExitStack) -> None:
        self._args = args
        self._threads = args.threads
        model = scratch / "model"
        say("making the model ...")
        self._num_parameters = write_classifier(model)
        scorer = {"kind": "reward_model", "path": str(model), "device": "cpu", "threads": self._threads}
        config = ServiceConfig.model_validate({"models": {MODEL: scorer}, "batching": BATCHING})
        self._batching = config.batching
        say("starting the service, the model alone and the clients ...")
        self.service = start_private(config, scratch / "service")
        stack.callback(self.service.stop)
        self._raw = Aside("the model alone", Forward, model, self._threads, self._batching, args.clients)
        stack.callback(self._raw.close)
        shares = [len(range(i, args.clients, NUM_PROCESSES)) for i in range(NUM_PROCESSES)]
        token = self.service.token.get_secret_value()
        self._clients = []
        for index, share in enumerate(shares):
            numbers = range(index * NUMBERS, (index + 1) * NUMBERS)
            if share:
                self._clients.append(Aside("clients", Clients, self.service.url, token, numbers, share))
                stack.callback(self._clients[-1].close)
        numbers = range(NUM_PROCESSES * NUMBERS, (NUM_PROCESSES + 1) * NUMBERS)
        self._open = Aside("the open loop", OpenLoop, self.service.url, token, numbers)
        stack.callback(self._open.close)

    def result(self) -> dict[str, Any]:
        say("warming up ...")
        self._raw("throughput", 2.0)
        self._ask(WARM_UP_S)
        raw, load = [self._raw("throughput", RAW_S)], Load()
        memory = Memory(self.service.pid)
        for repeat in range(self._args.repeats):
            self._loaded(load, self._args.seconds / self._args.repeats)
            raw.append(self._raw("throughput", RAW_S))
            line = f"model alone {raw[-1][0]:,.0f}, service {load.tokens_per_s[-1]:,.0f} tokens/s"
            say(f"repeat {repeat + 1}/{self._args.repeats}: {line}")
        megabytes = memory.close()
        full_batch_s = self._raw("full_batch_s")
        overload = self._overload(statistics.median(load.tokens_per_s), full_batch_s)
        cache = self._cached([one.number for one in load.asked[:CACHE_ITEMS]])
        say("checking every score ...")
        checked = self._checked([*load.asked, *overload.pop("asked")])
        latencies = sorted(one.latency_s for one in load.asked)
        p50, p99 = (latencies[min(len(latencies) - 1, int(share * len(latencies)))] for share in (0.5, 0.99))
        return {
            **_ratios(raw, load, self._threads),
            "latency_s": {"p50": round(p50, 3), "p99": round(p99, 3)},
            "full_batch_s": round(full_batch_s, 3),
            "p99_in_full_batches": round(p99 / full_batch_s, 2),
            "memory_mb": {"start": megabytes[0], "end": megabytes[1]},
            "scores": checked,
            "overload": overload,
            "cache": cache,
            "all": {"raw": [round(x) for x, _ in raw], "service": [round(x) for x in load.tokens_per_s]},
            "settings": self._settings(),
        }

    def _ask(self, seconds: float) -> tuple[list[Asked], float]:
        """All clients at once; what became of their requests, and their CPU seconds."""
        with ThreadPoolExecutor(len(self._clients)) as pool:
            answers = list(pool.map(lambda clients: clients(seconds), self._clients))
        return [one for asked, _ in answers for one in asked], sum(cpu for _, cpu in answers)

    def _loaded(self, load: Load, seconds: float) -> None:
        process = psutil.Process(self.service.pid)
        cpu, began = _cpu_s(process), time.monotonic()
        asked, clients_cpu_s = self._ask(seconds)
        took = time.monotonic() - began  # until the last answer: what was begun is finished, and counts
        load.asked += asked
        load.tokens_per_s.append(sum(length_of(one.number) for one in asked if one.score is not None) / took)
        load.clients_cpu_s += clients_cpu_s
        load.service_cpu_s += _cpu_s(process) - cpu
        load.seconds += took

    def _overload(self, tokens_per_s: float, full_batch_s: float) -> dict[str, Any]:
        """Twice what it can do, without mercy."""
        mean = statistics.mean(length_of(number) for number in range(2000))
        per_second, deadline_s = OVERLOAD * tokens_per_s / mean, OVERLOAD_DEADLINES * full_batch_s
        say(f"{per_second:.0f} requests a second with a deadline of {deadline_s:.1f} s ...")
        asked = self._open(OVERLOAD_S, per_second, deadline_s)
        accepted = [one for one in asked if one.status != 429]
        kept = [one for one in accepted if one.status == 200 and one.latency_s <= deadline_s]
        statuses = sorted({one.status for one in asked})
        return {
            "asked": asked,
            "requests": len(asked),
            "deadline_s": round(deadline_s, 3),
            "statuses": {str(status): sum(one.status == status for one in asked) for status in statuses},
            "refused_429": round(1 - len(accepted) / len(asked), 3),
            "accepted_within_deadline": round(len(kept) / max(1, len(accepted)), 4),
            "goodput_tokens_per_s": round(sum(length_of(one.number) for one in kept) / OVERLOAD_S),
        }

    def _cached(self, numbers: Sequence[int]) -> dict[str, float]:
        """One client, one item after the other: items that were never asked for, then the same again."""
        alone = Clients(self.service.url, self.service.token.get_secret_value(), range(0), 1)
        fresh = [(NUM_PROCESSES + 1) * NUMBERS + number for number in numbers]
        try:
            alone.each(numbers[:2])  # the connection
            misses, hits = ([one.latency_s for one in alone.each(fresh)] for _ in range(2))
        finally:
            alone.close()
        miss_ms, hit_ms = (1e3 * statistics.median(latencies) for latencies in (misses, hits))
        return {"miss_ms": round(miss_ms, 2), "hit_ms": round(hit_ms, 2), "times_faster": round(miss_ms / hit_ms, 1)}

    def _checked(self, asked: Sequence[Asked]) -> dict[str, Any]:
        scored = [one for one in asked if one.score is not None]
        direct = self._raw("scores", [one.number for one in scored])
        errors = [abs(one.score - score) for one, score in zip(scored, direct, strict=True) if one.score is not None]
        return {
            "checked": len(scored),
            "wrong": sum(error > TOLERANCE for error in errors),
            "unanswered": sum(one.status == 0 for one in asked)
            + sum(o.status == 200 and o.score is None for o in asked),
            "largest_error": float(f"{max(errors):.2g}"),
            "std": round(statistics.pstdev(direct), 3),
        }

    def _settings(self) -> dict[str, Any]:
        args = self._args
        return {
            **{"seconds": args.seconds, "clients": args.clients, "repeats": args.repeats, "threads": self._threads},
            **{"cores": usable_cores(), "parameters": self._num_parameters, "tokens": [SHORTEST, LONGEST]},
            "batching": self._batching.model_dump(),
        }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ratios(raw: Sequence[tuple[float, float]], load: Load, threads: int) -> dict[str, Any]:
    """In the terms of every benchmark; and by CPU time, which other programs on the machine disturb less."""
    bound, achieved = statistics.median(each[0] for each in raw), statistics.median(load.tokens_per_s)
    service, clients = load.service_cpu_s / load.seconds, load.clients_cpu_s / load.seconds
    tokens = sum(length_of(one.number) for one in load.asked if one.score is not None)
    by_cpu = tokens / load.service_cpu_s / statistics.median(each[1] for each in raw)
    return {
        "bound": round(bound),
        "achieved": round(achieved),
        "ratio_to_bound": round(achieved / bound, 3),
        "ratio_by_cpu_s": round(by_cpu, 3),
        "peer": None,
        "ratio_to_peer": None,
        "unit": "tokens/s",
        "limiter": f"the forward pass, on {threads} thread{'s' * (threads > 1)}; the service used {service:.2f} cores, "
        f"the clients beside it {clients:.2f}",
        "requests_per_s": round(len(load.asked) / load.seconds, 1),
        "cpu_cores": {"service": round(service, 3), "clients": round(clients, 3)},
    }


def main(args: argparse.Namespace) -> int:
    """Runs the benchmark and prints its result. `args`: as arguments.py makes them."""
    if args.clients < 1 or args.seconds <= 0 or args.threads < 1:
        raise BadInput("--clients, --seconds and --threads (command line): must be more than 0")
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as folder, ExitStack() as stack:
        result = Measurement(args, Path(folder), stack).result()
    return tell(result, _table, args)


def _table(result: Mapping[str, Any]) -> list[str]:
    settings, over, cache, scores = (result[name] for name in ("settings", "overload", "cache", "scores"))
    memory, latency = result["memory_mb"], result["latency_s"]
    return [
        f"settings    {settings['parameters']:,} parameters, {SHORTEST} to {LONGEST} tokens, {settings['clients']} "
        f"clients, {settings['seconds']:g} s in {settings['repeats']} repeats, threads: {settings['threads']}",
        bound_line(result, "the forward pass alone, batched alike"),
        f"{achieved_line(result)} ({result['ratio_by_cpu_s']:.2f} by CPU time), {result['requests_per_s']} requests/s",
        f"latency     p50 {latency['p50']:.2f} s, p99 {latency['p99']:.2f} s = {result['p99_in_full_batches']:.1f} "
        f"full batches of {result['full_batch_s']:.2f} s",
        *last_lines(result),
        f"scores      {scores['wrong']} wrong of {scores['checked']}, {scores['unanswered']} unanswered; largest error "
        f"{scores['largest_error']:g}, scores' std {scores['std']:g}",
        f"memory      {memory['start']:.0f} MB at the start, {memory['end']:.0f} MB at the end",
        f"overload    {OVERLOAD:g} times that: {over['refused_429']:.0%} refused with 429, of the others "
        f"{over['accepted_within_deadline']:.1%} within {over['deadline_s']:.1f} s",
        f"cache       a hit takes {cache['hit_ms']:.1f} ms, a miss {cache['miss_ms']:.0f} ms: "
        f"{cache['times_faster']:.0f} times faster",
    ]
