"""A process of its own for what a benchmark measures and must not share ours."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from rollcall.cluster.errors import RollcallError

START_TIMEOUT_S = 600.0  # of a process that builds an engine: it compiles the model on its first start
MEASURE_TIMEOUT_S = 900.0


class Aside:
    """A callable in a process of its own, which ends with ours, however that ends."""

    def __init__(self, what: str, build: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._what = what
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, build, arguments))
        self._process.start()
        there.close()  # so that each side sees the other's end
        self._answer(START_TIMEOUT_S)

    def __call__(self, *arguments: Any) -> Any:
        self._here.send(arguments)
        return self._answer(MEASURE_TIMEOUT_S)

    def close(self) -> None:
        self._here.close()
        self._process.join(30)
        self._end()

    def _answer(self, timeout_s: float) -> Any:
        problem = f"gave no answer within {timeout_s:.0f} s"
        try:
            if self._here.poll(timeout_s):
                problem, value = self._here.recv()
                if not problem:
                    return value
        except (EOFError, ConnectionResetError):
            problem = "its process ended before it answered"
        self._end()
        raise RollcallError(f"{self._what}: {problem}")

    def _end(self) -> None:
        self._process.kill()
        self._process.join(30)


def _serve(connection: Any, build: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # what is printed here is none of the result
    work: Callable[..., Any] = partial(build, *arguments)
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # nobody asks any more
        built = _answer(connection, work)
        while built is not None:
            arguments = connection.recv()
            _answer(connection, partial(built, *arguments), tell=True)


def _answer(connection: Any, work: Callable[[], Any], *, tell: bool = False) -> Any:
    """Does a piece of work, and says ("", its result) or (what went wrong, None)."""
    try:
        value = work()
    except Exception as error:
        connection.send((f"{type(error).__name__}: {error}", None))
        return None
    connection.send(("", value if tell else None))
    return value
