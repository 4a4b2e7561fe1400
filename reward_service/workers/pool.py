"""A pool of processes for functions that may hang, explode or die: each job has a deadline and a memory limit, and a
worker that passes either is killed and replaced.

Ours, and not pebble's ProcessPool, which has the deadlines: that one is made of multiprocessing, so that the service
would unpickle what a worker sends that handles texts nobody trusts, and a spawned worker would import the service's
main module and inherit its environment, secrets too. Memory limits, printed output and a job's own children would
still be ours to see to."""

from __future__ import annotations

import json
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from pydantic import JsonValue

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.scorer import Failure
from rollcall.reward_service.workers.printed_output import PrintedOutput
from rollcall.reward_service.workers.worker_process import MAX_FRAME_BYTES
from rollcall.reward_service.workers.workers_config import WorkersConfig

_SECRETS = ("ROLLCALL_REWARD_TOKEN", "ROLLCALL_JUDGE_KEY", "ROLLCALL_REDIS_URL")
_END_S = 2.0


@dataclass(frozen=True, slots=True)
class Done:
    """A job's result."""

    value: Any  # JSON


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    ready: bool = False
    job: int | None = None
    received: bytearray = field(default_factory=bytearray)

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    def send(self, message: object) -> None:
        raw = json.dumps(message).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack("<I", len(raw)) + raw)
        self.process.stdin.flush()

    def receive(self) -> dict[str, JsonValue] | None:
        """What it said, if it has said it all; an empty dictionary when it has ended."""
        assert self.process.stdout is not None
        part = os.read(self.process.stdout.fileno(), 1 << 20)
        self.received += part
        if len(self.received) >= 4:
            (length,) = struct.unpack("<I", self.received[:4])
            if length > MAX_FRAME_BYTES:
                return {}
            if len(self.received) >= 4 + length:
                message: dict[str, JsonValue] = json.loads(bytes(self.received[4 : 4 + length]))
                del self.received[: 4 + length]
                return message
        return None if part else {}


class WorkerPool:
    """`map` is called from one thread at a time; `close` from any.

    Workers are started when they are first needed. PR_SET_PDEATHSIG fires when the thread that forked ends, so all are
    forked by one thread of the pool's own, which lives until `close`.
    """

    def __init__(self, maker: str, settings: JsonValue, config: WorkersConfig, *, trusted: bool = False) -> None:
        """
        Args:
          maker: `module:function`; called in each worker with the settings, it returns the function that takes jobs.
          trusted: the function is the operator's own: it inherits the environment without the service's secrets, and
            what it prints, with the tracebacks of what it raises, goes to our standard error.
        """
        self._maker, self._settings, self._config = maker, settings, config
        self._environment = _environment(trusted)
        self._trusted = trusted
        self._output = PrintedOutput() if trusted else None
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker-starter")
        self._workers: list[_Worker] = []
        self._closed = False
        self._changing = threading.Lock()

    def check(self) -> None:
        """Starts one worker and waits for it.

        Raises:
          BadInput: with what the worker says against its function.
        """
        reply = self._map([], at_least=1)
        assert not reply

    def map(self, jobs: Sequence[JsonValue], *, timeouts_s: Sequence[float] | None = None) -> list[Done | Failure]:
        """Each job's result, in their order; a Failure for one that raised, died or took too long."""
        try:
            return self._map(jobs, timeouts_s=timeouts_s)
        except BadInput as error:
            return [Failure("unavailable", str(error)) for _ in jobs]
        except (OSError, ValueError):
            if not self._closed:
                raise
            return [Failure("unavailable", "the scorer is closed") for _ in jobs]

    def close(self) -> None:
        with self._changing:
            self._closed = True
            workers, self._workers = self._workers, []
        for worker in workers:
            _kill(worker)
        self._starter.shutdown()
        if self._output is not None:
            self._output.close()

    def _map(
        self, jobs: Sequence[JsonValue], *, at_least: int = 0, timeouts_s: Sequence[float] | None = None
    ) -> list[Done | Failure]:
        results: dict[int, Done | Failure] = {}
        waiting = deque(range(len(jobs)))
        while len(results) < len(jobs) or (at_least and not any(worker.ready for worker in self._workers)):
            self._hire(min(self._config.num, max(at_least, len(jobs) - len(results))))
            for worker in list(self._workers):
                if worker.idle and waiting:
                    number = waiting.popleft()
                    try:
                        worker.send(jobs[number])
                    except OSError:  # it died while it was idle
                        waiting.appendleft(number)
                        self._dismiss(worker)
                        continue
                    worker.job = number
                    worker.deadline = time.monotonic() + (timeouts_s[number] if timeouts_s else self._config.timeout_s)
            self._step(results)
        return [results[number] for number in range(len(jobs))]

    def _step(self, results: dict[int, Done | Failure]) -> None:
        """Waits for the next thing that happens to a worker."""
        busy = [worker for worker in self._workers if not worker.idle]
        if not busy:
            return
        heard = _readable(busy, min(worker.deadline for worker in busy) - time.monotonic())
        for worker in heard:
            message = worker.receive()
            if message is None:
                continue
            if not worker.ready:
                self._started(worker, message)
                continue
            assert worker.job is not None
            results[worker.job], worker.job = self._result(worker, message), None
            if not message or message.get("spent"):
                self._dismiss(worker)
        for worker in busy:
            if worker not in heard and time.monotonic() >= worker.deadline:
                self._dismiss(worker)
                if worker.job is None:
                    raise BadInput(
                        f"a worker for {self._maker} did not start within {self._config.start_timeout_s:g} s "
                        "(workers.start_timeout_s)"
                    )
                results[worker.job] = Failure(
                    "timeout", f"it took longer than one item may ({self._config.timeout_s:g} s: workers.timeout_s)"
                )

    def _started(self, worker: _Worker, message: Mapping[str, JsonValue]) -> None:
        if message.get("ready"):
            worker.ready = True
            return
        self._dismiss(worker)
        code = worker.process.returncode
        raise BadInput(str(message.get("refused") or f"a worker for {self._maker} ended with {code} while it started"))

    def _result(self, worker: _Worker, message: Mapping[str, JsonValue]) -> Done | Failure:
        if "result" in message:
            return Done(message["result"])
        if "error" in message:
            return Failure("scorer_failed", str(message["error"]))
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(_END_S)
        return Failure("scorer_failed", f"its process ended with {worker.process.returncode}")

    def _hire(self, wanted: int) -> None:
        with self._changing:
            if self._closed:
                raise BadInput("the scorer is closed")
            while len(self._workers) < wanted:
                self._workers.append(self._starter.submit(self._start).result())

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "rollcall.reward_service.workers.worker_process", str(os.getpid()), self._maker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self._output is None else self._output.descriptor,
            env=self._environment,
            start_new_session=True,
        )
        worker = _Worker(process, time.monotonic() + self._config.start_timeout_s)
        with suppress(OSError):  # it died at once: its silence will say so
            worker.send(
                {"settings": self._settings, "memory_bytes": self._config.memory_bytes, "trusted": self._trusted}
            )
        return worker

    def _dismiss(self, worker: _Worker) -> None:
        with self._changing:
            if worker in self._workers:
                self._workers.remove(worker)
        _kill(worker)


def _kill(worker: _Worker) -> None:
    """With everything that it has started and that is still its own."""
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = psutil.Process(worker.process.pid).children(recursive=True)
    worker.process.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, 9)
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    worker.process.wait()
    for stream in (worker.process.stdin, worker.process.stdout):
        with suppress(OSError):
            if stream is not None:
                stream.close()


def _readable(workers: Iterable[_Worker], patience_s: float) -> list[_Worker]:
    with selectors.PollSelector() as selector:  # not select(), which knows the first 1024 descriptors only
        for worker in workers:
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return [key.data for key, _ in selector.select(max(0.0, patience_s))]


def _environment(trusted: bool) -> dict[str, str]:
    kept = os.environ if trusted else {n: os.environ[n] for n in ("PATH", "HOME", "PYTHONPATH") if n in os.environ}
    return {n: v for n, v in kept.items() if n not in _SECRETS} | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
