"""Redis in this process, as far as the books use it, for thousands of simulated runs: it runs the books' own scripts.
What it does not know it refuses; a test holds its answers against those of a real server."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from redis._parsers import Encoder
from redis.exceptions import NoScriptError, ResponseError

from tests.simulation.lua import Table, compiled

Value = dict[str, str] | str


class MemoryRedis:
    """What of redis.Redis the books call, with decoded responses."""

    def __init__(self) -> None:
        self.data: dict[str, Value] = {}
        self.commands = 0  # round trips

    # As a client.

    def evalsha(self, sha: str, num_keys: int, *arguments: Any) -> Any:
        if sha not in _scripts:
            raise NoScriptError("NOSCRIPT No matching script.")
        self.commands += 1
        return self._run(_scripts[sha], num_keys, arguments)

    def eval(self, script: str, num_keys: int, *arguments: Any) -> Any:
        self.commands += 1
        return self._run(script, num_keys, arguments)

    def script_load(self, script: str) -> str:
        sha = hashlib.sha1(script.encode()).hexdigest()
        _scripts[sha] = script
        return sha

    def get_encoder(self) -> Encoder:
        return Encoder("utf-8", "strict", decode_responses=True)

    def pipeline(self, transaction: bool = True) -> _Pipeline:
        return _Pipeline(self)

    def execute_command(self, *arguments: Any) -> Any:
        self.commands += 1
        return self._do(*arguments)

    def hget(self, key: str, name: str) -> Any:
        return self.execute_command("HGET", key, name)

    def hgetall(self, key: str) -> dict[str, str]:
        self.commands += 1
        return dict(self._hash(key))

    def hlen(self, key: str) -> Any:
        return self.execute_command("HLEN", key)

    def hmget(self, key: str, names: list[str]) -> Any:
        return self.execute_command("HMGET", key, *names)

    def hset(self, key: str, mapping: Mapping[Any, Any]) -> Any:
        return self.execute_command("HSET", key, *(item for pair in mapping.items() for item in pair))

    def hdel(self, key: str, *names: str) -> Any:
        return self.execute_command("HDEL", key, *names)

    def delete(self, *keys: str) -> Any:
        return self.execute_command("DEL", *keys)

    def keys(self, pattern: str = "*") -> list[str]:
        return [key for key in self.data if fnmatch.fnmatchcase(key, pattern)]

    def flushall(self) -> None:
        self.data.clear()

    def close(self) -> None: ...

    # Inside.

    def _run(self, script: str, num_keys: int, arguments: tuple[Any, ...]) -> Any:
        if script not in _compiled:
            _compiled[script] = compiled(script)
        texts = [str(argument) for argument in arguments]
        return _answer(_compiled[script](Table(texts[:num_keys]), Table(texts[num_keys:]), self._call))

    def _call(self, *arguments: Any) -> Any:
        """redis.call of a script."""
        found = self._do(*arguments)
        if found is None:
            return False
        if isinstance(found, dict):
            found = [item for pair in found.items() for item in pair]
        return Table(False if item is None else item for item in found) if isinstance(found, list) else found

    def _do(self, command: str, *arguments: Any) -> Any:
        action: Callable[..., Any] | None = getattr(self, f"_{command.lower()}", None)
        if action is None:
            raise ResponseError(f"{command} is not known here")
        return action(*map(str, arguments))

    def _hash(self, key: str) -> dict[str, str]:
        value = self.data.get(key, {})
        assert isinstance(value, dict)
        return value

    def _hget(self, key: str, name: str) -> str | None:
        return self._hash(key).get(name)

    def _hmget(self, key: str, *names: str) -> list[str | None]:
        return [self._hash(key).get(name) for name in names]

    def _hgetall(self, key: str) -> dict[str, str]:
        return self._hash(key)

    def _hlen(self, key: str) -> int:
        return len(self._hash(key))

    def _hset(self, key: str, *pairs: str) -> int:
        table = self.data.setdefault(key, {})
        assert isinstance(table, dict)
        before = len(table)
        table.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(table) - before

    def _hsetnx(self, key: str, name: str, value: str) -> int:
        return 0 if name in self._hash(key) else self._hset(key, name, value)

    def _hincrby(self, key: str, name: str, by: str) -> int:
        number = int(self._hash(key).get(name, "0")) + int(by)
        self._hset(key, name, str(number))
        return number

    def _hdel(self, key: str, *names: str) -> int:
        table = self._hash(key)
        gone = sum(table.pop(name, None) is not None for name in names)
        if not table:
            self.data.pop(key, None)
        return gone

    def _hscan(self, key: str, cursor: str, *_: str) -> list[Any]:
        """All at once."""
        return ["0", Table(item for pair in self._hash(key).items() for item in pair)]

    def _del(self, *keys: str) -> int:
        return sum(self.data.pop(key, None) is not None for key in keys)

    def _copy(self, source: str, target: str, *_: str) -> int:
        if source not in self.data:
            return 0
        self.data[target] = copy.copy(self.data[source])
        return 1


class _Pipeline:
    """A transaction: all at once, one round trip."""

    def __init__(self, redis: MemoryRedis) -> None:
        self._redis = redis
        self._queued: list[Callable[[], Any]] = []

    def __getattr__(self, command: str) -> Callable[..., None]:
        action = getattr(self._redis, command)
        return lambda *arguments, **named: self._queued.append(lambda: action(*arguments, **named))

    def execute(self) -> list[Any]:
        before = self._redis.commands
        answers = [action() for action in self._queued]
        self._redis.commands = before + 1
        return answers

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_scripts: dict[str, str] = {}
_compiled: dict[str, Callable[[Table, Table, Callable[..., Any]], Any]] = {}


def _answer(value: Any) -> Any:
    """What Redis makes of what a script returns."""
    if isinstance(value, Table):
        return [_answer(item) for item in value.array()]
    if value is True:
        return 1
    return None if value is False else value
