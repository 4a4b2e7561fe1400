"""The members of a run as Ray actors: thin wrappers around plain classes that run without Ray. They add what a process
needs (a working directory, a trace of where it hangs) and nothing else."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from rollcall.actors.evaluation import Evaluator
from rollcall.actors.gym_actor import GymActor
from rollcall.cluster.messages import Array, GymTrajectory, Produced, Ticket, Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.workers import TicketFailed
from rollcall.deploy.failures import CONTAINED, ticket_failure
from rollcall.learners.collective import Collective
from rollcall.learners.learner import Learner, StepOrder, StepResult, resolve_device

INLINE_BYTES = 100_000  # Ray sends smaller values within the reply; larger ones are put into shared memory once
CONTROL_TIMEOUT_S = 60.0  # deadline of a call that only passes a message

ActorFactory = Callable[[str, Any], GymActor]  # (actor id, weights source)
LearnerFactory = Callable[[Collective], Learner]


class ParameterServerProcess:
    """The parameter server as a Ray actor: owns the object of each version that it still keeps."""

    def __init__(self, keep: int) -> None:
        self._server = ParameterServer(keep=keep)
        self._keep = keep
        self._objects: dict[tuple[int, int], Any] = {}

    def publish(self, weights: Weights) -> int:
        version = self._server.publish(weights)
        if weights.size_bytes > INLINE_BYTES:
            while len(self._objects) >= self._keep:
                del self._objects[next(iter(self._objects))]
            self._objects[weights.epoch, version] = ray.put(weights)
        return version

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

    def __init__(self, actor_id: str, factory: ActorFactory, server: Any, working_directory: str, traces: str) -> None:
        _use_working_directory(working_directory)
        self._actor = factory(actor_id, RayWeightsSource(server))
        self._traces = open(traces, "a")  # noqa: SIM115 - faulthandler writes to it for as long as the process lives

    def ready(self) -> int:
        return os.getpid()

    def produce(self, ticket: Ticket) -> tuple[Produced | TicketFailed, GymTrajectory | None]:
        faulthandler.dump_traceback_later(ticket.deadline_s * 0.9, file=self._traces)
        try:
            return self._actor.produce(ticket)
        except CONTAINED as error:
            return ticket_failure(ticket, error), None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def shard_states(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        return self._actor.shard_states()

    def restore_shards(self, tensors: dict[str, Array], meta: dict[str, Any]) -> None:
        self._actor.restore_shards(tensors, meta)


class LearnerProcess:
    """One learner process as a Ray actor."""

    def __init__(self, factory: LearnerFactory, rank: int, num_processes: int, working_directory: str) -> None:
        _use_working_directory(working_directory)
        self._factory = factory
        self._rank = rank
        self._num_processes = num_processes
        self._learner: Learner | None = None

    def address(self) -> str:
        """host:port at which the processes of this learner meet; asked of process 0."""
        with socket.socket() as probe:
            probe.bind((ray.util.get_node_ip_address(), 0))
            host, port = probe.getsockname()
        return f"{host}:{port}"

    def start(self, address: str, device: str, checkpoint: Path | None) -> int:
        """Builds the learner, from a checkpoint if given."""
        collective = (
            Collective.join(
                rank=self._rank, num_processes=self._num_processes, address=address, device=resolve_device(device)
            )
            if self._num_processes > 1
            else Collective()
        )
        self._learner = self._factory(collective)
        if checkpoint is not None:
            self._learner.restore(checkpoint)
        return os.getpid()

    def step(self, order: StepOrder, *trajectories: GymTrajectory) -> tuple[StepResult, Weights | None]:
        assert self._learner is not None
        return self._learner.update(trajectories, order)

    def weights(self, epoch: int, version: int) -> Weights:
        assert self._learner is not None
        return self._learner.weights(epoch=epoch, version=version)

    def save(self, directory: Path, epoch: int, version: int) -> None:
        assert self._learner is not None
        self._learner.save(directory, self._learner.weights(epoch=epoch, version=version))


class EvalProcess:
    """Evaluation in a process of its own."""

    def __init__(self, factory: Callable[[], Evaluator], working_directory: str) -> None:
        _use_working_directory(working_directory)
        self._evaluator = factory()

    def evaluate(self, weights: Weights, episodes: int) -> Any:
        return self._evaluator.evaluate(weights, episodes)


def _use_working_directory(path: str) -> None:
    """User modules are found from where the user stands, as in the driver."""
    if os.path.isdir(path):
        os.chdir(path)
        if path not in sys.path:
            sys.path.insert(0, path)
