"""The sandbox's helper program: an outer process that stands outside and cleans up, and inside a keeper that runs one
process after another and kills what is left of each. Standard library alone: it runs with `python -I -S`. Must never
know what a verdict is; no process in here sees anything but its own code and its own input.

Talks over three descriptors: 0 brings the job and then commands, one byte each (`n`: run the next, `k`: end the one
that runs); the status descriptor takes one line of JSON when the sandbox stands and one after each run."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from rollcall.reward_service.sandbox import cgroups, linux, seccomp

Role = Callable[..., int]  # what a run does, by its number and its job's arguments; returns its exit status


class Job(NamedTuple):
    """All that the helper is told. Descriptors are numbers that it inherits."""

    scratch: str  # an empty directory
    layers: Sequence[str]  # of namespaces, user_namespace, landlock, seccomp, cgroup, user
    limits: Mapping[str, int]
    status: int
    serial: int  # another one for each sandbox that lives at the same time
    role: str
    arguments: Mapping[str, object]  # of the role
    runs: Sequence[Mapping[str, int]]  # stdin, stdout, channel: what each run is given


def main(roles: Mapping[str, Role]) -> None:
    """`roles` are imported before the sandbox closes: our own files cannot be read in there."""
    linux.die_with_parent(signal.SIGTERM)
    (length,) = struct.unpack("<I", _read(4))
    job = Job(**json.loads(_read(length)))
    group = None
    inner = 0

    def stop(*_: object) -> None:
        if inner:
            with suppress(ProcessLookupError):
                os.kill(inner, signal.SIGKILL)
        else:
            os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    try:
        if "cgroup" in job.layers:
            group = cgroups.create(memory_bytes=job.limits["memory_bytes"], processes=job.limits["processes"] + 1)
        linux.adopt_orphans()
        _unshare(job.layers)
        go, told = os.pipe()
        inner = os.fork()
        if not inner:
            os.close(told)
            _keep(job, roles[job.role], go)
        if group is not None:
            group.add(inner)
        os.write(told, b"g")
        for descriptor in {told, go, job.status, *(number for run in job.runs for number in run.values())}:
            os.close(descriptor)
        _, status = os.waitpid(inner, 0)
        _kill_descendants()
        sys.exit(os.waitstatus_to_exitcode(status) != 0)
    except OSError as error:
        _tell(job.status, {"error": str(error)})
        sys.exit(1)
    finally:
        if group is not None:
            group.remove()
        with suppress(OSError):
            os.rmdir(job.scratch)


def _unshare(layers: Sequence[str]) -> None:
    """What the keeper is born into. The other namespaces it makes itself: the outer process keeps its own files."""
    if "user_namespace" in layers:
        linux.unshare(linux.NEW_USER | linux.NEW_PIDS)
        linux.map_own_user()
    elif "namespaces" in layers:
        linux.unshare(linux.NEW_PIDS)


def _keep(job: Job, role: Role, go: int) -> None:
    """The keeper: PID 1 of the namespace, where there is one. Never returns."""
    status = 1
    try:
        linux.die_with_parent(signal.SIGKILL)
        for deaf_to in (signal.SIGTERM, signal.SIGINT):  # as PID 1, which only hears what it has a handler for
            signal.signal(deaf_to, signal.SIG_DFL)
        os.setsid()
        if not os.read(go, 1):
            raise EOFError
        os.close(go)
        linux.adopt_orphans()
        _contain(job)
        _tell(job.status, {"ready": True})
        for number in range(len(job.runs)):
            while _read(1) == b"k":  # it came when the run had just ended
                pass
            _tell(job.status, {"run": number, **_run(job, number, role)})
        status = 0
    except EOFError:  # the service is gone, or has no more use for us
        status = 0
    except BaseException as error:
        with suppress(OSError):
            _tell(job.status, {"error": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(status)


def _contain(job: Job) -> None:
    """What holds for the keeper and for every run."""
    owner = linux.unlikely_user(job.serial) if "user" in job.layers else os.geteuid()
    places = _python_places()
    writable = []
    if "namespaces" in job.layers:
        linux.unshare(linux.NEW_MOUNTS | linux.NEW_IPC | linux.NEW_UTS | linux.NEW_NETWORK)
        linux.enter_root(
            job.scratch,
            readable=[*places, *(device for device in ("/dev/null", "/dev/urandom") if os.path.exists(device))],
            links={name: os.readlink(name) for name in ("/lib", "/lib64") if os.path.islink(name)},
            owner=owner,
            disk_bytes=job.limits["disk_bytes"],
            max_files=job.limits["disk_files"],
        )
        writable = ["/tmp"]
    else:
        os.chown(job.scratch, owner, -1)
        os.chdir(job.scratch)
        places.append(job.scratch)
    os.umask(0o077)
    if "user" in job.layers:
        linux.drop_user(owner)
    linux.drop_capabilities()
    if "landlock" in job.layers:
        devices = [device for device in ("/dev/null", "/dev/urandom") if os.path.exists(device)]
        linux.restrict_files(readable=[*places, *devices], writable=[*writable, *devices[:1]])


def _python_places() -> list[str]:
    """This Python's standard library, and where the shared libraries lie that it has loaded."""
    with open("/proc/self/maps") as maps:
        loaded = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    libraries = {os.path.dirname(path) for path in loaded if path.startswith("/")}
    found: list[str] = []
    for path in sorted({*(os.path.realpath(place) for place in sys.path if os.path.isdir(place)), *libraries}):
        if not any(path.startswith(f"{above}/") for above in found):
            found.append(path)
    return found


def _run(job: Job, number: int, role: Role) -> dict[str, object]:
    """One process from beginning to end, with all that it started."""
    given = job.runs[number]
    child = os.fork()
    if not child:
        status = 1
        try:
            status = _enter(job, number, role)
        except BaseException:  # out of memory, say, with no frame of the role left
            pass
        finally:
            os._exit(status & 0xFF)
    for descriptor in given.values():
        os.close(descriptor)
    watch = os.pidfd_open(child)
    ready, _, _ = select.select([watch, 0], [], [])
    killed = False
    if watch not in ready:
        command = os.read(0, 1)
        killed = True
        os.kill(child, signal.SIGKILL)
        if not command:
            raise EOFError
    os.close(watch)
    _, status, usage = os.wait4(child, 0)
    _kill_rest(job)
    return {"exit": os.waitstatus_to_exitcode(status), "killed": killed, "cpu_s": usage.ru_utime + usage.ru_stime}


def _enter(job: Job, number: int, role: Role) -> int:
    """The last steps of a new process before it becomes its role, and the role."""
    given = job.runs[number]
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(given.get("stdin", nothing), 0)
    os.dup2(given.get("stdout", nothing), 1)
    os.dup2(nothing, 2)
    if "channel" in given:
        os.dup2(given["channel"], 3)
    inherited = [job.status, *(number for run in job.runs for number in run.values())]
    os.closerange(3 + ("channel" in given), max(inherited) + 1024)
    limits = job.limits
    sealed = "seccomp" in job.layers and seccomp.program(
        own_processes="namespaces" in job.layers, own_files="namespaces" in job.layers
    )
    linux.limit(
        cpu_s=limits["cpu_s"],
        FSIZE=limits["file_bytes"],
        NOFILE=limits["open_files"],
        CORE=0,
        AS=limits["memory_bytes"],
        # A user of the sandbox's own is counted apart; any other runs more than this.
        **({"NPROC": limits["processes"] + 1} if {"user", "user_namespace"} & set(job.layers) else {}),
    )
    if sealed:
        seccomp.install(sealed)
    return role(number, **job.arguments)


def _kill_rest(job: Job) -> None:
    """Everything that the run has left behind: processes and files."""
    if os.getpid() == 1:
        while True:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
    else:
        _kill_descendants()
    if "namespaces" in job.layers:
        for entry in os.scandir("/tmp"):
            if entry.is_dir(follow_symlinks=False):
                import shutil  # seldom needed, and slow to import

                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _kill_descendants() -> None:
    """Where there is no PID namespace: orphans come to the nearest subreaper, and are found there."""
    deadline = time.monotonic() + 2.0
    with suppress(OSError):
        while (found := linux.children()) and time.monotonic() < deadline:
            for pid in found:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _read(length: int) -> bytes:
    read = b""
    while len(read) < length:
        part = os.read(0, length - len(read))
        if not part:
            raise EOFError
        read += part
    return read


def _tell(descriptor: int, message: dict[str, object]) -> None:
    os.write(descriptor, json.dumps(message).encode() + b"\n")
