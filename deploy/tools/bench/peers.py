"""Peers to be measured against, each in a virtual environment of its own, so that its dependencies cannot touch ours.
Knows how to install a peer and to run its program, which lies in peer_programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput, RollcallError

INSTALL_TIMEOUT_S = 1800
MEASURE_TIMEOUT_S = 600
PROGRAMS = Path(__file__).with_name("peer_programs")


@dataclass(frozen=True)
class PeerKind:
    """A peer as it can be installed: pinned packages, and those that must be of our version, so that only the
    frameworks differ."""

    packages: tuple[str, ...]
    as_ours: tuple[str, ...]
    program: str


_JAX = ("jax==0.10.2", "flax==0.12.8")
PEERS = {
    "sb3": PeerKind(("stable-baselines3==2.9.2",), ("torch", "gymnasium"), "stable_baselines"),
    "sbx": PeerKind(("sbx-rl==0.28.0", "stable-baselines3==2.9.2", *_JAX), ("torch", "gymnasium"), "stable_baselines"),
    # Of gymnax the last version whose steps give five values, as rejax expects.
    "rejax": PeerKind(("rejax==0.1.3", "gymnax==0.0.9", "distrax==0.1.9", "optax==0.2.8", *_JAX), (), "rejax_ppo"),
    "cleanrl": PeerKind((), ("torch", "gymnasium", "numpy"), "cleanrl_ppo"),
    "envpool": PeerKind(("envpool==1.2.5",), ("torch", "gymnasium", "numpy"), "cleanrl_ppo"),
    "trl": PeerKind(("trl==1.16.0",), ("torch", "transformers"), "trl_grpo"),
}


@dataclass(frozen=True)
class Measured:
    """What a peer's program told of one run."""

    per_second: float  # env steps or tokens
    returns: tuple[float, ...] = ()  # of its last episodes


@dataclass(frozen=True)
class Peer:
    """A peer that is installed."""

    name: str
    python: Path
    program: Path

    def measure(self, work: Mapping[str, Any], *, timeout_s: float = MEASURE_TIMEOUT_S) -> Measured:
        """One run of the program with this work, in a process of its own.

        Raises:
          RollcallError: in one line, where it fails, tells nothing, or takes longer.
        """
        kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        try:
            with tempfile.TemporaryDirectory(prefix="rollcall-peer-") as folder:  # for what it leaves behind
                done = subprocess.run(
                    [str(self.python), str(self.program), json.dumps(work)],
                    capture_output=True,
                    text=True,
                    timeout=timeout_s,
                    cwd=folder,
                    env=kept | {"PYTHONDONTWRITEBYTECODE": "1"},  # programs lie where packages do
                    check=False,
                )
        except subprocess.TimeoutExpired:
            raise RollcallError(f"{self.name} gave no result within {timeout_s:.0f} s") from None
        if done.returncode:
            raise RollcallError(f"{self.name} failed: {_reason(done.stderr) or f'exit code {done.returncode}'}")
        try:
            told = json.loads(_last_line(done.stdout))
            return Measured(float(told["per_second"]), tuple(told["returns"]))
        except (ValueError, TypeError, KeyError):
            raise RollcallError(f"{self.name} told no result: its last line is {_last_line(done.stdout)!r}") from None


def prepare(name: str, say: Callable[[str], None], *, extras: Sequence[str] = ()) -> Peer:
    """Installs a peer, once, under the user's cache directory. `extras`: packages of our version that its envs need.

    Raises:
      BadInput: when it cannot be installed.
    """
    kind = PEERS[name]
    packages = [*map(_as_ours, (*kind.as_ours, *extras)), *kind.packages]
    folder = "-".join((name, *extras))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rollcall" / "peers" / folder
    python, installed = cache / "bin" / "python", cache / "installed"
    if not installed.exists() or installed.read_text().split() != packages:
        say(f"installing {' '.join(packages)} into {cache} ...")
        venv.create(cache, with_pip=True, clear=True)
        if problem := _install(python, packages):
            raise BadInput(f"--peer {name}: {' '.join(packages)} cannot be installed here ({problem})")
        installed.write_text("\n".join(packages))
    return Peer(name, python, PROGRAMS / f"{kind.program}.py")


def _install(python: Path, packages: Sequence[str]) -> str:
    """Installs them with pip; returns what went wrong, or nothing."""
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"pip was not done within {INSTALL_TIMEOUT_S} s"
    return (_last_line(done.stderr) or "pip gave no reason") if done.returncode else ""


def _as_ours(package: str) -> str:
    """A requirement for the version that is installed here, whatever it was built for."""
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        raise BadInput(f"the peer is compared at our version of {package}, which is not installed") from None


def _reason(stderr: str) -> str:
    """The line of the exception, behind which some packages say more; else the last one."""
    named = [line for line in stderr.splitlines() if re.match(r"[A-Za-z][\w.]*(Error|Exception)\b", line)]
    return named[-1] if named else _last_line(stderr)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
