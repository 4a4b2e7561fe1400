"""The parts of a language run, each alone, for the benchmarks; and a process of its own for what must not share ours.
Production code does the work: this file only hands it batches and looks at the clock."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages import LMTrajectory, Ticket, Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.language_parts import LanguageParts
from rollcall.learners.collective import Collective
from rollcall.learners.learner import StepOrder

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
        self._process.kill()

    def _answer(self, timeout_s: float) -> Any:
        problem = f"gave no answer within {timeout_s:.0f} s"
        try:
            if self._here.poll(timeout_s):
                problem, value = self._here.recv()
                if not problem:
                    return value
        except (EOFError, ConnectionResetError):
            problem = "its process ended before it answered"
        self._process.kill()
        raise RollcallError(f"{self._what}: {problem}")


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


class Generation:
    """The production actor alone: batches of tickets, one after the other, under one version of the weights."""

    def __init__(self, parts: LanguageParts, weights: Weights) -> None:
        self._server = ParameterServer()
        self._server.publish(weights)
        self._epoch = weights.epoch
        self._actor = parts.actor("bench", self._server)
        self._config = parts.config
        self._work = parts.work()
        self._next = 0
        self._batch()

    def __call__(self, seconds: float) -> tuple[float, list[LMTrajectory]]:
        """Tokens per second over at least `seconds`, and the last batch."""
        num_tokens, began = 0, time.perf_counter()
        while True:
            batch = self._batch()
            num_tokens += sum(int(item.loss_mask.sum()) for item in batch)
            if time.perf_counter() - began >= seconds:
                return num_tokens / (time.perf_counter() - began), batch

    def _batch(self) -> list[LMTrajectory]:
        tickets = []
        for ticket_id in range(self._next, self._next + self._config.tickets_per_step):
            lane, payload = self._work.assign(ticket_id)
            seed = derive_seed(self._config.seed, "ticket", ticket_id)
            tickets.append(Ticket(ticket_id, 1, self._epoch, seed, 0, lane, payload, deadline_s=MEASURE_TIMEOUT_S))
        self._next += len(tickets)
        outcomes = self._actor.produce_all(tickets)
        assert len(outcomes) == len(tickets) and all(isinstance(outcome, tuple) for outcome in outcomes)
        return [outcome[1] for outcome in outcomes if isinstance(outcome, tuple)]


class Learning:
    """The production learner alone, on one batch again and again."""

    def __init__(self, parts: LanguageParts) -> None:
        self._learner = parts.learner(Collective())
        self._steps = 0
        self.batch: list[LMTrajectory] = []
        self.initial = self._learner.weights(epoch=1, version=0)

    def __call__(self, seconds: float) -> float:
        """Tokens per second over at least `seconds`."""
        num_tokens, began = 0, time.perf_counter()
        while True:
            self._learner.update(self.batch, StepOrder(self._steps, 1, 0.0))
            self._steps += 1
            num_tokens += sum(int(item.loss_mask.sum()) for item in self.batch)
            if time.perf_counter() - began >= seconds:
                return num_tokens / (time.perf_counter() - began)
