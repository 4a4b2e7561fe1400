"""One run's Redis: a private server started here or one at redis.url, and calls that outlive an outage of either.
Must never know what a key means."""

from __future__ import annotations

import fcntl
import json
import logging
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import redis

from rollcall.cluster.backoff import Backoff
from rollcall.cluster.errors import BadInput, StoreUnavailable
from rollcall.cluster.files import write_aside
from rollcall.cluster.store.redis_address import connect, given_url, may_pass, outage, safe_url
from rollcall.cluster.store.redis_config import URL_VARIABLE, RedisConfig
from rollcall.cluster.store.redis_server import LOCK_NAME, PrivateRedis, redis_client
from rollcall.cluster.store.run_lock import DirectoryLock, RunLock

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Store:
    """A run's keys in Redis. Open it with `open_store`."""

    def __init__(
        self, run_id: str, config: RedisConfig, client: redis.Redis, server: PrivateRedis | None = None
    ) -> None:
        self.run_id = run_id
        self.client = client  # another one after a private server was restarted: do not keep it
        self._config = config
        self._server = server
        self._directory_lock: DirectoryLock | None = None
        self._run_lock: RunLock | None = None
        self._reviving = threading.Lock()
        self.restarts = 0  # of a private server
        self._given_up = False  # after one outage that lasted too long nobody waits for another
        self.waits_no_longer: Callable[[], bool] = lambda: False  # asked while Redis is away; what it raises is raised

    @property
    def private(self) -> bool:
        """Whether the server was started by this process and ends with it."""
        return self._server is not None

    @property
    def server_pid(self) -> int:
        """Of the private server; 0 without one."""
        return self._server.pid if self._server is not None else 0

    def key(self, *parts: str | int) -> str:
        """The full name of a key. The braces put all keys of a run in one slot of a Redis cluster, as scripts need."""
        return ":".join([f"rollcall:{{{self.run_id}}}", *(str(part) for part in parts)])

    def call(self, operation: Callable[[redis.Redis], _T]) -> _T:
        """Runs `operation(client)`, again and again while Redis is away or full: it must be idempotent.

        Raises:
          StoreUnavailable: Redis was away, or full, for reconnect_timeout_s, or no longer takes our password.
          RunAlive: another driver has taken this run over; nothing was written.
        """
        backoff: Backoff | None = None
        while True:
            if self._run_lock is not None:
                self._run_lock.check()
            try:
                result = operation(self.client)
            except redis.RedisError as error:
                if not may_pass(error):
                    raise
                backoff = self._wait(backoff, error)
                continue
            self._given_up = False
            if backoff is not None:
                _log.warning("Redis answers again")
            return result

    def _wait(self, backoff: Backoff | None, error: redis.RedisError) -> Backoff:
        """Until the next try. `backoff`: None after the first one.

        Raises:
          StoreUnavailable: there is none.
        """
        patience_s = self._config.reconnect_timeout_s
        leaves = backoff is not None and self.waits_no_longer()
        if backoff is None:
            _log.warning("%s; trying again for %g s (redis.reconnect_timeout_s)", outage(error), patience_s)
            deadline = time.monotonic() + patience_s
            backoff = Backoff(deadline, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
        self._revive()
        if leaves or self._given_up or not backoff.wait():
            self._given_up = True
            waited = "" if leaves else f"; waited for {patience_s:g} s (redis.reconnect_timeout_s)"
            raise StoreUnavailable(outage(error) + waited) from error
        return backoff

    def acquire_lock(self, ttl_s: float = 10.0) -> RunLock:
        """Takes the run's lock in Redis and refreshes it until `close`; every `call` checks that it is ours still.

        A dead driver's lock runs out within its time to live; one that somebody refreshes belongs to a live one.

        Raises:
          RunAlive: another driver refreshes the lock.
        """
        assert self._run_lock is None, "the lock is held already"
        lock = RunLock(self, ttl_s)
        lock.acquire(take_over=self.private)  # a private server was started by us just now: its last driver is gone
        self._run_lock = lock
        return lock

    def close(self) -> None:
        """Gives the locks back and shuts a private server down. Does not raise for a Redis that is away."""
        if self._run_lock is not None:
            self._run_lock.release()
            self._run_lock = None
        self.client.close()
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._directory_lock is not None:
            self._directory_lock.release()
            self._directory_lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _revive(self) -> None:
        """Starts a private server that died again, on its data."""
        with self._reviving:
            if self._server is None or self._server.alive():
                return
            _log.warning("the private redis-server has died; starting it again on its data")
            try:
                self._server.start()
            except StoreUnavailable as error:
                _log.warning("%s", error)
                return
            self.restarts += 1
            self.client.close()
            self.client = self._server.client(self._config.operation_timeout_s)
            _write_private(self._server)


def open_store(config: RedisConfig, run_directory: Path) -> Store:
    """The run's store: at redis.url (or $ROLLCALL_REDIS_URL), else on a private server, its data in the run directory.

    Also locks the run directory for as long as the store is open. Call `acquire_lock` before writing.

    Raises:
      BadInput: Redis does not answer, refuses the password, or there is no redis-server.
      RunAlive: another driver of this machine holds the run directory.
      StoreUnavailable: the private server does not start.
    """
    folder = run_directory / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    directory_lock = DirectoryLock(run_directory)
    server: PrivateRedis | None = None
    try:
        run_id = _run_id(run_directory)
        url = given_url(config)
        if url is not None:
            client = connect(url, config)
            (folder / "url").write_text(safe_url(url) + "\n")
        elif config.password_file is not None:
            raise BadInput(f"redis.password_file={config.password_file}: of which Redis? Give redis.url too")
        else:
            server = PrivateRedis(folder, run_directory / "logs" / "redis.log", start_timeout_s=config.start_timeout_s)
            try:
                server.start()
            except StoreUnavailable as error:
                remedy = f"if its data are damaged, move {folder}/appendonly* away: a resume writes the books anew"
                raise StoreUnavailable(f"{error}; {remedy}") from None
            client = server.client(config.operation_timeout_s)
            _write_private(server)
            (folder / "url").unlink(missing_ok=True)
    except BaseException:
        if server is not None:
            server.stop()
        directory_lock.release()
        raise
    store = Store(run_id, config, client, server)
    store._directory_lock = directory_lock
    return store


@contextmanager
def inspect_store(config: RedisConfig, run_directory: Path) -> Iterator[Store]:
    """The store of a run for reading, alive or not, without a trace in the run: a private server that is not running is
    started on a copy of its data.

    Raises:
      BadInput: the run directory has no books, or its Redis does not answer.
    """
    folder = run_directory / "redis"
    if not (folder / "run_id").exists():
        raise BadInput(
            f"{run_directory} has no books (no redis/run_id): it is not a run directory, or it never started"
        )
    run_id = _run_id(run_directory)
    server: PrivateRedis | None = None
    with tempfile.TemporaryDirectory(prefix="rollcall-books-") as aside:
        if (folder / "url").exists():
            client = connect(given_url(config) or _public_url(folder), config)
        else:
            running = _reach_or_copy(folder, Path(aside) / "redis", config)
            if running is None:
                server = PrivateRedis(
                    Path(aside) / "redis", Path(aside) / "log", start_timeout_s=config.start_timeout_s
                )
                server.start()
            client = running or server.client(config.operation_timeout_s)  # type: ignore[union-attr]
        with Store(run_id, config, client, server) as store:
            yield store


def _public_url(folder: Path) -> str:
    """Of the Redis that has this run's books, if it can be used without a password."""
    url = (folder / "url").read_text().strip()
    if urlsplit(url).password == "***":
        raise BadInput(
            f"this run's books are in the Redis at {url}, which wants a password: give it in ${URL_VARIABLE}"
        )
    return url


def _reach_or_copy(folder: Path, copy: Path, config: RedisConfig) -> redis.Redis | None:
    """A client of the private server that runs on the folder; without one, None, and the folder is copied."""
    backoff = Backoff(time.monotonic() + config.start_timeout_s, first_s=0.05, longest_s=0.05)
    while True:
        try:
            # Shared: audits may run side by side, but no server starts while the copy is made.
            with (folder / LOCK_NAME).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                shutil.copytree(folder, copy)
                return None
        except BlockingIOError:
            pass
        try:
            private = json.loads((folder / "server.json").read_text())
            address = {"unix_socket_path": private["socket"], "password": private["password"]}
            client = redis_client(**address, socket_timeout=config.operation_timeout_s)
            client.ping()
            return client
        except (redis.RedisError, OSError, KeyError) as error:  # it starts or ends just now: look again
            if not backoff.wait():
                raise BadInput(f"the redis-server on {folder} runs but does not answer: {error}") from None


def _run_id(run_directory: Path) -> str:
    """Made once, then read: a resumed run finds its own keys."""
    path = run_directory / "redis" / "run_id"
    if path.exists():
        return path.read_text().strip()
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", run_directory.resolve().name)
    run_id = f"{name}-{secrets.token_hex(4)}"
    write_aside(path, run_id + "\n")
    return run_id


def _write_private(server: PrivateRedis) -> None:
    """Where the private server listens, for an audit of a run that is alive. Readable by this user alone."""
    where = {"socket": str(server.socket_path), "password": server.password, "pid": server.pid}
    write_aside(server.data_directory / "server.json", json.dumps(where), private=True)
