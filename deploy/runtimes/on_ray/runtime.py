"""The Ray runtime: the coordinator's Workers, with every member of the run a Ray actor in processes.py.
Knows who is alive and what each was asked; must never decide what happens to the books."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import EngineMismatch, RollcallError
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.events import EvalDone, Event, Handle, LearnerLost, StepDone
from rollcall.cluster.messages.records import Array, Produced, Ticket
from rollcall.cluster.messages.reports import StepOrder
from rollcall.deploy.rundir.storage_faults import storage_fault
from rollcall.deploy.runtimes.on_ray.actors import Pending, RayActors
from rollcall.deploy.runtimes.on_ray.cluster import Cluster
from rollcall.deploy.runtimes.on_ray.faults import (
    CONTROL_TIMEOUT_S,
    START_TIMEOUT_S,
    cause_of,
    death_of,
    in_a_line,
    is_raised,
    no_room_for,
    node_of,
    raised_in,
)
from rollcall.deploy.runtimes.on_ray.members import Composition, Members
from rollcall.deploy.runtimes.on_ray.nodes import check_nodes
from rollcall.deploy.runtimes.on_ray.placement import Placement
from rollcall.deploy.runtimes.on_ray.scoring import RayScoring

_log = logging.getLogger("rollcall")


class RayWorkers:
    """The coordinator's Workers, on Ray."""

    def __init__(self, composition: Composition, cluster: Cluster, tell: Callable[[str, str], None]) -> None:
        """`tell`: (kind, text) of what takes long before anything begins.

        Raises:
          BadInput: when the cluster has no room for the run, or its nodes lack what the run needs.
        """
        self._plan = composition
        self._cluster = cluster
        generates = composition.parts.kind == "language"
        self._placement = Placement(
            composition.cluster,
            num_learners=composition.num_learner_processes,
            num_actors=composition.num_actors,
            actors_generate=generates,
            learner_uses_gpu=composition.learner_device != "cpu",
            private=cluster.private,
        )
        self._placement.reserve(lambda text: tell("room", text))
        if not cluster.private:
            check_nodes(self._placement.node_ids(), composition.needs)
        self._members = Members(composition, self._placement)
        self._pending: Pending = {}
        self._server = self._members.server()
        self._server_budget = self._budget("the parameter server")
        self._server_restarts = 0
        self._weights: Any = None  # the newest
        self._actors = RayActors(
            [f"{composition.parts.actor_prefix}-{index}" for index in range(composition.num_actors)],
            spawn=self._spawn_actor,
            budget=self._budget,
            pending=self._pending,
            admits_together=generates,
        )
        self._scoring = (
            RayScoring(self._members.scoring, self._budget("the scoring process"), self._pending)
            if composition.scored
            else None
        )
        self._learners: list[Any] = []
        self._learner_node = ""
        self._learner_budget = self._budget("the learner")
        self._newest_step = -1  # that was ever done here
        self._steps: deque[tuple[StepOrder, list[Any], Any]] = deque()
        self._evaluator: Any = None
        self._num_evals = 0  # under way

    # Start.

    def start(self, checkpoint: Path | None, *, shard_state: tuple[dict[str, Array], dict[str, Any]] | None) -> None:
        """Starts all processes, in parallel; each has a deadline.

        Raises:
          RollcallError: naming the member that did not start, and why.
        """
        self._start_learner(checkpoint)
        if self._plan.eval_episodes:
            self._evaluator = self._members.evaluator()
        self._actors.wait_ready(self._placement.min_actors, shard_state)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        replies = [item.weights.remote(epoch, version) for item in self._learners]
        self.publish(replies[0])

    def _spawn_actor(self, actor_id: str, index: int) -> Any:
        """With a parameter server and a learner that live: they may be why the actor is started again."""
        if self._weights is not None:
            self._ask_learner()
            try:
                ray.get(self._server.running.remote(), timeout=CONTROL_TIMEOUT_S)
            except RayActorError:
                self.publish(self._weights)
        return self._members.actor(actor_id, index, self._server)

    def _start_learner(self, checkpoint: Path | None) -> None:
        self._learners = self._members.learners()
        try:
            alone = len(self._learners) == 1
            address = "" if alone else ray.get(self._learners[0].address.remote(), timeout=START_TIMEOUT_S)
            started = [item.start.remote(address, self._plan.learner_device, checkpoint) for item in self._learners]
            self._learner_node = ray.get(started, timeout=START_TIMEOUT_S)[0]
        except GetTimeoutError:
            raise RollcallError(no_room_for("the learner")) from None
        except RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, RollcallError):
                raise cause from None
            raise RollcallError(storage_fault(cause) or f"the learner did not start: {cause}") from error
        except RayActorError as error:
            raise RollcallError(f"the learner did not start: {death_of(error)}") from error

    def _budget(self, component: str) -> RestartBudget:
        limits = self._plan.supervision
        return RestartBudget(component, max_restarts=limits.max_restarts, window_s=limits.restart_window_s)

    # Work.

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        self._actors.submit(tickets)

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        assert self._scoring is not None
        self._scoring.submit(produced, handle)

    def submit_step(self, order: StepOrder, handles: Sequence[Handle]) -> None:
        replies = [item.step.options(num_returns=2).remote(order, *handles) for item in self._learners]
        reports = [reply[0] for reply in replies]
        self._steps.append((order, reports, replies[0][1]))
        for report in reports:
            self._pending[report] = self._on_step

    def submit_eval(self, *, step: int, env_steps: int) -> None:
        reference = self._evaluator.evaluate.remote(self._weights, self._plan.eval_episodes)
        self._num_evals += 1
        self._pending[reference] = partial(self._on_eval, reference, step, env_steps)

    @property
    def evals_pending(self) -> bool:
        return bool(self._num_evals)

    @property
    def restarts(self) -> int:
        return sum(self.restarts_by_role.values())

    @property
    def restarts_by_role(self) -> Mapping[str, int]:
        return {
            "actor": self._actors.restarts,
            "parameter_server": self._server_restarts,
            "scoring": self._scoring.restarts if self._scoring is not None else 0,
        }

    def publish(self, weights: Handle) -> None:
        """Also replaces a parameter server that has died: the newest weights are all that it had to keep. Actors that
        still ask the old one fail, and are started again with the new one."""
        self._weights = weights
        while (death := self._offer_weights()) is not None:
            self._server_restarts += 1
            time.sleep(self._server_budget.next_delay_s(death_of(death)))
            self._server = self._members.server()

    def _offer_weights(self) -> RayActorError | None:
        """To the parameter server; why it has died, where it has."""
        try:
            sender = None if self._plan.parts.weight_transfer == "object_store" else self._learners[0]
            ray.get(self._server.publish.remote([self._weights], sender), timeout=START_TIMEOUT_S)
        except RayTaskError as error:
            if not isinstance(cause_of(error), ObjectLostError | RayActorError):
                raise
            _log.warning("the newest weights went with the learner, which is started again and publishes anew")
        except RayActorError as error:
            return error
        return None

    @property
    def weights_hash(self) -> str:
        """Of the newest weights; empty if they are lost."""
        if self._weights is None:
            return ""
        try:
            return str(ray.get(self._weights, timeout=CONTROL_TIMEOUT_S).checksum)
        except RayError:
            return ""

    def close(self) -> None:
        """Ends every process of this run."""
        scoring = self._scoring.handle if self._scoring is not None else None
        for handle in [*self._actors.handles, scoring, *self._learners, self._evaluator, self._server]:
            if handle is not None:
                ray.kill(handle)
        self._placement.close()
        self._cluster.close()

    def release(self, handle: Handle) -> None:
        """References free themselves when the coordinator forgets them."""

    def save_learner(self, directory: Path, *, epoch: int, version: int) -> None:
        ray.get([item.save.remote(directory, epoch, version) for item in self._learners], timeout=START_TIMEOUT_S)

    def interrupt_learner(self) -> None:
        for item in self._learners:
            item.interrupt.remote()

    def shard_states(self, undone: Collection[int] = ()) -> tuple[dict[str, Array], dict[str, Any]] | None:
        patience_s = min(self._plan.stop_patience_s, CONTROL_TIMEOUT_S) if undone else CONTROL_TIMEOUT_S
        return self._actors.shard_states(undone, patience_s)

    def waiting_for(self) -> str:
        """In words: who works on what, for how long."""
        scoring = self._scoring.doing() if self._scoring is not None else []
        learner = [f"the learner on step {self._steps[0][0].step}"] if self._steps else []
        return ", ".join(self._actors.doing() + scoring + learner) or "nobody: no work is submitted"

    # Events.

    def poll(self, timeout_s: float) -> list[Event]:
        events = self._actors.tend()
        references = list(self._pending)
        if not references or events:
            return events
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        for reference in ready:
            answer = self._pending.get(reference)
            if answer is not None:  # not settled by an event before it
                events += answer()
        return events

    def _on_step(self) -> list[Event]:
        _, reports, weights = self._steps[0]
        done, waiting = ray.wait(reports, num_returns=len(reports), timeout=0, fetch_local=False)
        try:
            results = ray.get(done, timeout=CONTROL_TIMEOUT_S)
        except RayError as error:
            return [self._lose_learner(error)]
        if waiting:
            for reference in done:  # the other processes finish within their collective's deadline
                self._pending.pop(reference, None)
            return []
        order, _, _ = self._steps.popleft()
        for reference in reports:
            self._pending.pop(reference, None)
        if order.step > self._newest_step:  # a step done again, after a restore, is no sign that the next one can be
            self._newest_step = order.step
            self._learner_budget.came_through()
        return [StepDone(results[0], weights)]

    def _on_eval(self, reference: Any, step: int, env_steps: int) -> list[Event]:
        del self._pending[reference]
        self._num_evals -= 1
        try:
            return [EvalDone(step, env_steps, ray.get(reference, timeout=CONTROL_TIMEOUT_S))]
        except RayActorError as error:
            self._evaluator = self._members.evaluator()
            return [EvalDone(step, env_steps, None, f"the evaluator died ({death_of(error)}) and was started again")]
        except RayError as error:
            cause = cause_of(error)
            if isinstance(cause, EngineMismatch):
                raise cause from None
            return [EvalDone(step, env_steps, None, in_a_line(cause))]

    # Faults.

    def _lose_learner(self, error: RayError) -> Event:
        cause = cause_of(error)
        if isinstance(cause, RollcallError):
            raise cause
        if refused := storage_fault(cause):
            raise RollcallError(f"the learner cannot write: {refused}") from error
        if isinstance(error, RayActorError):
            detail, blameless = f"the learner died ({death_of(error)})", node_of(error, self._learner_node)
        else:
            detail, blameless = raised_in("the learner", error, "logs/learner-0.log"), False
        if not blameless:
            self._learner_budget.next_delay_s(detail, raised=is_raised(error))
        for _, reports, _weights in self._steps:
            for reference in reports:
                self._pending.pop(reference, None)
        self._steps.clear()
        for learner in self._learners:
            ray.kill(learner)
        return LearnerLost(detail)

    def _ask_learner(self) -> None:
        """Whether it lives. While it has no step to do nobody else finds out, and actors that fetch their weights from
        it fail until it is replaced."""
        learner = self._learners[0]
        answer = learner.is_here.remote()
        self._pending[answer] = partial(self._on_learner_answer, learner, answer)

    def _on_learner_answer(self, learner: Any, answer: Any) -> list[Event]:
        del self._pending[answer]
        try:
            ray.get(answer, timeout=CONTROL_TIMEOUT_S)
        except RayActorError as error:
            if learner is self._learners[0]:  # and not replaced already
                return [self._lose_learner(error)]
        return []

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int, detail: str) -> None:
        self._start_learner(checkpoint)
        self.publish_initial(epoch=epoch, version=version)
