"""Which Redis a run uses, and with which password: settings, environment, files. No message shows a password."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rollcall.cluster.backoff import Backoff
from rollcall.cluster.errors import BadInput
from rollcall.cluster.store.redis_config import PASSWORD_VARIABLE, URL_VARIABLE, RedisConfig


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


def given_url(config: RedisConfig) -> str | None:
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


def connect(url: str, config: RedisConfig) -> redis.Redis:
    where = f"{safe_url(url)} (from redis.url or ${URL_VARIABLE})"
    try:
        password = _password(url, config)
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=config.operation_timeout_s,
            socket_connect_timeout=min(config.start_timeout_s, config.operation_timeout_s),
            **({} if password is None else {"password": password}),
        )
    except ValueError as error:
        raise BadInput(f"not a Redis url: {where}: {error}") from None
    backoff = Backoff(time.monotonic() + config.start_timeout_s, first_s=0.1, longest_s=0.1)
    while True:
        try:
            client.ping()
            return client
        except redis.RedisError as error:
            refused = not may_pass(error)
            if refused or not backoff.wait():
                client.close()
                what = "refuses us" if refused else f"does not answer within {config.start_timeout_s:g} s"
                raise BadInput(f"the Redis at {where} {what}: {error}") from None


# How an answer begins that says so; a script's error has it in its middle.
_MAY_PASS = re.compile(r"(^|[ -])(MISCONF|CLUSTERDOWN|TRYAGAIN|MASTERDOWN) ")
_FULL = re.compile(r"(^|[ -]OOM )command not allowed when used memory")


def is_full(error: redis.RedisError) -> bool:
    """Whether Redis takes nothing more into its memory, and throws nothing away."""
    return isinstance(error, redis.OutOfMemoryError) or bool(_FULL.search(str(error)))


def may_pass(error: redis.RedisError) -> bool:
    """Whether waiting may help: Redis is away, loading, failing over, full, or its disk is. A wrong password is not."""
    if isinstance(error, redis.AuthenticationError):
        return False
    away = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError)
    return isinstance(error, away) or is_full(error) or bool(_MAY_PASS.search(str(error)))


def outage(error: redis.RedisError) -> str:
    """What is wrong with Redis, in a line, and what to do about it."""
    text = " ".join(str(error).split())
    if is_full(error):
        return "Redis is full (its maxmemory is used up): raise maxmemory, or remove what others keep there"
    if "MISCONF" in text:
        return f"Redis cannot write to its disk: make room there ({text[text.index('MISCONF') :][:120]})"
    return f"Redis is away ({text[:200]})"
