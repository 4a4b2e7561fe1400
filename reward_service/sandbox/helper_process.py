"""The service's hold on one sandbox: starts the helper process, tells it to run, waits with a deadline, kills it."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollcall.reward_service.sandbox.helper import Job
from rollcall.reward_service.sandbox.limits import Limits

_STARTER = Path(__file__).with_name("start.py")
_UNCOUNTED_PROCESSES = 4  # without a control group each process has the whole memory limit to itself
_START_S = 20.0
_END_S = 5.0
_serials = itertools.count(os.getpid() % 100_000 * 10_000)


class SandboxBroken(Exception):
    """The sandbox itself failed: nothing is known about the code."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How one run ended."""

    exit: int | None  # status; minus a signal's number; None where we ended it
    output: bytes
    ended_for: str = ""  # "time" or "output": the limit that ended it
    cpu_s: float = 0.0


class Helper:
    """One helper process and the sandbox that it makes. Used by one thread, which outlives it."""

    def __init__(
        self,
        python: str,
        layers: Sequence[str],
        limits: Limits,
        role: str,
        arguments: Mapping[str, object],
        runs: Sequence[Mapping[str, int]],
    ) -> None:
        """
        Args:
          role: `module.role`, of the siblings that say what runs inside.
          arguments: of the role.
          runs: descriptors for each run; they are the caller's.

        Raises:
          SandboxBroken: it does not start.
        """
        self._limits = limits
        self._seen = b""
        values = limits.model_dump(exclude={"wall_s", "output_bytes"})
        if "cgroup" not in layers:
            values["processes"] = min(limits.processes, _UNCOUNTED_PROCESSES)
        roles, _, name = role.partition(".")
        self._scratch = tempfile.mkdtemp(prefix="rollcall-sandbox-")
        self._status, status = os.pipe()
        job = Job(
            scratch=self._scratch,
            layers=layers,
            limits=values,
            status=status,
            serial=next(_serials) % 1_000_000_000,
            role=name,
            arguments=arguments,
            runs=runs,
        )
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-S", "-B", str(_STARTER), roles],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                pass_fds=sorted({status, *(number for run in runs for number in run.values())}),
                start_new_session=True,
            )
        except OSError as error:
            self._release()
            raise SandboxBroken(f"the sandbox's helper does not start: {error}") from None
        finally:
            os.close(status)
        assert self._process.stdin is not None
        self._commands = self._process.stdin
        raw = json.dumps(job._asdict()).encode()
        try:
            self._command(struct.pack("<I", len(raw)) + raw)
        except SandboxBroken:
            self.close()
            raise

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._commands.close()
        for number in (0, signal.SIGTERM, signal.SIGKILL):  # 0: it ends when its commands do
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
                break
        self._release()

    def _release(self) -> None:
        os.close(self._status)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def await_ready(self) -> None:
        """Raises SandboxBroken, with what does not work here."""
        message = self._message(time.monotonic() + _START_S)
        if message is None or "ready" not in message:
            raise SandboxBroken(f"the sandbox does not stand: {(message or {}).get('error', 'no answer')}")

    def begin(self) -> None:
        """Lets the next run begin."""
        self._command(b"n")

    def finish(self, output: int | None) -> RunResult:
        """Waits for the run that has begun, and ends it at its limits. `output` is read meanwhile."""
        deadline = time.monotonic() + self._limits.wall_s
        captured = bytearray()
        ended_for = ""
        while True:
            waited_for = [self._status, *([output] if output is not None else [])]
            ready = _readable(waited_for, deadline)
            if output in ready and not self._capture(output, captured):
                output = None
            elif self._status in ready:
                break
            if not ended_for and len(captured) > self._limits.output_bytes:
                ended_for = "output"
            if not ended_for and time.monotonic() >= deadline:
                ended_for = "time"
            if ended_for:
                return RunResult(None, bytes(captured[: self._limits.output_bytes]), ended_for, self.end()["cpu_s"])
        message = self._ended()
        while output is not None and len(captured) <= self._limits.output_bytes and self._capture(output, captured):
            pass
        if len(captured) > self._limits.output_bytes:
            return RunResult(None, bytes(captured[: self._limits.output_bytes]), "output", message["cpu_s"])
        if message["exit"] == -signal.SIGXCPU or (message["exit"] < 0 and message["cpu_s"] >= self._limits.cpu_s):
            return RunResult(None, bytes(captured), "time", message["cpu_s"])
        return RunResult(message["exit"], bytes(captured), "", message["cpu_s"])

    def end(self) -> dict[str, Any]:
        """Ends the run that has begun, if it has not ended by itself; how it ended."""
        with suppress(OSError):  # the last run has just ended, and the helper with it: it has said how
            self._commands.write(b"k")
            self._commands.flush()
        return self._ended()

    def _ended(self) -> dict[str, Any]:
        message = self._message(time.monotonic() + _END_S)
        if message is None or "run" not in message:
            raise SandboxBroken(f"the sandbox has failed: {(message or {}).get('error', 'its keeper is gone')}")
        return message

    def _command(self, raw: bytes) -> None:
        try:
            self._commands.write(raw)
            self._commands.flush()
        except OSError:
            message = self._message(time.monotonic() + _END_S)
            raise SandboxBroken((message or {}).get("error", "the sandbox's helper has ended")) from None

    def _message(self, deadline: float) -> dict[str, Any] | None:
        """The helper's next line; None when it is late or gone."""
        while b"\n" not in self._seen:
            part = os.read(self._status, 1 << 16) if _readable([self._status], deadline) else b""
            if not part:
                return None
            self._seen += part
        line, _, self._seen = self._seen.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    @staticmethod
    def _capture(output: int, captured: bytearray) -> bool:
        part = os.read(output, 1 << 16)
        captured += part
        return bool(part)


def _readable(descriptors: list[int], deadline: float) -> list[int]:
    poll = select.poll()  # not select(), which knows the first 1024 descriptors only
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]


class Pipes:
    """Descriptors for runs; those given to a sandbox are closed here once it has them."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def pipe(self) -> tuple[int, int]:
        return self._keep(*os.pipe())

    def socket_pair(self) -> tuple[int, int]:
        one, other = socket.socketpair()
        return self._keep(one.detach(), other.detach())

    def sealed_file(self, content: bytes) -> int:
        """To read, by a program that can neither change nor lengthen it."""
        number = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._open.add(number)
        with open(number, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(number, 0, os.SEEK_SET)
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return number

    def close(self, *numbers: int) -> None:
        for number in numbers:
            self._open.remove(number)
            os.close(number)

    def _keep(self, one: int, other: int) -> tuple[int, int]:
        self._open |= {one, other}
        return one, other

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Pipes]:
        pipes = cls()
        try:
            yield pipes
        finally:
            pipes.close(*list(pipes._open))
