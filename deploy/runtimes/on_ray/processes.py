"""The members of a run as Ray actors: thin wrappers around plain classes that run without Ray. They add what a process
needs (a working directory, a log, a trace of where it hangs) and nothing else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import faulthandler
import os
import queue
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.published_weights import MODEL_PREFIX
from rollcall.actors.engine.vllm_weight_sender import Transport, WeightSender
from rollcall.actors.language.lm_actor import Failure, LMActor, Outcome
from rollcall.actors.language.lm_evaluation import LMEvaluator
from rollcall.cluster.inputs import given
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header, Produced, Ticket
from rollcall.cluster.messages.events import TicketFailed
from rollcall.cluster.messages.experience import GymExperience, LMTrajectory
from rollcall.cluster.messages.reports import EvalReport, StepOrder, StepReport
from rollcall.cluster.messages.weights import Canary, Weights
from rollcall.deploy.kinds.kind import MemberFactory
from rollcall.deploy.kinds.preference_trainer import TrainerReport, TrainRewardModel
from rollcall.deploy.runtimes.failures import CONTAINED, given_up, ticket_failure
from rollcall.deploy.runtimes.on_ray.faults import START_TIMEOUT_S
from rollcall.deploy.runtimes.on_ray.place import Place
from rollcall.deploy.runtimes.on_ray.ray_cluster.addresses import free_address, meeting_place
from rollcall.deploy.runtimes.on_ray.weights import ControlCalls, PrefetchedWeights, RayOffersSource, RayWeightsSource
from rollcall.deploy.runtimes.uncollected import uncollected
from rollcall.learners.collective import Collective
from rollcall.learners.loop.learner import Learner, resolve_device

ENGINE_STEP_TIMEOUT_S = 60.0  # after which a trace shows where an engine's step hangs
ASIDE = "aside"  # the thread of a learner's or trainer's process that hears while the other works
TRANSFER = "transfer"  # and the one that sends weights to engines


class GymActorProcess:
    """A GymActor as a Ray actor. A unit that hangs leaves a trace of where in its log before the driver ends it."""

    def __init__(self, actor_id: str, factory: MemberFactory, place: Place, logs: Path) -> None:
        _settle(place, logs / f"{actor_id}.log")
        with uncollected():
            factory.preload("actor")
        self._actor_id = actor_id
        self._traces = (logs / f"{actor_id}.trace").open("a")  # faulthandler's, for as long as the process lives

    def make(self, factory: MemberFactory, server: Any) -> str:
        """Makes the actor, once all is there that it loads. Returns the id of the node it is on."""
        self._actor: GymActor = factory.actor(self._actor_id, RayWeightsSource(server))
        return node_id()

    def produce(self, ticket: Ticket) -> tuple[Produced | TicketFailed, GymExperience | None]:
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

    def __init__(self, actor_id: str, factory: MemberFactory, place: Place, logs: Path) -> None:
        _settle(place, logs / f"{actor_id}.log")
        with uncollected():
            factory.preload("actor")
        self._actor_id = actor_id
        self._control = ControlCalls(_leave)
        self._made = asyncio.Event()
        self._traces = (logs / f"{actor_id}.trace").open("a")  # faulthandler's, for as long as the process lives
        self._inbox: queue.SimpleQueue[list[Ticket]] = queue.SimpleQueue()
        self._answers: dict[tuple[int, int, int], concurrent.futures.Future[Any]] = {}

    async def make(self, factory: MemberFactory, server: Any) -> str:
        """As GymActorProcess.make."""
        source = (
            RayWeightsSource(server)
            if factory.weight_transfer == "object_store"
            else RayOffersSource(server, self._control, factory.weight_transfer, self._actor_id)
        )
        self._source = PrefetchedWeights(source, self._actor_id)
        self._actor: LMActor = factory.actor(self._actor_id, self._source)
        threading.Thread(target=self._run, name="engine", daemon=True).start()
        self._made.set()
        return node_id()

    async def admit(self, tickets: list[Ticket]) -> None:
        """Takes tickets that begin together: once it is made, for Ray begins a call when what it is given is there, and
        may begin this one before `make`, whose factory is large."""
        await self._made.wait()
        for ticket in tickets:
            self._future(ticket)
        self._source.use_epoch(tickets[0].header.epoch)
        self._inbox.put(tickets)

    async def produce(self, ticket: Ticket) -> tuple[Produced | TicketFailed, LMTrajectory | None]:
        """What an admitted ticket produced. Ray promises no order among calls: it may be asked for before."""
        answer = self._future(ticket)
        try:
            outcome: tuple[Produced | TicketFailed, LMTrajectory | None] = await asyncio.wrap_future(answer)
            return outcome
        finally:
            del self._answers[_attempt(ticket.header)]

    def _future(self, ticket: Ticket) -> concurrent.futures.Future[Any]:
        return self._answers.setdefault(_attempt(ticket.header), concurrent.futures.Future())

    async def control(self, method: str, arguments: dict[str, Any]) -> None:
        """One of vLLM's control calls, from the learner that sends us weights."""
        await asyncio.wrap_future(self._control.put(method, arguments))

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
            self._answers[_attempt(outcome.ticket.header)].set_result((given_up(outcome), None))
        else:
            self._answers[_attempt(outcome[0].header)].set_result(outcome)


class ScoringProcess:
    """A TrajectoryScorer as a Ray actor, asked from several threads at once: what it does is wait for answers."""

    def __init__(self, factory: MemberFactory, place: Place, logs: Path) -> None:
        _settle(place, logs / "scoring.log")
        self._scorer = factory.scorer()

    def score(self, produced: Produced, trajectory: Any) -> tuple[Produced | TicketFailed, Any]:
        try:
            return self._scorer.score(produced, trajectory)
        except CONTAINED as error:
            return ticket_failure(produced, error), None


class PreferenceTrainerProcess:
    """A PreferenceTrainer as a Ray actor, which says that it is at work while it works."""

    def __init__(self, factory: MemberFactory, train: TrainRewardModel, place: Place, logs: Path) -> None:
        _settle(place, logs / "preference-trainer.log")
        training = factory.preference_training
        assert training is not None
        self._trainer = training.trainer(train)

    def offer(self, trajectory: Any) -> None:
        self._trainer.offer(trajectory)

    def advance(self, due: int) -> TrainerReport:
        return self._trainer.advance(due)

    @ray.method(concurrency_group=ASIDE)
    def get_beats(self) -> int:
        return self._trainer.beats


class LearnerProcess:
    """One learner process as a Ray actor, which hears of an interruption while it works."""

    def __init__(self, factory: MemberFactory, rank: int, num_processes: int, place: Place, logs: Path) -> None:
        _settle(place, logs / f"learner-{rank}.log")
        with uncollected():
            factory.preload("learner")
        self._factory = factory
        self._rank = rank
        self._num_processes = num_processes
        self._learner: Learner | None = None
        self._interrupted = threading.Event()
        self._names: CheckpointNames | None = None  # of a language model
        self._senders: dict[str, tuple[Any, WeightSender]] = {}  # actor -> its handle, and what sends to its engine

    @ray.method(concurrency_group=ASIDE)
    def interrupt(self) -> None:
        """The step under way is taken back, and no other begins."""
        self._interrupted.set()

    @ray.method(concurrency_group=ASIDE)
    def is_here(self) -> None:
        """Answers while it works, too."""

    @ray.method(concurrency_group=TRANSFER)
    def send_weights(self, actor_id: str, actor: Any, transport: Transport) -> tuple[int, int, Canary | None]:
        """Sends what was handed out last to the engine of a language actor, beside a step that may be under way.
        Returns its epoch, version and canary. Asked of process 0.

        Raises:
          Exception: from vLLM, NCCL or the actor; the actor's model may be half loaded then.
        """
        assert self._learner is not None
        copy = self._learner.device_copy
        assert copy is not None, "an actor asks for weights that were handed out"
        device = next(iter(copy.tensors.values())).device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            known, sender = self._senders.get(actor_id, (None, None))
            if sender is None or known != actor:  # or it was started anew, and has met nobody yet
                sender = WeightSender(transport, RayEngineControl(actor), address=free_address())
                self._senders[actor_id] = actor, sender
            tensors = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in copy.tensors.items()}
            named = self._checkpoint_names().tensors(tensors)
            sender.send({name: tensor.contiguous() for name, tensor in named.items()})
        return copy.epoch, copy.version, copy.canary

    def _checkpoint_names(self) -> CheckpointNames:
        if self._names is None:
            assert self._factory.model_directory is not None, "there are engines to send to"
            self._names = CheckpointNames(self._factory.model_directory)
        return self._names

    def address(self) -> str:
        """Where the processes of this learner meet; asked of process 0."""
        return meeting_place()

    def start(self, address: str, device: str, checkpoint: Path | None) -> str:
        """Builds the learner, from a checkpoint if given. Returns the id of the node it is on."""
        collective = (
            Collective.join(
                rank=self._rank, num_processes=self._num_processes, address=address, device=resolve_device(device)
            )
            if self._num_processes > 1
            else Collective()
        )
        self._learner = self._factory.learner(collective)
        self._learner.interrupted = self._interrupted.is_set
        if checkpoint is not None:
            self._learner.restore(checkpoint)
        return node_id()

    def step(self, order: StepOrder, *trajectories: GymExperience | LMTrajectory) -> tuple[StepReport, Weights | None]:
        assert self._learner is not None
        return self._learner.update(trajectories, order)

    def weights(self, epoch: int, version: int) -> Weights | None:
        """From process 0; asked of all."""
        assert self._learner is not None
        return self._learner.publish(epoch=epoch, version=version)

    def save(self, directory: Path, epoch: int, version: int) -> None:
        """By process 0; asked of all."""
        assert self._learner is not None
        self._learner.publish(epoch=epoch, version=version, checkpoint=directory)


class EvalProcess:
    """Evaluation in a process of its own."""

    def __init__(self, factory: MemberFactory, place: Place, logs: Path) -> None:
        _settle(place, logs / "evaluation.log")
        with uncollected():
            self._evaluator: Evaluator | LMEvaluator = factory.evaluator()

    def evaluate(self, weights: Weights, episodes: int) -> EvalReport:
        return self._evaluator.evaluate(weights, episodes)


class RayEngineControl:
    """A vllm_weight_sender.EngineControl of a language actor's process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, arguments: Mapping[str, Any]) -> None:
        ray.get(self._actor.control.remote(method, dict(arguments)), timeout=START_TIMEOUT_S)


def _attempt(header: Header) -> tuple[int, int, int]:
    """Which one it is, whoever makes it."""
    return header.epoch, *header.key


def _leave() -> None:
    """Ends this process at once: a thread of it waits for what nobody will send."""
    print("the learner is gone that was sending weights to this engine", file=sys.stderr, flush=True)
    os._exit(1)


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _settle(place: Place, log: Path) -> None:
    """User modules are found from where the user stands, as in the driver. (Of a job with a working directory Ray has
    brought along a copy, and this process stands in it.) What is printed here goes to the run's own log."""
    given.receive(place.objects)
    working_directory = place.working_directory
    if os.path.isdir(working_directory):
        os.chdir(working_directory)
        if working_directory not in sys.path:
            sys.path.insert(0, working_directory)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # by lines: whoever hangs has said what it said
    os.environ["PYTHONUNBUFFERED"] = "1"  # and so for envs in processes of their own
