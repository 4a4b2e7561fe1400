"""The members of a run as Ray actors: thin wrappers around plain classes that run without Ray. They add what a process
needs (a working directory, a trace of where it hangs) and nothing else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import faulthandler
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray

from rollcall.actors.evaluation import Evaluator
from rollcall.actors.gym_actor import GymActor
from rollcall.actors.lm_actor import Failure, LMActor, Outcome
from rollcall.actors.lm_evaluation import LMEvaluator
from rollcall.cluster.errors import RollcallError, StaleEpoch
from rollcall.cluster.messages import Array, GymTrajectory, LMTrajectory, Produced, Ticket, Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.workers import TicketFailed
from rollcall.deploy.failures import CONTAINED, given_up, ticket_failure
from rollcall.deploy.parts import Parts
from rollcall.learners.collective import Collective
from rollcall.learners.learner import Learner, StepOrder, StepResult, resolve_device

INLINE_BYTES = 100_000  # Ray sends smaller values within the reply; larger ones are put into shared memory once
POLL_TIMEOUT_S = 10.0  # of one long poll for newer weights
ENGINE_STEP_TIMEOUT_S = 60.0  # after which a trace shows where an engine's step hangs
CONTROL_TIMEOUT_S = 60.0  # deadline of a call that only passes a message
ASIDE = "aside"  # the thread of the learner's process that hears while the other works


class ParameterServerProcess:
    """The parameter server as a Ray actor: holds a reference to each version that it still keeps. The objects are the
    driver's, as return values of the learner's steps: they outlive the learner, and lie in shared memory once."""

    def __init__(self, keep: int) -> None:
        self._server = ParameterServer(keep=keep)
        self._keep = keep
        self._objects: dict[tuple[int, int], Any] = {}

    def publish(self, references: list[Any]) -> int:
        """`references`: one reference, in a list so that Ray hands it over instead of its value."""
        weights: Weights = ray.get(references[0], timeout=CONTROL_TIMEOUT_S)
        if weights.size_bytes > INLINE_BYTES:  # known before anybody who waits for this version wakes up
            while len(self._objects) >= self._keep:
                del self._objects[next(iter(self._objects))]
            self._objects[weights.epoch, weights.version] = references[0]
        return self._server.publish(weights)

    def latest(self, epoch: int, newer_than: int, timeout_s: float, reader: str) -> Any:
        """Weights, a list of one reference to them, or None."""
        weights = self._server.latest(epoch=epoch, newer_than=newer_than, timeout_s=timeout_s, reader=reader)
        if weights is None:
            return None
        reference = self._objects.get((weights.epoch, weights.version))
        return weights if reference is None else [reference]

    def running(self) -> dict[str, tuple[int, int]]:
        return self._server.running()


class RayWeightsSource:
    """A WeightsSource whose parameter server is a Ray actor."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        reply = self._server.latest.remote(epoch, newer_than, timeout_s, reader)
        found = ray.get(reply, timeout=timeout_s + CONTROL_TIMEOUT_S)
        if isinstance(found, list):
            found = ray.get(found[0], timeout=CONTROL_TIMEOUT_S)
        return found  # type: ignore[no-any-return]


class GymActorProcess:
    """A GymActor as a Ray actor. A unit that hangs leaves a trace of where in its log before the driver ends it."""

    def __init__(self, actor_id: str, parts: Parts, server: Any, working_directory: str, traces: str) -> None:
        _use_working_directory(working_directory)
        self._actor: GymActor = parts.actor(actor_id, RayWeightsSource(server))
        self._traces = open(traces, "a")  # noqa: SIM115 - faulthandler writes to it for as long as the process lives

    def ready(self) -> str:
        return node_id()

    def produce(self, ticket: Ticket) -> tuple[Produced | TicketFailed, GymTrajectory | None]:
        faulthandler.dump_traceback_later(ticket.deadline_s * 0.9, file=self._traces)
        try:
            return self._actor.produce(ticket)
        except CONTAINED as error:
            return ticket_failure(ticket, error), None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def shard_states(self, undone: Collection[int]) -> tuple[dict[str, Array], dict[str, Any]] | None:
        return self._actor.shard_states(undone)

    def shard_state(self, shard: int) -> tuple[bool, Any]:
        return self._actor.shard_state(shard)

    def take_over(self, shard: int, state: Any) -> None:
        self._actor.take_over(shard, state)

    def restore_shards(self, tensors: dict[str, Array], meta: dict[str, Any]) -> None:
        self._actor.restore_shards(tensors, meta)


class LMActorProcess:
    """An LMActor as a Ray actor. Its engine steps in a thread of its own; calls wait on the event loop."""

    def __init__(self, actor_id: str, parts: Parts, server: Any, working_directory: str, traces: str) -> None:
        _use_working_directory(working_directory)
        self._source = PrefetchedWeights(RayWeightsSource(server), actor_id)
        self._actor: LMActor = parts.actor(actor_id, self._source)
        self._traces = open(traces, "a")  # noqa: SIM115 - faulthandler writes to it for as long as the process lives
        self._inbox: queue.SimpleQueue[list[Ticket]] = queue.SimpleQueue()
        self._answers: dict[tuple[int, int, int], concurrent.futures.Future[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def ready(self) -> str:
        return node_id()

    async def admit(self, tickets: list[Ticket]) -> None:
        """Takes tickets that begin together."""
        for ticket in tickets:
            self._future(ticket)
        self._source.use_epoch(tickets[0].epoch)
        self._inbox.put(tickets)

    async def produce(self, ticket: Ticket) -> tuple[Produced | TicketFailed, LMTrajectory | None]:
        """What an admitted ticket produced. Ray promises no order among calls: it may be asked for before."""
        answer = self._future(ticket)
        try:
            outcome: tuple[Produced | TicketFailed, LMTrajectory | None] = await asyncio.wrap_future(answer)
            return outcome
        finally:
            del self._answers[ticket.epoch, *ticket.key]

    def _future(self, ticket: Ticket) -> concurrent.futures.Future[Any]:
        return self._answers.setdefault((ticket.epoch, *ticket.key), concurrent.futures.Future())

    async def shard_states(self, undone: Collection[int]) -> tuple[dict[str, Array], dict[str, Any]] | None:
        return {}, {}

    async def restore_shards(self, tensors: dict[str, Array], meta: dict[str, Any]) -> None:
        """An engine at rest keeps nothing that a checkpoint would hold."""

    def _run(self) -> None:
        """The engine's loop. Whatever ends it is told to everybody who waits, so that the driver starts us anew."""
        try:
            while True:
                self._take_tickets(wait=self._actor.is_idle)
                faulthandler.dump_traceback_later(ENGINE_STEP_TIMEOUT_S, file=self._traces)
                for outcome in self._actor.advance():
                    self._answer(outcome)
                faulthandler.cancel_dump_traceback_later()
        except BaseException as error:
            for answer in list(self._answers.values()):
                if not answer.done():
                    answer.set_exception(error)

    def _take_tickets(self, *, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._actor.submit(self._inbox.get(block=wait))
                wait = False

    def _answer(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            ticket, answer = outcome.ticket, (given_up(outcome), None)
            key = (ticket.epoch, *ticket.key)
            self._answers[key].set_result(answer)
        else:
            self._answers[outcome[0].epoch, *outcome[0].key].set_result(outcome)


class PrefetchedWeights:
    """A WeightsSource that never waits: a thread fetches each version as it is published, and the newest is at hand."""

    def __init__(self, source: RayWeightsSource, reader: str) -> None:
        self._source = source
        self._reader = reader
        self._epoch = -1
        self._newest: Weights | None = None
        self._wanted = threading.Event()
        threading.Thread(target=self._run, name="weights", daemon=True).start()

    def use_epoch(self, epoch: int) -> None:
        self._epoch = max(self._epoch, epoch)
        self._wanted.set()

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        newest = self._newest
        if newest is None or newest.epoch != epoch or newest.version <= newer_than:
            return None
        return newest

    def _run(self) -> None:
        self._wanted.wait()
        while True:
            newest = self._newest
            newer_than = newest.version if newest is not None and newest.epoch == self._epoch else -1
            try:
                found = self._source.latest(
                    epoch=self._epoch, newer_than=newer_than, timeout_s=POLL_TIMEOUT_S, reader=self._reader
                )
            except (StaleEpoch, ray.exceptions.RayError, RollcallError):
                time.sleep(1.0)  # of an epoch that has ended, or the server is being replaced: ask again
                continue
            if found is not None:
                self._newest = found


class ScoringProcess:
    """A TrajectoryScorer as a Ray actor, asked from several threads at once: what it does is wait for answers."""

    def __init__(self, parts: Parts, working_directory: str) -> None:
        _use_working_directory(working_directory)
        self._scorer = parts.scorer()

    def score(self, produced: Produced, trajectory: Any) -> tuple[Produced | TicketFailed, Any]:
        try:
            return self._scorer.score(produced, trajectory)
        except CONTAINED as error:
            return ticket_failure(produced, error), None


class LearnerProcess:
    """One learner process as a Ray actor, which hears of an interruption while it works."""

    def __init__(self, parts: Parts, rank: int, num_processes: int, working_directory: str) -> None:
        _use_working_directory(working_directory)
        self._parts = parts
        self._rank = rank
        self._num_processes = num_processes
        self._learner: Learner | None = None
        self._interrupted = threading.Event()

    @ray.method(concurrency_group=ASIDE)
    def interrupt(self) -> None:
        """The step under way is taken back, and no other begins."""
        self._interrupted.set()

    def address(self) -> str:
        """host:port at which the processes of this learner meet; asked of process 0."""
        with socket.socket() as probe:
            probe.bind((ray.util.get_node_ip_address(), 0))
            host, port = probe.getsockname()
        return f"{host}:{port}"

    def start(self, address: str, device: str, checkpoint: Path | None) -> str:
        """Builds the learner, from a checkpoint if given. Returns the id of the node it is on."""
        collective = (
            Collective.join(
                rank=self._rank, num_processes=self._num_processes, address=address, device=resolve_device(device)
            )
            if self._num_processes > 1
            else Collective()
        )
        self._learner = self._parts.learner(collective)
        self._learner.interrupted = self._interrupted.is_set
        if checkpoint is not None:
            self._learner.restore(checkpoint)
        return node_id()

    def step(self, order: StepOrder, *trajectories: GymTrajectory | LMTrajectory) -> tuple[StepResult, Weights | None]:
        assert self._learner is not None
        return self._learner.update(trajectories, order)

    def weights(self, epoch: int, version: int) -> Weights | None:
        """From process 0; asked of all."""
        assert self._learner is not None
        return self._learner.hand_out(epoch=epoch, version=version)

    def save(self, directory: Path, epoch: int, version: int) -> None:
        """By process 0; asked of all."""
        assert self._learner is not None
        self._learner.hand_out(epoch=epoch, version=version, checkpoint=directory)


class EvalProcess:
    """Evaluation in a process of its own."""

    def __init__(self, parts: Parts, working_directory: str) -> None:
        _use_working_directory(working_directory)
        self._evaluator: Evaluator | LMEvaluator = parts.evaluator()

    def evaluate(self, weights: Weights, episodes: int) -> Any:
        return self._evaluator.evaluate(weights, episodes)


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _use_working_directory(path: str) -> None:
    """User modules are found from where the user stands, as in the driver. (Of a job with a working directory Ray has
    brought along a copy, and this process stands in it.)"""
    if os.path.isdir(path):
        os.chdir(path)
        if path not in sys.path:
            sys.path.insert(0, path)
