"""The serial runtime: actor, learner, parameter server and evaluator in one process, one thing at a time, without Ray.
For debugging, and the reference that a distributed run at lag 0 must equal bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.language.lm_actor import Failure, LMActor
from rollcall.actors.language.lm_evaluation import LMEvaluator
from rollcall.cluster.errors import EngineMismatch, NonFinite, RollcallError
from rollcall.cluster.messages.events import EvalDone, Event, Handle, StepDone, TicketProduced, TicketScored
from rollcall.cluster.messages.records import Array, Produced, Ticket, Weights
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.deploy.kinds.parts import Scorer
from rollcall.deploy.runtimes.failures import CONTAINED, given_up, ticket_failure
from rollcall.learners.loop.learner import Learner


class SerialWorkers:
    """Does each piece of work when it is polled for, in the order in which it was submitted."""

    restarts = 0
    restarts_by_role: Mapping[str, int] = {}  # nobody is started again here

    def __init__(
        self,
        *,
        actor: GymActor | LMActor,
        learner: Learner,
        parameter_server: ParameterServer,
        evaluator: Callable[[], Evaluator | LMEvaluator],
        episodes: int,
        scorer: Scorer | None = None,
    ) -> None:
        self._actor = actor
        self._scorer = scorer
        self._learner = learner
        self._server = parameter_server
        self._build_evaluator = evaluator
        self._evaluator: Evaluator | LMEvaluator | None = None
        self._episodes = episodes
        self._threads = torch.get_num_threads()  # as the actor set them
        self._jobs: deque[Callable[[], Sequence[Event]]] = deque()
        self._weights: Weights | None = None

    def start(self, checkpoint: Path | None, *, shard_state: tuple[dict[str, Array], dict[str, Any]] | None) -> None:
        if checkpoint is not None:
            self._learner.restore(checkpoint)
        if shard_state is not None and isinstance(self._actor, GymActor):
            self._actor.restore_shards(*shard_state)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        self.publish(self._learner.weights(epoch=epoch, version=version))

    @property
    def weights_hash(self) -> str:
        return self._weights.checksum if self._weights is not None else ""

    def close(self) -> None:
        pass

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        actor = self._actor
        if isinstance(actor, GymActor):
            self._jobs += [partial(self._produce, actor, ticket) for ticket in tickets]
        else:
            self._jobs.append(partial(self._generate, actor, tickets))

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        assert self._scorer is not None
        self._jobs.append(partial(self._score, self._scorer, produced, handle))

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
        return list(self._jobs.popleft()()) if self._jobs else []

    def publish(self, weights: Handle) -> None:
        assert isinstance(weights, Weights)
        self._weights = weights
        self._server.publish(weights)

    def save_learner(self, directory: Path, *, epoch: int, version: int) -> None:
        self._learner.save(directory, self._learner.weights(epoch=epoch, version=version))

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int, detail: str) -> None:
        raise AssertionError("the serial runtime's learner dies with the driver")

    def interrupt_learner(self) -> None:
        self._learner.interrupted = lambda: True  # no step is under way here: those that wait do not begin

    def shard_states(self, undone: Collection[int] = ()) -> tuple[dict[str, Array], dict[str, Any]] | None:
        return self._actor.shard_states(undone) if isinstance(self._actor, GymActor) else ({}, {})

    def waiting_for(self) -> str:
        return f"{len(self._jobs)} jobs of this process"

    def release(self, handle: Handle) -> None:
        pass

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

    def _score(self, scorer: Scorer, produced: Produced, handle: Handle) -> list[Event]:
        try:
            return [TicketScored(*scorer.score(produced, handle))]
        except CONTAINED as error:
            return [ticket_failure(produced, error)]

    def _learn(self, order: StepOrder, handles: Sequence[Handle]) -> list[Event]:
        return [StepDone(*self._learner.update(handles, order))]

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
