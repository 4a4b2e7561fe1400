"""The parts of a run, each alone, for the benchmarks.
Production code does the work: this file only hands it batches and looks at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rollcall.cluster.messages.attempt import Header, PromptPayload, ShardPayload, Ticket
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.tools.bench.aside import MEASURE_TIMEOUT_S
from rollcall.learners.collective import Collective
from rollcall.learners.loop.learner import Learner


def make_ticket(number: int, run_seed: int, epoch: int, lane: int, payload: ShardPayload | PromptPayload) -> Ticket:
    """As the driver issues it the first time."""
    seed = derive_seed(run_seed, "ticket", number)
    return Ticket(Header(number, 1, epoch), seed, 0, lane, payload, deadline_s=MEASURE_TIMEOUT_S)


class Generation:
    """The production actor alone: batches of tickets, one after the other, under one version of the weights."""

    def __init__(self, parts: LanguageFactory, weights: Weights) -> None:
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
        amount, began = 0, time.perf_counter()
        while True:
            batch = self._batch()
            amount += sum(map(num_tokens, batch))
            if time.perf_counter() - began >= seconds:
                return amount / (time.perf_counter() - began), batch

    def _batch(self) -> list[LMTrajectory]:
        tickets = []
        for ticket_id in range(self._next, self._next + self._config.tickets_per_step):
            lane, payload = self._work.assign(ticket_id)
            tickets.append(make_ticket(ticket_id, self._config.seed, self._epoch, lane, payload))
        self._next += len(tickets)
        outcomes = self._actor.produce_all(tickets)
        assert len(outcomes) == len(tickets) and all(isinstance(outcome, tuple) for outcome in outcomes)
        return [outcome[1] for outcome in outcomes if isinstance(outcome, tuple)]


class Learning:
    """The production learner alone, on one batch again and again. `amount`: a trajectory's env steps or tokens."""

    def __init__(self, parts: ControlFactory | LanguageFactory, amount: Callable[[Any], int]) -> None:
        self._learner: Learner = parts.learner(Collective())
        self._amount = amount
        self._steps = 0
        self.batch: list[Any] = []
        self.initial = self._learner.weights(epoch=1, version=0)

    def __call__(self, seconds: float) -> float:
        """Env steps or tokens per second over at least `seconds`."""
        amount, began = 0, time.perf_counter()
        while True:
            self._learner.update(self.batch, StepOrder(self._steps, 1, 0.0))
            self._steps += 1
            amount += sum(map(self._amount, self.batch))
            if time.perf_counter() - began >= seconds:
                return amount / (time.perf_counter() - began)


def num_tokens(item: LMTrajectory) -> int:
    """That the policy sampled."""
    return int(item.loss_mask.sum())
