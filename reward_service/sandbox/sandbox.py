"""Runs Python that nobody trusts, and tells how it ended. Probes at start what this machine offers (namespaces,
Landlock, seccomp, control groups, another user), takes the strongest combination that keeps a program of our own from
reaching anything, and runs no code where there is none. Must never know what a score is."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rollcall.reward_service.sandbox import cgroups, kernel, seccomp
from rollcall.reward_service.sandbox.jail_client import Finished, Jail, Limits, Pipes, SandboxBroken

_log = logging.getLogger(__name__)
_UNCOUNTED_PROCESSES = 4  # without a control group each process has the whole memory limit to itself


@dataclass(frozen=True, slots=True)
class Containment:
    """What the probe found, and what is used of it."""

    namespaces: bool  # of users, PIDs, mounts, network and IPC, together
    landlock: int  # version of the interface, 0: none
    seccomp: bool
    cgroup: bool
    other_user: bool
    layers: tuple[str, ...] = ()  # what contains the code; none: nothing does
    prevented: Mapping[str, bool] = field(default_factory=dict)  # what our own program tried in there
    problem: str = ""  # why code is not run

    @property
    def contained(self) -> bool:
        return not self.problem

    def describe(self) -> str:
        """One line, for logs and /readyz."""
        offers = (
            f"namespaces {'yes' if self.namespaces else 'no'}, Landlock {self.landlock or 'no'}, "
            f"seccomp {'yes' if self.seccomp else 'no'}, cgroups {'yes' if self.cgroup else 'no'}, "
            f"another user {'yes' if self.other_user else 'no'}"
        )
        state = f"no containment: {self.problem}" if self.problem else f"contained by {', '.join(self.layers)}"
        return f"{state} (this machine offers {offers})"


class Sandbox:
    """Safe for use from several threads: each call has sandboxes of its own."""

    def __init__(
        self, limits: Limits, *, unsafe: bool = False, python: str | None = None, layers: Sequence[str] | None = None
    ) -> None:
        """
        Args:
          unsafe: run code where nothing contains it, too.
          python: another interpreter to run the code.
          layers: exactly these, in place of the strongest that are there.
        """
        self._limits = limits
        self._python: str = python or str(getattr(sys, "_base_executable", sys.executable))
        self._layers: list[str] = []
        self.usable = True  # for the probe
        self.containment = self._probe(layers)
        self._layers = list(self.containment.layers)
        if self.containment.contained:
            _log.info("sandbox: %s", self.containment.describe())
        elif unsafe:
            _log.warning("sandbox: %s; code is run all the same (sandbox: unsafe)", self.containment.describe())
            self._layers = ["user"] if self.containment.other_user else []
        else:
            _log.error("sandbox: %s; no code is run", self.containment.describe())
        self.usable = unsafe or self.containment.contained

    def run_program(self, code: str, inputs: Sequence[str]) -> list[Finished]:
        """The program once for each standard input.

        Raises:
          SandboxBroken: nothing is known about the code.
        """
        with Pipes.opened() as pipes:
            outputs = [pipes.pipe() for _ in inputs]
            files = [pipes.sealed_file(text.encode(errors="replace")) for text in inputs]
            runs = [{"stdin": file, "stdout": output[1]} for file, output in zip(files, outputs, strict=True)]
            with self._jail(role="program", code=code, runs=runs) as jail:
                pipes.close(*files, *(writing for _, writing in outputs))
                jail.await_ready()
                finished = []
                for reading, _ in outputs:
                    jail.begin()
                    finished.append(jail.finish(reading))
                return finished

    def run_tests(
        self, code: str, tests: Sequence[str], *, preamble: str = "", entry_point: str | None = None
    ) -> list[Finished]:
        """Each test against a fresh process of the code, in another sandbox than it. How the tests ended, by
        `jail_tests`' exit statuses; their output is a message.

        Raises:
          SandboxBroken: nothing is known about the code.
        """
        with Pipes.opened() as pipes:
            channels = [pipes.socket_pair() for _ in tests]
            outputs = [pipes.pipe() for _ in tests]
            ends = [{"channel": channel[0]} for channel in channels]
            judging = [{"channel": c[1], "stdout": output[1]} for c, output in zip(channels, outputs, strict=True)]
            with (
                self._jail(role="solution", code=code, preamble=preamble, runs=ends) as solution,
                self._jail(role="test", tests=list(tests), entry_point=entry_point, runs=judging) as judge,
            ):
                pipes.close(*(end for channel in channels for end in channel), *(writing for _, writing in outputs))
                solution.await_ready()
                judge.await_ready()
                finished = []
                for reading, _ in outputs:
                    solution.begin()
                    judge.begin()
                    finished.append(judge.finish(reading))
                    solution.end()
                return finished

    def _probe(self, wanted: Sequence[str] | None) -> Containment:
        """Tries combinations, the strongest first, until a program of our own cannot get out of one."""
        root = os.geteuid() == 0
        cgroups.remove_left_over()
        landlock, filters, groups = kernel.landlock_version(), seccomp.supported(), cgroups.available()
        found = [name for name, there in (("landlock", landlock), ("seccomp", filters), ("cgroup", groups)) if there]
        found += ["user"] if root else []
        candidates = [["namespaces", *found] if root else ["namespaces", "user_namespace", *found]]
        if landlock and filters:
            candidates.append(found)
        if wanted is not None:
            candidates = [list(wanted)]
        problems: list[str] = []
        prevented: dict[str, bool] = {}
        for layers in candidates:
            prevented, problem = self._try(layers)
            if not problem:
                break
            problems.append(f"with {', '.join(layers) or 'nothing'} {problem}")
            layers = []
        return Containment(
            namespaces="namespaces" in layers,
            landlock=landlock,
            seccomp=filters,
            cgroup=groups,
            other_user=root,
            layers=tuple(layers),
            prevented=prevented,
            problem="" if layers else "; ".join(problems),
        )

    def _try(self, layers: list[str]) -> tuple[dict[str, bool], str]:
        """What a program inside could not do, and what is wrong with that."""
        with (
            tempfile.TemporaryDirectory(prefix="rollcall-probe-") as folder,
            socket.socket() as server,
            Pipes.opened() as pipes,
        ):
            os.chmod(folder, 0o777)
            secret = Path(folder) / "secret"
            secret.write_text("secret")
            secret.chmod(0o644)
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            reading, writing = pipes.pipe()
            targets = {"file": str(secret), "folder": folder, "pid": os.getpid(), "port": server.getsockname()[1]}
            self._layers = layers
            try:
                with self._jail(role="reach", targets=targets, runs=[{"stdout": writing}]) as jail:
                    pipes.close(writing)
                    jail.await_ready()
                    jail.begin()
                    prevented = json.loads(jail.finish(reading).output or b"{}")
            except SandboxBroken as error:
                return {}, str(error)
        if not prevented:
            return {}, "the probe does not run"
        reached = [name for name, closed in prevented.items() if not closed]
        return prevented, f"code reaches {', '.join(reached)}" if reached else ""

    @contextmanager
    def _jail(self, **what: object) -> Iterator[Jail]:
        if not self.usable:
            raise SandboxBroken(self.containment.problem)
        processes = self._limits.processes
        if "cgroup" not in self._layers:
            processes = min(processes, _UNCOUNTED_PROCESSES)
        scratch = tempfile.mkdtemp(prefix="rollcall-sandbox-")
        try:
            with Jail(
                python=self._python,
                scratch=scratch,
                layers=self._layers,
                limits=self._limits,
                processes=processes,
                what=what,
            ) as jail:
                yield jail
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
