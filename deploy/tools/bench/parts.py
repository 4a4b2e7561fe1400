"""The parts of a language run, each alone, for the benchmarks.
Production code does the work: this file only hands it batches and looks at the clock."""

from __future__ import annotations

import time

from rollcall.cluster.messages.records import Header, LMTrajectory, Ticket, Weights
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.tools.bench.aside import MEASURE_TIMEOUT_S
from rollcall.learners.loop.collective import Collective


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
            tickets.append(
                Ticket(Header(ticket_id, 1, self._epoch), seed, 0, lane, payload, deadline_s=MEASURE_TIMEOUT_S)
            )
        self._next += len(tickets)
        outcomes = self._actor.produce_all(tickets)
        assert len(outcomes) == len(tickets) and all(isinstance(outcome, tuple) for outcome in outcomes)
        return [outcome[1] for outcome in outcomes if isinstance(outcome, tuple)]


class Learning:
    """The production learner alone, on one batch again and again."""

    def __init__(self, parts: LanguageFactory) -> None:
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
