"""The serial runtime: actor, learner, parameter server and evaluator in one process, one thing at a time, without Ray.
For debugging, and the reference that a distributed run at lag 0 must equal bit for bit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.language.lm_actor import Failure, LMActor
from rollcall.actors.language.lm_evaluation import LMEvaluator
from rollcall.actors.trajectory_scoring import TrajectoryScorer
from rollcall.cluster.errors import EngineMismatch, NonFinite, RewardError, RollcallError
from rollcall.cluster.messages.attempt import Produced, Ticket
from rollcall.cluster.messages.events import (
    EvalDone,
    Event,
    Handle,
    LearnerSaved,
    ShardStates,
    States,
    StepDone,
    TicketProduced,
    TicketScored,
)
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.deploy.kinds.preference_trainer import PreferenceTrainer, TrainerReport
from rollcall.deploy.runtimes.failures import CONTAINED, given_up, ticket_failure
from rollcall.deploy.runtimes.preference_gate import PreferenceGate
from rollcall.learners.loop.learner import Learner


class SerialWorkers:
    """Does each piece of work when it is polled for, in the order in which it was submitted."""

    restarts = 0
    restarts_by_role: Mapping[str, int] = {}  # nobody is started again here
    have_started = True

    def __init__(
        self,
        *,
        actor: GymActor | LMActor | None,
        learner: Learner,
        parameter_server: ParameterServer,
        evaluator: Callable[[], Evaluator | LMEvaluator],
        episodes: int,
        scorer: TrajectoryScorer | None = None,
        gate: PreferenceGate | None = None,
    ) -> None:
        """`actor`: None where all are outside; `gate`: of a run from preferences."""
        self._actor = actor
        self._scorer = scorer
        self._gate = gate
        self._learner = learner
        self._server = parameter_server
        self._build_evaluator = evaluator
        self._evaluator: Evaluator | LMEvaluator | None = None
        self._episodes = episodes
        self._threads = torch.get_num_threads()  # as the actor set them
        self._jobs: deque[Callable[[], Sequence[Event]]] = deque()
        self._asked: deque[Callable[[], list[Event]]] = deque()  # how all is now, before any other job
        self._weights: Weights | None = None

    def start(self, checkpoint: Path | None, *, shard_state: States | None) -> None:
        if self._gate is not None:
            self._gate.start()
        if checkpoint is not None:
            self._learner.restore(checkpoint)
        if shard_state is not None and isinstance(self._actor, GymActor):
            self._actor.restore_shards(*shard_state)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        self._publish(self._learner.weights(epoch=epoch, version=version))

    @property
    def weights_hash(self) -> str:
        return self._weights.checksum if self._weights is not None else ""

    @property
    def newest(self) -> Weights | None:
        return self._weights

    def weights_of(self, newest: Handle) -> Weights | None:
        assert isinstance(newest, Weights)
        return newest

    def adopt(self, trajectory: GymTrajectory) -> Handle:
        return trajectory

    def close(self) -> None:
        pass

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        actor = self._actor
        if isinstance(actor, GymActor):
            self._jobs += [partial(self._produce, actor, ticket) for ticket in tickets]
        else:
            assert actor is not None, "tickets of a run whose actors are all outside"
            self._jobs.append(partial(self._generate, actor, tickets))

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        assert self._scorer is not None
        score = self._score if self._gate is None else self._hold
        self._jobs.append(partial(score, produced, handle))

    def submit_step(self, order: StepOrder, handles: Sequence[Handle]) -> None:
        self._jobs.append(partial(self._learn, order, handles))

    def submit_eval(self, *, step: int, env_steps: int) -> None:
        weights = self._weights
        assert weights is not None, "published before anybody evaluates"
        self._jobs.append(partial(self._evaluate, step, env_steps, weights))

    @property
    def evals_pending(self) -> bool:
        return bool(self._jobs)

    def poll(self, timeout_s: float) -> list[Event]:
        if self._asked:
            return self._asked.popleft()()
        if self._gate is not None and not self._jobs:  # raters are asked about all that can be made before
            let_through = self._gate.tend()
            if let_through or len(self._gate):  # in turn: nobody else works meanwhile
                return [event for produced, handle in let_through for event in self._score(produced, handle)]
        return list(self._jobs.popleft()()) if self._jobs else []

    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None:
        self._asked.append(partial(self._save, directory, epoch, version))

    def submit_shard_states(self, undone: Collection[int] = ()) -> None:
        self._asked.append(partial(self._shard_states, undone))

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int) -> None:
        raise AssertionError("the serial runtime's learner dies with the driver")

    def interrupt_learner(self) -> None:
        self._learner.interrupted = lambda: True  # no step is under way here: those that wait do not begin

    def waiting_for(self) -> str:
        return f"{len(self._jobs)} jobs of this process"

    def _produce(self, actor: GymActor, ticket: Ticket) -> list[Event]:
        torch.set_num_threads(self._threads)
        try:
            produced, trajectory = actor.produce(ticket)
        except CONTAINED as error:
            return [ticket_failure(ticket, error)]
        return [TicketProduced(produced, trajectory)]

    def _generate(self, actor: LMActor, tickets: Sequence[Ticket]) -> list[Event]:
        torch.set_num_threads(self._threads)
        return [
            given_up(outcome) if isinstance(outcome, Failure) else TicketProduced(*outcome)
            for outcome in actor.produce_all(tickets)
        ]

    def _hold(self, produced: Produced, handle: Handle) -> list[Event]:
        assert self._gate is not None
        self._gate.hold(produced, handle)
        return []

    def _score(self, produced: Produced, handle: Handle) -> list[Event]:
        assert self._scorer is not None
        try:
            return [TicketScored(*self._scorer.score(produced, handle))]
        except CONTAINED as error:
            return [ticket_failure(produced, error)]

    def _learn(self, order: StepOrder, handles: Sequence[Handle]) -> list[Event]:
        report, weights = self._learner.update(handles, order)
        began = time.perf_counter()
        if weights is not None:
            self._publish(weights)
        return [StepDone(report, time.perf_counter() - began)]

    def _publish(self, weights: Weights) -> None:
        self._weights = weights
        self._server.publish(weights)

    def _save(self, directory: Path, epoch: int, version: int) -> list[Event]:
        self._learner.save(directory, self._learner.weights(epoch=epoch, version=version))
        return [LearnerSaved()]

    def _shard_states(self, undone: Collection[int]) -> list[Event]:
        return [ShardStates(self._actor.shard_states(undone) if isinstance(self._actor, GymActor) else ({}, {}))]

    def _evaluate(self, step: int, env_steps: int, weights: Weights) -> list[Event]:
        torch.set_num_threads(self._threads)
        if self._evaluator is None:
            self._evaluator = self._build_evaluator()
        try:
            return [EvalDone(step, env_steps, self._evaluator.evaluate(weights, self._episodes))]
        except EngineMismatch:
            raise
        except (RollcallError, NonFinite) as error:
            return [EvalDone(step, env_steps, None, str(error))]


class TrainerInTurn:
    """The TrainerCalls of a preference trainer in this process: what is asked for is done when the call returns."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self._trainer = trainer
        self._report: TrainerReport | None = None

    def start(self) -> None: ...

    def offer(self, trajectory: Handle) -> None:
        self._trainer.offer(trajectory)

    def advance(self, due: int) -> None:
        try:
            self._report = self._trainer.advance(due)
        except RollcallError:
            raise
        except Exception as error:
            raise RewardError(f"preferences: {error!r}") from error

    def report(self) -> TrainerReport | None:
        return self._report

    def beats(self) -> int:
        return self._trainer.beats

    def end(self) -> None: ...
