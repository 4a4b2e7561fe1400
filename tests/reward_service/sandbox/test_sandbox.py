"""The sandbox against code that wants out, once in each combination of layers that this machine offers: the real
Linux, real processes, and the machine must survive. What the code managed to do is what it prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from rollcall.reward_service.sandbox import cgroups, linux, seccomp
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.sandbox.run import Containment, RunResult, SandboxBroken, Script, Suite, probe
from rollcall.reward_service.sandbox.run import run as run_program
from tests.needs import SYSTEM_PYTHON, lack, needs, require
from tests.waiting import eventually

LIMITS = Limits(wall_s=20, cpu_s=10, memory_bytes=256 << 20, processes=12, output_bytes=100_000, disk_bytes=8 << 20)
HASTE = LIMITS.model_copy(update={"wall_s": 1.5, "cpu_s": 1})  # for what never ends by itself
ROOT = os.geteuid() == 0
USER = ["user"] if ROOT else []
INSIDE = ["namespaces", *([] if ROOT else ["user_namespace"])]
# Root gives its user away, and that user must be able to read this Python's library: a system's own can be read by all.
MODES: dict[str, tuple[list[str] | None, str | None]] = {
    "strongest": (None, None),
    "namespaces": ([*INSIDE, *USER], None),
    "filters": (["landlock", "seccomp", *USER], str(SYSTEM_PYTHON) if ROOT else None),
}

pytestmark = needs("linux")


class Sandbox(NamedTuple):
    """What contains the code, and how far."""

    containment: Containment
    limits: Limits


@pytest.fixture(scope="module", params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sandbox(mode: str) -> Sandbox:
    layers, python = MODES[mode]
    if python is not None:
        require("system_python")
    containment = probe(LIMITS, layers=layers, python=python)
    if not containment.contained:
        lack("containment", containment.problem)
    return Sandbox(containment, LIMITS)


@pytest.fixture(scope="module")
def hasty(sandbox: Sandbox) -> Sandbox:
    return sandbox._replace(limits=HASTE)


def run(sandbox: Sandbox, code: str, stdin: str = "") -> RunResult:
    return run_each(sandbox, code, stdin)[0]


def run_each(sandbox: Sandbox, code: str, *inputs: str) -> list[RunResult]:
    return run_program(Script(textwrap.dedent(code), inputs), sandbox.limits, sandbox.containment)


def inhabitants() -> list[psutil.Process]:
    """Processes of sandboxes that this process has started."""
    first = 0x70000000 + os.getpid() % 100_000 * 10_000
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real in range(first, first + 10_000) if ROOT else _is_helper(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _is_helper(process: psutil.Process) -> bool:
    return "sandbox/start.py" in " ".join(process.cmdline())


@pytest.fixture
def watched() -> Iterator[Callable[[], tuple[int, int]]]:
    """How many processes sandboxes had at most, and how much memory all of them had."""
    peak = [0, 0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            alive = inhabitants()
            peak[0] = max(peak[0], len(alive))
            memory = 0
            for process in alive:
                try:
                    memory += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[1] = max(peak[1], memory)
            done.wait(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: (peak[0], peak[1])
    done.set()
    thread.join()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    scratch = set(Path(tempfile.gettempdir()).glob("rollcall-sandbox-*"))
    yield
    eventually(lambda: not inhabitants(), 5)
    mine = set(Path(tempfile.gettempdir()).glob("rollcall-sandbox-*")) - scratch
    eventually(lambda: not any(path.exists() for path in mine), 5)


def test_an_ordinary_program_runs_with_its_input_and_the_standard_library(sandbox: Sandbox) -> None:
    code = """
    import asyncio, collections, dataclasses, decimal, json, sqlite3, ssl, sys, threading
    async def double(x): return 2 * x
    out = []
    thread = threading.Thread(target=lambda: out.append(asyncio.run(double(int(input())))))
    thread.start()
    thread.join()
    print(out[0], sys.stdin.read().strip())
    sys.exit(3)
    """
    finished = run(sandbox, code, "21\nrest\n")
    assert (finished.output, finished.exit, finished.ended_for) == (b"42 rest\n", 3, "")


def test_a_fork_bomb_stays_within_its_number_of_processes(
    hasty: Sandbox, watched: Callable[[], tuple[int, int]]
) -> None:
    code = """
    import os
    while True:
        try:
            os.fork()
        except OSError:
            pass
    """
    begin = time.monotonic()
    finished = run(hasty, code)
    assert finished.exit != 0
    assert time.monotonic() - begin < HASTE.wall_s + 10
    assert 1 <= watched()[0] <= LIMITS.processes + 2  # with the keeper


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(3600)"])
def test_a_program_without_end_is_ended(hasty: Sandbox, code: str) -> None:
    finished = run(hasty, code)
    assert (finished.ended_for, finished.exit) == ("time", None)


def test_ten_gigabytes_are_refused(sandbox: Sandbox) -> None:
    finished = run(sandbox, "try:\n    bytearray(10 << 30)\nexcept MemoryError:\n    print('refused')")
    assert finished.output == b"refused\n"


def test_memory_taken_piece_by_piece_in_many_processes_is_limited(
    hasty: Sandbox, watched: Callable[[], tuple[int, int]]
) -> None:
    code = """
    import os
    for _ in range(8):
        try:
            if os.fork() == 0:
                break
        except OSError:
            break
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1)) * (1 << 20))
    """
    run(hasty, code)
    # Without a control group each of the four processes that are then allowed has the limit to itself.
    bound = LIMITS.memory_bytes * (1 if "cgroup" in hasty.containment.layers else 5)
    assert watched()[1] <= bound + (64 << 20)  # and the keeper's own


def test_nothing_is_written_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    for path in (tmp_path, *list(tmp_path.parents)[:3]):
        if os.access(path, os.W_OK) and path.owner() == psutil.Process().username():
            path.chmod(0o777)
    (tmp_path / "there").write_text("as it was")
    (tmp_path / "there").chmod(0o666)
    places = [
        str(tmp_path),
        tempfile.gettempdir() + "/..",
        "/etc",
        "/root",
        "/dev/shm",
        os.getcwd(),
        os.path.dirname(os.__file__),
    ]
    code = f"""
    import os
    for place in {places!r}:
        for attempt in (
            lambda: open(place + "/rollcall-was-here", "w"), lambda: os.mkdir(place + "/rollcall-was-here"),
            lambda: os.symlink("x", place + "/rollcall-was-here"), lambda: os.unlink(place + "/there"),
            lambda: os.truncate(place + "/there", 0), lambda: open(place + "/there", "a").write("x"),
            lambda: os.chmod(place + "/there", 0), lambda: os.rename(place + "/there", place + "/where"),
            lambda: os.utime(place + "/there", (0, 0)),
        ):
            try:
                attempt()
                print("did it in", place)
            except OSError:
                pass
    print("end")
    """
    before = (tmp_path / "there").stat()
    assert run(sandbox, code).output == b"end\n"
    assert (tmp_path / "there").read_text() == "as it was"
    after = (tmp_path / "there").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert not any(Path(place, "rollcall-was-here").exists() for place in places)


def test_files_in_its_own_directory_are_limited_and_gone_afterwards(sandbox: Sandbox) -> None:
    code = """
    import os
    print(sorted(os.listdir(".")))
    written = 0
    try:
        for n in range(100):
            with open(f"file{n}", "wb") as file:
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
    print(written <= 8 << 20)
    """
    both = run_each(sandbox, code, "", "")
    assert [finished.output for finished in both] == [b"[]\nTrue\n"] * 2


def test_no_socket_reaches_a_server(sandbox: Sandbox, tmp_path: Path) -> None:
    path = f"{tempfile.gettempdir()}/rollcall-{os.getpid()}.socket"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        os.chmod(path, 0o777)
        abstract.bind(f"\0rollcall-{os.getpid()}")
        datagrams.bind(f"\0rollcall-datagrams-{os.getpid()}")
        servers = (tcp, udp, unix, abstract, datagrams)
        for server in servers:
            server.settimeout(0.2)
        unix.listen()
        abstract.listen()
        code = f"""
        import socket
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, {tcp.getsockname()!r}),
            (socket.AF_INET, socket.SOCK_DGRAM, {udp.getsockname()!r}),
            (socket.AF_UNIX, socket.SOCK_STREAM, {path!r}),
            (socket.AF_UNIX, socket.SOCK_STREAM, {abstract.getsockname()!r}),
            (socket.AF_UNIX, socket.SOCK_DGRAM, {datagrams.getsockname()!r}),
        ):
            try:
                with socket.socket(family, kind) as client:
                    client.connect(address)
                    client.send(b"hello")
                    print("reached", address)
            except OSError:
                pass
        try:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            pair[0].sendto(b"hello", {datagrams.getsockname()!r})
            print("reached by a pair")
        except OSError:
            pass
        print("end")
        """
        assert run(sandbox, code).output == b"end\n"
        for server in (tcp, unix, abstract):
            with pytest.raises(TimeoutError):
                server.accept()
        for server in (udp, datagrams):
            with pytest.raises(TimeoutError):
                server.recv(1)
    os.unlink(path)


@pytest.fixture
def token_file() -> Iterator[Path]:
    """That anybody on this machine may read."""
    with tempfile.TemporaryDirectory(prefix="rollcall-token-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "token").write_text("open-sesame")
        (Path(folder) / "token").chmod(0o644)
        yield Path(folder) / "token"


def test_the_services_token_is_out_of_reach(mode: str, sandbox: Sandbox, token_file: Path) -> None:
    """A service with the token in its environment and in a file; the code knows its pid and the file's name."""
    hostile = """
    import ctypes, os, sys
    pid, path = sys.stdin.read().split()
    found = [os.environ.get("ROLLCALL_REWARD_TOKEN", "")]
    for candidate in (pid, "self", "1", str(os.getppid())):
        for name in ("environ", "maps", "mem", "cmdline", "root" + path, "cwd/token", "fd/3"):
            try:
                with open(f"/proc/{candidate}/{name}", "rb") as file:
                    found.append(repr(file.read(1 << 20)))
            except (OSError, ValueError):
                pass
    try:
        found.append(open(path).read())
    except OSError:
        pass
    buffer = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None, use_errno=True)
    print("traced" if libc.ptrace(16, int(pid), 0, 0) == 0 else "not traced")
    print([text for text in found if text], sorted(os.environ))
    """
    service = """
    import json, os, sys
    from rollcall.reward_service.sandbox.run import Limits, Script, probe, run
    layers, python, hostile, path = json.load(sys.stdin)
    assert open(f"/proc/{os.getpid()}/environ").read().count("open-sesame") == 1
    containment = probe(Limits(), layers=layers, python=python)
    print(run(Script(hostile, (f"{os.getpid()} {path}",)), Limits(), containment)[0].output.decode())
    """
    layers, python = MODES[mode]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(service)],
        input=json.dumps([layers, python, textwrap.dedent(hostile), str(token_file)]),
        env={**os.environ, "ROLLCALL_REWARD_TOKEN": "open-sesame"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout.split("\n")
    assert said[0] == "not traced", done
    assert "open-sesame" not in done.stdout
    assert "LC_CTYPE" in said[1] or said[1].endswith("[]"), "the environment is empty"


def test_the_hosts_files_are_out_of_reach(sandbox: Sandbox) -> None:
    here = Path(__file__)
    paths = [
        "/etc/passwd",
        "/etc/hostname",
        str(here),
        str(here.parents[3] / "pyproject.toml"),
        "/proc/version",
        "/proc/self/mounts",
    ]
    code = f"""
    import os
    for path in {paths!r}:
        try:
            print(path, len(open(path).read()))
        except OSError:
            pass
    for folder in ("/home", "/root", "/etc", "/var", "/proc", "/sys", {str(here.parent)!r}):
        try:
            print(folder, os.listdir(folder)) if folder != "/root" else None
        except OSError:
            pass
    print("end")
    """
    assert Path("/etc/passwd").exists()
    assert run(sandbox, code).output == b"end\n"


def test_no_signal_leaves_the_sandbox(sandbox: Sandbox) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        code = f"""
        import os, signal
        for pid in ({os.getpid()}, {victim.pid}, {os.getppid()}, os.getppid(), 1, 0, -1):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if pid == 0 and number != signal.SIGINT:
                    continue
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    os.kill(pid, number)
                except OSError:
                    pass
        print("end")
        """
        finished = run(sandbox, code)
        assert (finished.output, finished.exit) == (b"end\n", 0)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_endless_output_is_cut(hasty: Sandbox) -> None:
    finished = run(hasty, "while True: print('x' * 1000)")
    assert (finished.ended_for, finished.exit) == ("output", None)
    assert len(finished.output) == LIMITS.output_bytes
    assert run(hasty, "import sys\nwhile True: print('x' * 1000, file=sys.stderr)").ended_for == "time"


def test_a_daemon_does_not_outlive_its_run(sandbox: Sandbox) -> None:
    code = """
    import os, time
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for n in range(3):
                    os.close(n)
                time.sleep(3600)
            os._exit(0)
        os.wait()
    except OSError:
        pass
    print("end", flush=True)
    """
    begin = time.monotonic()
    first, second = run_each(sandbox, code, "", "")
    assert (first.output, second.output) == (b"end\n", b"end\n")
    assert time.monotonic() - begin < LIMITS.wall_s
    eventually(lambda: not inhabitants(), 5)


def test_there_are_no_inherited_descriptors_and_no_way_back_to_root(sandbox: Sandbox, tmp_path: Path) -> None:
    code = """
    import os
    for number in range(3, 2000):
        try:
            os.fstat(number)
            print("open", number)
        except OSError:
            pass
    for attempt in (
        lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot("/tmp"),
        lambda: os.execv("/bin/sh", ["sh"]),
    ):
        try:
            attempt()
            print("allowed")
        except OSError:
            pass
    print(os.getuid() != 0)
    """
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        assert run(sandbox, code).output == b"True\n"


def test_a_program_cannot_change_or_keep_its_input(sandbox: Sandbox) -> None:
    code = """
    import os
    for attempt in (lambda: os.write(0, b"x"), lambda: os.ftruncate(0, 0)):
        try:
            attempt()
            print("changed")
        except OSError:
            pass
    print(input())
    """
    both = run_each(sandbox, code, "one", "two")
    assert [finished.output for finished in both] == [b"one\n", b"two\n"]


def test_a_killed_service_takes_its_sandboxes_along() -> None:
    service = """
    from rollcall.reward_service.sandbox.run import Limits, Script, probe, run
    limits = Limits(wall_s=100, cpu_s=100)
    containment = probe(limits)
    print("ready", flush=True)
    run(Script("import time; time.sleep(99)", ("",)), limits, containment)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(service)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            lack("containment", "the service did not start")
        family: list[psutil.Process] = []
        eventually(lambda: len(family.__iadd__(psutil.Process(process.pid).children(recursive=True))) >= 3, 20)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    eventually(lambda: not any(child.is_running() for child in family), 10)


def test_without_containment_no_code_is_run_unless_that_is_wished() -> None:
    nothing = probe(LIMITS, layers=[])
    assert not nothing.contained
    assert "reading files" in nothing.problem and "the network" in nothing.problem
    assert "no containment" in nothing.describe()
    with pytest.raises(SandboxBroken, match="code reaches"):
        run(Sandbox(nothing, LIMITS), "print(1)")
    if ROOT:  # whose sandbox gives its user away
        require("system_python")
    unsafe = probe(LIMITS, layers=[], unsafe=True, python=str(SYSTEM_PYTHON) if ROOT else None)
    assert run(Sandbox(unsafe, LIMITS), "print(1)").output == b"1\n"


def test_the_probe_says_what_there_is() -> None:
    containment = probe(LIMITS)
    assert containment.landlock == linux.landlock_version()
    assert containment.seccomp == seccomp.supported()
    assert containment.cgroup == cgroups.available()
    assert set(containment.prevented.values()) <= {True}
    assert "this machine offers" in containment.describe()


@needs("root")
@pytest.mark.parametrize("layers", [["namespaces", "user_namespace", "landlock", "seccomp"], ["landlock", "seccomp"]])
def test_an_ordinary_user_can_contain_code_as_well(layers: list[str]) -> None:
    """The whole path of a service that is not root: user namespaces in place of privileges."""
    service = f"""
    import os
    from rollcall.reward_service.sandbox.run import Limits, Script, probe, run
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    limits = Limits(wall_s=5, cpu_s=1)
    containment = probe(limits, layers={layers!r}, python={str(SYSTEM_PYTHON)!r})
    print(containment.describe())
    code = "import os\\ntry:\\n  while True: os.fork()\\nexcept OSError: print(os.getuid() == 65534)"
    print(run(Script(code, ("",)), limits, containment)[0].output.splitlines()[:1])
    try:
        os.kill(run(Script("import os; os.kill(0, 9)", ("",)), limits, containment)[0].exit or 0, 0)
    except OSError:
        pass
    print("alive")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(service)], capture_output=True, text=True, timeout=60, check=False
    )
    if "no containment" in done.stdout:
        lack("containment", done.stdout)
    assert done.stdout.splitlines()[1:] == ["[b'True']", "alive"], done


def test_a_solution_may_be_gone_long_before_its_last_judgement(sandbox: Sandbox) -> None:
    code = "import os\n\ndef f():\n    os._exit(0)\n"
    waits = "import time\ntry:\n    f()\nfinally:\n    time.sleep(1)\n"
    (finished,) = run_program(Suite(code, (waits,)), sandbox.limits, sandbox.containment)
    assert finished.exit not in (None, 0) and not finished.ended_for
