"""What keeps a second driver out of a run: an OS lock on the run directory and a lock with a fencing token in Redis.
Knows processes and keys; must never know what the run does."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import redis

from rollcall.cluster.errors import RunAlive

GLANCE_S = 0.3  # longer than `driver_alive` holds the lock to see whether it is free
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems without them

_T = TypeVar("_T")

_log = logging.getLogger("rollcall")


class DirectoryLock:
    """flock on <run>/lock: ends with the process, whatever ends it, and needs no Redis.

    Raises:
      RunAlive: another driver holds the run directory, on this machine or on one that shares the file system's locks.
    """

    def __init__(self, run_directory: Path) -> None:
        self._file = os.open(run_directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        give_up = time.monotonic() + GLANCE_S
        while not _locked(self._file):
            if time.monotonic() > give_up:
                holder = os.read(self._file, 256).decode(errors="replace").strip()
                os.close(self._file)
                raise RunAlive(
                    f"{run_directory} is in use by another driver (pid {holder or 'unknown'}); stop it first"
                )
            time.sleep(0.01)
        _held.add(self._file)
        os.ftruncate(self._file, 0)
        with suppress(OSError):  # a full disk: whoever is kept out is not told by whom
            os.write(self._file, f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        if self._file in _held:
            _held.discard(self._file)
            os.close(self._file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("this file system has no locks (%s): only Redis keeps a second driver out", error.strerror)
        return True


def driver_alive(run_directory: Path) -> bool:
    """Whether a driver of this machine holds the run directory."""
    try:
        with (run_directory / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _forget_in_forked_child() -> None:
    """A child forked by a driver must not look like the driver when it outlives it."""
    while _held:
        os.close(_held.pop())


_held: set[int] = set()
os.register_at_fork(after_in_child=_forget_in_forked_child)


class LockStore(Protocol):
    """A store.Store, as far as its lock uses it."""

    @property
    def client(self) -> redis.Redis: ...
    def key(self, *parts: str | int) -> str: ...
    def call(self, operation: Callable[[redis.Redis], _T]) -> _T: ...


class RunLock:
    """A lock in Redis with a time to live, kept by a thread, and a fencing token that grows with every holder."""

    _REFRESH = (
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
    )
    _RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"

    def __init__(self, store: LockStore, ttl_s: float) -> None:
        if ttl_s < 0.1:
            raise ValueError(f"ttl_s is {ttl_s}: a lock that short runs out between two refreshes; give at least 0.1")
        self.token = 0
        self._store = store
        self._ttl_ms = int(ttl_s * 1000)
        self._key = store.key("lock")
        self._value = ""
        self._lost_to: str | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)

    def acquire(self, *, take_over: bool) -> None:
        """Waits for a dead driver's lock to run out. `take_over`: the holder is known to be dead.

        Raises:
          RunAlive: somebody refreshes the lock.
        """
        store = self._store
        self.token = store.call(lambda client: int(client.incr(store.key("lock", "fence"))))
        self._value = f"{self.token}:{socket.gethostname()}:{os.getpid()}"
        if take_over:
            store.call(lambda client: client.delete(self._key))
        last_ms: int | None = None
        while not store.call(self._set_if_free):
            holder, left_ms = store.call(lambda client: (client.get(self._key), client.pttl(self._key)))
            if left_ms == -1 or (last_ms is not None and left_ms > last_ms):
                raise RunAlive(f"another driver runs this run: {_holder(str(holder))}; stop it first")
            last_ms = left_ms
            time.sleep(min(0.1, self._ttl_ms / 10_000))
        self._thread.start()

    def check(self) -> None:
        """Raises RunAlive once another driver has taken the lock."""
        if self._lost_to is not None:
            raise RunAlive(f"another driver has taken this run over: {_holder(self._lost_to)}")

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with suppress(redis.RedisError):  # it runs out by itself
            self._store.client.eval(self._RELEASE, 1, self._key, self._value)

    def _set_if_free(self, client: redis.Redis) -> bool:
        # A call repeated after a lost answer finds our own value: that is ours too.
        return (
            bool(client.set(self._key, self._value, nx=True, px=self._ttl_ms)) or client.get(self._key) == self._value
        )

    def _keep(self) -> None:
        while not self._released.wait(self._ttl_ms / 3000):
            try:
                client = self._store.client
                if client.eval(self._REFRESH, 1, self._key, self._value, self._ttl_ms) or self._set_if_free(client):
                    continue
                self._lost_to = str(client.get(self._key))
                return
            except redis.RedisError:
                continue  # Store.call deals with the outage; the lock is taken again when Redis is back


def _holder(value: str) -> str:
    token, host, pid = [*value.split(":"), "?", "?"][:3]
    return f"pid {pid} on {host}, fencing token {token}"
