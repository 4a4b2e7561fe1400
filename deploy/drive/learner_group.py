"""The other learner processes of a run on a data set: each builds the same run from the run's directory, and does with
process 0, which is the driver, what takes all of them. Knows processes; must never know what is learnt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import IO, Any

import torch

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.kinds.shared_run import SharedRun
from rollcall.deploy.runtimes.loopback import INTERFACES, where_unset
from rollcall.learners.collective import Collective
from rollcall.learners.loop.learner import resolve_device

READY = "ready"  # what a process says once it has read the run
START_S = 300.0  # for one to be that far
END_S = 20.0
_MEMBER = "rollcall.deploy.drive.learner_member"


class Others:
    """Processes 1, 2, ... of a learner; none where the run has one process."""

    def __init__(self, processes: tuple[subprocess.Popen[str], ...] = (), logs: Path = Path()) -> None:
        self.processes = processes
        self.logs = logs

    def tell(self, what: str, value: object = None) -> None:
        """What this process does next, and they with it; they take it in turn.

        Raises:
          RollcallError: when one of them has ended.
        """
        line = json.dumps([what, value]) + "\n"
        for process in self.processes:
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except OSError:
                raise self.lost() from None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever fails in here fails for want of one of them, where one of them has ended.

        Raises:
          RollcallError: saying which, and where its log is.
        """
        try:
            yield
        except RuntimeError as error:
            if lost := self._ended():
                raise self.lost(lost) from error
            raise

    def lost(self, lost: tuple[int, int] | None = None, *, remedy: str = "resume the run") -> RollcallError:
        """What to raise when one of them is gone, or answers no more; `lost`: its rank and exit code."""
        lost = lost or self._ended()
        if lost is None:
            return RollcallError(f"a learner process answers no more ({_log_of(self.logs, 1)} and others): {remedy}")
        rank, code = lost
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        log = _log_of(self.logs, rank)
        return RollcallError(f"learner process {rank} {how} ({last_line(log)}; {log}): {remedy}")

    def end(self) -> None:
        """They end when they are told nothing more; whoever does not is killed."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(OSError):  # it may be gone, with its end of the pipe
                process.stdin.write(json.dumps(["end", None]) + "\n")
                process.stdin.close()
        deadline = monotonic() + END_S
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _ended(self) -> tuple[int, int] | None:
        """(rank, exit code) of one that has. What it was in the middle of fails a moment before it is gone."""
        deadline = monotonic() + 2.0
        while self.processes:
            codes = [process.poll() for process in self.processes]
            found = next(((rank, code) for rank, code in enumerate(codes, start=1) if code is not None), None)
            if found is not None or monotonic() > deadline:
                return found
            threading.Event().wait(0.05)
        return None


@contextmanager
def learners_of(run: object, config: Any, directory: Path) -> Iterator[Others]:
    """Starts the other processes of a run that has several, and meets them. They end with the context. `config`: the
    run's.

    Raises:
      BadInput: when there are too few GPUs for them.
      RollcallError: when one of them does not start.
    """
    if not isinstance(run, SharedRun) or run.num_processes == 1:
        yield Others()
        return
    number, logs = run.num_processes, directory / "logs"
    name = config.learner.device
    device = resolve_device(name)
    check_devices(name, device, number)
    with where_unset(INTERFACES), tempfile.TemporaryDirectory(prefix="rollcall-learners-") as folder:
        meeting = f"file://{folder}/meeting"
        others = Others(tuple(_start(directory, rank, number, meeting) for rank in range(1, number)), logs)
        try:
            _wait_until_ready(others, number)
            others.tell("meet")
            with others.watched():
                collective = Collective.join(rank=0, num_processes=number, address=meeting, device=device)
            run.share(collective)
            yield others
        finally:
            if torch.distributed.is_initialized():  # whoever waits for us there hears of it
                torch.distributed.destroy_process_group()
            others.end()


def check_devices(name: str, device: torch.device, number: int) -> None:
    """Raises BadInput: where several processes cannot have a device each."""
    if device.type == "cpu":
        return
    if ":" in name:
        raise BadInput(f"learner.device={name}: {number} learner processes take a GPU each: use auto, or one process")
    if torch.cuda.device_count() < number:
        raise BadInput(
            f"learner.num_processes={number}: each takes a GPU, and there are {torch.cuda.device_count()}: use fewer, "
            "or learner.device=cpu"
        )


def _start(directory: Path, rank: int, number: int, meeting: str) -> subprocess.Popen[str]:
    log = _log_of(directory / "logs", rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [str(os.getpid()), str(directory), str(rank), str(number), meeting]
    with log.open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", _MEMBER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **_own_gpu(rank)},
            text=True,
        )


def _own_gpu(rank: int) -> dict[str, str]:
    """Process 0 has the first."""
    if not torch.cuda.is_available():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    gpus = [gpu for gpu in visible.split(",") if gpu]
    return {"CUDA_VISIBLE_DEVICES": gpus[rank]} if rank < len(gpus) else {}


def _wait_until_ready(others: Others, number: int) -> None:
    """Raises RollcallError: when one has ended, or takes too long."""
    said: SimpleQueue[str] = SimpleQueue()
    for process in others.processes:
        assert process.stdout is not None
        threading.Thread(target=_hear, args=(process.stdout, said), daemon=True).start()
    deadline = monotonic() + START_S
    for _ in range(1, number):
        try:
            line = said.get(timeout=max(0.0, deadline - monotonic()))
        except Empty:
            raise RollcallError(
                f"a learner process has not started within {START_S:.0f} s: see {_log_of(others.logs, 1)} and others"
            ) from None
        if line.strip() != READY:
            raise others.lost(remedy="see to that, then start the run again")


def _hear(stream: IO[str], said: SimpleQueue[str]) -> None:
    said.put(stream.readline())


def _log_of(logs: Path, rank: int) -> Path:
    return logs / f"learner-{rank}.log"


def last_line(log: Path) -> str:
    """What a process said last, for people."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it left no log"
    return lines[-1].strip()[:300] if lines else "it said nothing"
