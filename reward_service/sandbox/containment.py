"""What contains code on this machine. The probe tries what Linux offers (namespaces, Landlock, seccomp, control groups,
another user), takes the strongest combination that keeps a program of our own from reaching anything, and finds nothing
usable where there is none."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rollcall.reward_service.sandbox import cgroups, linux, seccomp
from rollcall.reward_service.sandbox.helper_process import Helper, Pipes, SandboxBroken
from rollcall.reward_service.sandbox.limits import Limits

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Containment:
    """What the probe found, and what is used of it."""

    python: str  # the interpreter that runs the code
    landlock: int  # version of the interface, 0: none
    seccomp: bool
    cgroup: bool
    other_user: bool
    layers: tuple[str, ...] = ()  # of namespaces (of PIDs, mounts, network and IPC), user_namespace, landlock, ...
    prevented: Mapping[str, bool] = field(default_factory=dict)  # what our own program tried in there
    problem: str = ""  # why nothing contains code here
    unsafe: bool = False  # code is run all the same

    @property
    def contained(self) -> bool:
        return not self.problem

    @property
    def usable(self) -> bool:
        return self.contained or self.unsafe

    def describe(self) -> str:
        """One line, for logs and /readyz."""
        offers = {
            "namespaces": "namespaces" in self.layers,
            "Landlock": self.landlock,
            "seccomp": self.seccomp,
            "cgroups": self.cgroup,
            "another user": self.other_user,
        }
        offered = ", ".join(f"{name} {_said(found)}" for name, found in offers.items())
        state = f"no containment: {self.problem}" if self.problem else f"contained by {', '.join(self.layers)}"
        return f"{state} (this machine offers {offered})"

    def helper(
        self, limits: Limits, role: str, arguments: Mapping[str, object], runs: Sequence[Mapping[str, int]]
    ) -> Helper:
        """A sandbox of its own for these runs.

        Raises:
          SandboxBroken: nothing contains code here, or the helper does not start.
        """
        if not self.usable:
            raise SandboxBroken(self.problem)
        return Helper(self.python, self.layers, limits, role, arguments, runs)


def probe(
    limits: Limits, *, unsafe: bool = False, python: str | None = None, layers: Sequence[str] | None = None
) -> Containment:
    """Tries combinations, the strongest first, until a program of our own cannot get out of one.

    Args:
      unsafe: run code where nothing contains it, too.
      python: another interpreter to run the code.
      layers: exactly these, in place of the strongest that are there.
    """
    root = os.geteuid() == 0
    cgroups.remove_left_over()
    machine = Containment(
        python=python or str(getattr(sys, "_base_executable", sys.executable)),
        landlock=linux.landlock_version(),
        seccomp=seccomp.supported(),
        cgroup=cgroups.available(),
        other_user=root,
        unsafe=unsafe,
    )
    problems: list[str] = []
    for candidate in [tuple(layers)] if layers is not None else _candidates(machine):
        prevented, problem = _try(replace(machine, layers=candidate), limits)
        if candidate and not problem:
            found = replace(machine, layers=candidate, prevented=prevented)
            _log.info("sandbox: %s", found.describe())
            return found
        problems.append(f"with {', '.join(candidate) or 'nothing'} {problem}")
    weakest = ("user",) if root and unsafe else ()
    found = replace(machine, layers=weakest, prevented=prevented, problem="; ".join(problems))
    if unsafe:
        _log.warning("sandbox: %s; code is run all the same (sandbox: unsafe)", found.describe())
    else:
        _log.error("sandbox: %s; no code is run", found.describe())
    return found


def _candidates(machine: Containment) -> list[tuple[str, ...]]:
    """Combinations of layers, the strongest first."""
    offered = {"landlock": machine.landlock, "seccomp": machine.seccomp, "cgroup": machine.cgroup}
    found = [name for name, there in offered.items() if there] + (["user"] if machine.other_user else [])
    strongest = ("namespaces", *([] if machine.other_user else ["user_namespace"]), *found)
    return [strongest, tuple(found)] if machine.landlock and machine.seccomp else [strongest]


def _try(containment: Containment, limits: Limits) -> tuple[dict[str, bool], str]:
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
        try:
            with containment.helper(
                limits, "program_roles.reach", {"targets": targets}, [{"stdout": writing}]
            ) as helper:
                pipes.close(writing)
                helper.await_ready()
                helper.begin()
                prevented = json.loads(helper.finish(reading).output or b"{}")
        except SandboxBroken as error:
            return {}, str(error)
    if not prevented:
        return {}, "the probe does not run"
    reached = [name for name, closed in prevented.items() if not closed]
    return prevented, f"code reaches {', '.join(reached)}" if reached else ""


def _said(found: int) -> str:
    """Yes, no, or a version."""
    return ("yes" if found is True else str(found)) if found else "no"
