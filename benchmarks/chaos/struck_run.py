"""A run under chaos, as processes and files: started, gone on with when its driver is gone, and cleared away."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.chaos import on_path
from benchmarks.chaos.kinds import Kind
from benchmarks.chaos.processes import LEFTOVER_S, children, end_all, lives, members
from benchmarks.chaos.progress import Progress
from benchmarks.chaos.surroundings import Surroundings, gently_end
from benchmarks.proofs import ROLLCALL

STOPPED = 130  # how a run ends that was asked to stop
LET_GO = "Ray does not let go of this process"  # says a driver that ends itself: resume goes on
MARK = "ROLLCALL_CHAOS"  # in the environment of all that the run starts
FOLDER = "CHAOS_FOLDER"  # where the folders of rounds are made; default: where temporary files go
SCORER = "def score(item):\n    return 5.0 + 0 * item.segment.observations.array()[:, 0]\n"


class EndedByItself(Exception):
    """A run whose driver nobody killed."""


class StoppedByOthers(Exception):
    """Somebody else has sent the run a signal: nothing can be said of it."""


class StruckRun:
    """Of one kind, in a folder of its own."""

    def __init__(self, kind: Kind, chance: random.Random, settings: tuple[str, ...]) -> None:
        self._chance = chance
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=os.environ.get(FOLDER)))
        self.armed = self.folder / "armed"
        self.armed.mkdir()
        # Short, as sockets lie in it; nothing of it may be left at the end.
        self.temporary = Path(tempfile.mkdtemp(prefix="ch", dir="/tmp"))
        self.directory = self.folder / "runs" / "run"
        (self.folder / "scoring.py").write_text(SCORER)
        self.place = Surroundings(kind.surroundings, self.folder, self.armed)
        self.command = (*kind.command, "name=run", *self.place.settings, *settings)
        self.progress = Progress(self.directory / "metrics.jsonl")
        self.known: set[psutil.Process] = set()  # whoever was ever seen of it
        self.leftovers: list[str] = []  # of drivers that were killed
        self.resumes = 0
        self.let_go = 0  # drivers that ended themselves, as a cluster that we had struck did not let go of them
        self._driver: subprocess.Popen[bytes] | None = None
        self._old: list[tuple[float, set[psutil.Process]]] = []

    def start(self, *arguments: str) -> None:
        with (self.folder / "output").open("ab") as output:
            self._driver = subprocess.Popen(
                [*ROLLCALL, *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(on_path.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {MARK: str(self.armed), "PYTHONPATH": path, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        return os.environ | {"PYTHONUNBUFFERED": "1"} | ours | self.place.environment

    def members(self) -> dict[str, list[psutil.Process]]:
        """Who is there, by kind."""
        if self._driver is None or self._driver.poll() is not None:
            return {}
        driver = psutil.Process(self._driver.pid)
        self.known |= {driver, *children(driver)}
        return members(driver) | {name: [process] for name, process in self.place.processes().items()}

    @property
    def is_over(self) -> bool:
        """Completed."""
        return self._driver is not None and self._driver.poll() == 0

    @property
    def has_checkpoint(self) -> bool:
        return any(self.directory.glob("checkpoints/step-*/manifest.json"))

    def revive(self) -> None:
        """Where its driver was killed, the run is gone on with, at once or a little later.

        Raises:
          EndedByItself: the driver was not killed.
          StoppedByOthers: it was asked to stop, and not by us.
        """
        self.place.revive()
        assert self._driver is not None
        code = self._driver.poll()
        if code in (None, 0):
            return
        if code == STOPPED:
            raise StoppedByOthers(self.said())
        if code == 1 and LET_GO in self._last_line():
            self.let_go += 1
        elif code != -signal.SIGKILL:
            raise EndedByItself(f"the run ended by itself, with {code}: {self.said()}")
        self._old.append((time.monotonic(), set(self.known)))
        time.sleep(self._chance.choice((0.0, self._chance.uniform(0, 3))))
        self.resumes += 1
        self.start(*(("resume", "run") if self.has_checkpoint else (*self.command, "--resume")))

    def stop(self, timeout_s: float) -> int | None:
        """By SIGTERM; its exit code, None if it does not end."""
        assert self._driver is not None
        return gently_end(self._driver, timeout_s)

    def wait(self, timeout_s: float) -> int:
        assert self._driver is not None
        return self._driver.wait(timeout_s)

    def look_for_old(self, *, to_the_end: bool = False) -> None:
        """Whoever is there so long after his driver was killed."""
        for old in list(self._old):
            while (left := [process for process in old[1] if lives(process)]) and time.monotonic() < old[
                0
            ] + LEFTOVER_S:
                if not to_the_end:
                    break
                time.sleep(0.2)
            else:
                self._old.remove(old)
                self.leftovers += [f"{LEFTOVER_S:.0f} s after its driver: {process}" for process in left]

    def hash(self) -> str:
        """Of the newest checkpoint's weights."""
        newest = sorted(self.directory.glob("checkpoints/step-*/weights.safetensors"))[-1]
        return f"{newest.parent.name} {hashlib.sha256(newest.read_bytes()).hexdigest()}"

    def _last_line(self) -> str:
        with suppress(OSError, IndexError):
            return (self.folder / "output").read_text(errors="replace").splitlines()[-1]
        return ""

    def said(self) -> str:
        with suppress(OSError):
            lines = (self.folder / "output").read_text(errors="replace").splitlines()
            return " / ".join(lines[-4:])[-900:] + f" [{self.folder}]"
        return "nothing"

    def clear(self, *, keep: bool) -> None:
        """Ends whatever is there of it. `keep`: its folder."""
        self.members()
        if self._driver is not None:
            end_all([*self.known, psutil.Process(self._driver.pid)] if self._driver.poll() is None else self.known)
            self._driver.wait()
        self.place.close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def audit(run: StruckRun) -> tuple[int, str]:
    """By `rollcall audit`."""
    url = {} if run.place.redis_url is None else {"ROLLCALL_REDIS_URL": run.place.redis_url}
    command = [sys.executable, "-m", "rollcall.deploy.cli", "audit", "run"]
    done = subprocess.run(command, cwd=run.folder, env=run.environment() | url, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
