"""One run's Redis: a private server started here or one at redis.url, and calls that outlive an outage of either.
Must never know what a key means."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from rollcall.cluster.errors import BadInput, StoreUnavailable
from rollcall.cluster.store.redis_server import LOCK_NAME, PrivateRedis, redis_client
from rollcall.cluster.store.run_lock import DirectoryLock, RunLock

URL_VARIABLE = "ROLLCALL_REDIS_URL"
PASSWORD_VARIABLE = "ROLLCALL_REDIS_PASSWORD_FILE"
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RedisConfig(BaseModel):
    """Where the run's books are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: SecretStr | None = Field(
        default=None, description=f"redis://... to use; none: ${URL_VARIABLE}, else a private server on this machine"
    )
    password_file: Path | None = Field(
        default=None,
        description=f"a file with that Redis's password, in place of one in the url; none: ${PASSWORD_VARIABLE}",
    )
    start_timeout_s: float = Field(
        default=10.0, gt=0, description="how long Redis may take to answer for the first time"
    )
    operation_timeout_s: float = Field(default=5.0, gt=0, description="how long one operation may take")
    reconnect_timeout_s: float = Field(
        default=60.0, gt=0, description="how long an outage may last before the run stops"
    )


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
        """Runs `operation(client)`, again and again while Redis is away: it must be idempotent.

        Raises:
          StoreUnavailable: Redis was away for reconnect_timeout_s, or no longer takes our password.
          RunAlive: another driver has taken this run over; nothing was written.
        """
        deadline: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            if self._run_lock is not None:
                self._run_lock.check()
            try:
                result = operation(self.client)
                self._given_up = False
                if deadline is not None:
                    _log.warning("Redis answers again")
                return result
            except redis.RedisError as error:
                if not _passes(error):
                    raise
                patience_s = self._config.reconnect_timeout_s
                if deadline is None:
                    deadline = time.monotonic() + patience_s
                    _log.warning(
                        "Redis is away (%s); trying again for %g s (redis.reconnect_timeout_s)", error, patience_s
                    )
                if self._given_up or time.monotonic() >= deadline:
                    self._given_up = True
                    raise StoreUnavailable(
                        f"Redis did not answer for {patience_s:g} s (redis.reconnect_timeout_s): {error}"
                    ) from error
            self._revive()
            time.sleep(min(pause_s * random.uniform(0.5, 1.5), max(0.0, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

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
        url = _url(config)
        if url is not None:
            client = _connect(url, config)
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
            client = _connect(_url(config) or _public_url(folder), config)
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


def safe_url(url: str) -> str:
    """The url without its password, for messages and files."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def url_with_password(url: str) -> str:
    """With the password of the file that $ROLLCALL_REDIS_PASSWORD_FILE names, where the url has none.

    Raises:
      BadInput: when the file cannot be read, or is empty.
    """
    parts = urlsplit(url)
    password = None if parts.password is not None else _password(url, RedisConfig())
    if password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{quote(password, safe='')}@{host}"))


def _url(config: RedisConfig) -> str | None:
    if config.url is not None:
        return config.url.get_secret_value()
    return os.environ.get(URL_VARIABLE) or None


def _password_file(config: RedisConfig) -> Path | None:
    if config.password_file is not None:
        return config.password_file
    return Path(os.environ[PASSWORD_VARIABLE]) if os.environ.get(PASSWORD_VARIABLE) else None


def _password(url: str, config: RedisConfig) -> str | None:
    """Of the file; None without one.

    Raises:
      BadInput: when it cannot be read, is empty, or the url has a password too.
    """
    path = _password_file(config)
    if path is None:
        return None
    where = f"{path} (from redis.password_file or ${PASSWORD_VARIABLE})"
    if urlsplit(url).password is not None:
        raise BadInput(f"{where}: the url {safe_url(url)} has a password too: leave it out of there")
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read Redis's password from {where}: {getattr(error, 'strerror', error)}") from None
    if not password:
        raise BadInput(f"{where} is empty: it has to hold Redis's password")
    return password


def _public_url(folder: Path) -> str:
    """Of the Redis that has this run's books, if it can be used without a password."""
    url = (folder / "url").read_text().strip()
    if urlsplit(url).password == "***":
        raise BadInput(
            f"this run's books are in the Redis at {url}, which wants a password: give it in ${URL_VARIABLE}"
        )
    return url


def _connect(url: str, config: RedisConfig) -> redis.Redis:
    timeouts: dict[str, Any] = {
        "socket_timeout": config.operation_timeout_s,
        "socket_connect_timeout": min(config.start_timeout_s, config.operation_timeout_s),
    }
    where = f"{safe_url(url)} (from redis.url or ${URL_VARIABLE})"
    try:
        password = _password(url, config)
        if password is not None:
            timeouts["password"] = password
        client = redis.Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0), **timeouts)
    except ValueError as error:
        raise BadInput(f"not a Redis url: {where}: {error}") from None
    deadline = time.monotonic() + config.start_timeout_s
    while True:
        try:
            client.ping()
            return client
        except redis.RedisError as error:
            refused = not _passes(error)
            if refused or time.monotonic() > deadline:
                client.close()
                what = "refuses us" if refused else f"does not answer within {config.start_timeout_s:g} s"
                raise BadInput(f"the Redis at {where} {what}: {error}") from None
        time.sleep(0.1)


def _passes(error: redis.RedisError) -> bool:
    """Whether waiting may help: Redis is away, loading, failing over, or its disk is full. A wrong password is not."""
    if isinstance(error, redis.AuthenticationError):
        return False
    away = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError)
    return isinstance(error, away) or str(error).startswith(("MISCONF", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN"))


def _reach_or_copy(folder: Path, copy: Path, config: RedisConfig) -> redis.Redis | None:
    """A client of the private server that runs on the folder; without one, None, and the folder is copied."""
    deadline = time.monotonic() + config.start_timeout_s
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
            address = {"host": "127.0.0.1", "port": private["port"], "password": private["password"]}
            client = redis_client(**address, socket_timeout=config.operation_timeout_s)
            client.ping()
            return client
        except (redis.RedisError, OSError) as error:  # it starts or ends just now: look again
            if time.monotonic() > deadline:
                raise BadInput(f"the redis-server on {folder} runs but does not answer: {error}") from None
        time.sleep(0.05)


def _run_id(run_directory: Path) -> str:
    """Made once, then read: a resumed run finds its own keys."""
    path = run_directory / "redis" / "run_id"
    if path.exists():
        return path.read_text().strip()
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", run_directory.resolve().name)
    run_id = f"{name}-{secrets.token_hex(4)}"
    aside = path.with_suffix(".new")
    aside.write_text(run_id + "\n")
    aside.rename(path)
    return run_id


def _write_private(server: PrivateRedis) -> None:
    """Where the private server listens, for an audit of a run that is alive. Readable by this user alone."""
    path = server.data_directory / "server.json"
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"port": server.port, "password": server.password, "pid": server.pid}, file)
    aside.rename(path)
