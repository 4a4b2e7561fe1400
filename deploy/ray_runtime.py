"""The Ray runtime: the coordinator's Workers, with every member of the run a Ray actor in ray_processes.py.
Knows who is alive and what each was asked; must never decide what happens to the books."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages import Array, Produced, Ticket
from rollcall.cluster.supervision import RestartBudget, SupervisionConfig
from rollcall.cluster.workers import EvalDone, Event, LearnerLost, StepDone, StepRequest
from rollcall.deploy.parts import Parts
from rollcall.deploy.ray_actors import Pending, RayActors
from rollcall.deploy.ray_cluster import Cluster
from rollcall.deploy.ray_faults import START_TIMEOUT_S, cause_of, death_of, no_room_for
from rollcall.deploy.ray_processes import (
    CONTROL_TIMEOUT_S,
    EvalProcess,
    GymActorProcess,
    LearnerProcess,
    LMActorProcess,
    ParameterServerProcess,
    ScoringProcess,
)
from rollcall.deploy.ray_scoring import RayScoring
from rollcall.learners.learner import StepOrder

SCORING_CONCURRENCY = 8  # requests to the reward service that one scoring process may have under way

Handle = Any


@dataclass(frozen=True, slots=True)
class Composition:
    """What to run; `parts` travels to the processes."""

    parts: Parts
    num_actors: int
    eval_episodes: int
    scored: bool
    num_learner_processes: int
    learner_device: str
    keep_versions: int
    supervision: SupervisionConfig
    run_directory: Path


class RayWorkers:
    """The coordinator's Workers, on Ray."""

    def __init__(self, composition: Composition, cluster: Cluster) -> None:
        self._plan = composition
        self._cluster = cluster
        self._cwd = os.getcwd()
        self._generates = composition.parts.kind == "language"
        self._gpus = 1 if ray.cluster_resources().get("GPU", 0) >= composition.num_learner_processes else 0
        spare = ray.cluster_resources().get("GPU", 0) - self._gpus * composition.num_learner_processes
        self._actor_gpus = 1 if self._generates and spare >= composition.num_actors else 0
        self._pending: Pending = {}
        self._server = self._spawn_server()
        self._server_budget = self._budget("the parameter server")
        self._server_restarts = 0
        self._actors = RayActors(
            [f"{composition.parts.actor_prefix}-{index}" for index in range(composition.num_actors)],
            spawn=self._spawn_actor,
            budget=self._budget,
            pending=self._pending,
            admits_together=self._generates,
        )
        self._scoring = (
            RayScoring(self._spawn_scoring, self._budget("the scoring process"), self._pending)
            if composition.scored
            else None
        )
        self._learners: list[Any] = []
        self._learner_budget = self._budget("learner")
        self._steps: deque[tuple[StepRequest, list[Any], Any]] = deque()
        self._evaluator: Any = None
        self._num_evals = 0  # under way
        self._weights: Any = None

    # Start.

    def start(self, checkpoint: Path | None, *, shard_state: tuple[dict[str, Array], dict[str, Any]] | None) -> None:
        """Starts all processes, in parallel; each has a deadline.

        Raises:
          RollcallError: naming the member that did not start, and why.
        """
        self._start_learner(checkpoint)
        if self._plan.eval_episodes:
            self._start_evaluator()
        self._actors.wait_ready(shard_state)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        replies = [item.weights.remote(epoch, version) for item in self._learners]
        self.publish(replies[0])

    def _spawn_server(self) -> Any:
        readers = self._plan.num_actors + 8  # each may wait in a call of its own
        remote: Any = ray.remote(ParameterServerProcess)
        return remote.options(num_cpus=0, max_concurrency=readers).remote(self._plan.keep_versions)

    def _spawn_actor(self, actor_id: str) -> Any:
        traces = str(self._plan.run_directory / "logs" / f"{actor_id}.trace")
        process = LMActorProcess if self._generates else GymActorProcess
        remote: Any = ray.remote(process)
        return remote.options(num_cpus=1, num_gpus=self._actor_gpus, max_restarts=0).remote(
            actor_id, self._plan.parts, self._server, self._cwd, traces
        )

    def _spawn_scoring(self) -> Any:
        remote: Any = ray.remote(ScoringProcess)
        # Beside the driver: a private service listens on this machine's loopback alone.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return remote.options(
            num_cpus=0, max_restarts=0, max_concurrency=SCORING_CONCURRENCY, scheduling_strategy=here
        ).remote(self._plan.parts, self._cwd)

    def _start_learner(self, checkpoint: Path | None) -> None:
        count = self._plan.num_learner_processes
        remote = ray.remote(LearnerProcess).options(num_cpus=1, num_gpus=self._gpus, max_restarts=0)
        self._learners = [remote.remote(self._plan.parts, rank, count, self._cwd) for rank in range(count)]
        try:
            address = ray.get(self._learners[0].address.remote(), timeout=START_TIMEOUT_S) if count > 1 else ""
            started = [item.start.remote(address, self._plan.learner_device, checkpoint) for item in self._learners]
            ray.get(started, timeout=START_TIMEOUT_S)
        except GetTimeoutError:
            raise RollcallError(no_room_for("the learner")) from None
        except RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, RollcallError):
                raise cause from None
            raise RollcallError(f"the learner did not start: {cause}") from error

    def _start_evaluator(self) -> None:
        self._evaluator = ray.remote(EvalProcess).options(num_cpus=0).remote(self._plan.parts, self._cwd)

    def _budget(self, component: str) -> RestartBudget:
        limits = self._plan.supervision
        return RestartBudget(component, max_restarts=limits.max_restarts, window_s=limits.restart_window_s)

    # Work.

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        self._actors.submit(tickets)

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        assert self._scoring is not None
        self._scoring.submit(produced, handle)

    def submit_step(self, request: StepRequest, handles: Sequence[Handle]) -> None:
        order = StepOrder(request.step, request.epoch, request.progress, request.checkpoint_directory)
        replies = [item.step.options(num_returns=2).remote(order, *handles) for item in self._learners]
        reports = [reply[0] for reply in replies]
        self._steps.append((request, reports, replies[0][1]))
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
        scoring = self._scoring.restarts if self._scoring is not None else 0
        return self._actors.restarts + self._server_restarts + scoring

    def publish(self, weights: Handle) -> None:
        """Also replaces a parameter server that has died: the newest weights are all that it had to keep. Actors that
        still ask the old one fail, and are started again with the new one."""
        self._weights = weights
        try:
            ray.get(self._server.publish.remote([weights]), timeout=CONTROL_TIMEOUT_S)
        except RayActorError as error:
            self._server_restarts += 1
            time.sleep(self._server_budget.next_delay_s(death_of(error)))
            self._server = self._spawn_server()
            ray.get(self._server.publish.remote([weights]), timeout=START_TIMEOUT_S)

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
        self._cluster.close()

    def release(self, handle: Handle) -> None:
        """References free themselves when the coordinator forgets them."""

    def save_learner(self, directory: Path, *, epoch: int, version: int) -> None:
        ray.get([item.save.remote(directory, epoch, version) for item in self._learners], timeout=START_TIMEOUT_S)

    def shard_states(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        return self._actors.shard_states()

    def waiting_for(self) -> str:
        """In words: who works on what, for how long."""
        scoring = self._scoring.doing() if self._scoring is not None else []
        learner = [f"the learner on step {self._steps[0][0].step}"] if self._steps else []
        return ", ".join(self._actors.doing() + scoring + learner) or "nobody: no work is submitted"

    # Events.

    def poll(self, timeout_s: float) -> list[Event]:
        events = self._actors.overdue()
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
        self._steps.popleft()
        for reference in reports:
            self._pending.pop(reference, None)
        return [StepDone(results[0], weights)]

    def _on_eval(self, reference: Any, step: int, env_steps: int) -> list[Event]:
        del self._pending[reference]
        self._num_evals -= 1
        try:
            return [EvalDone(step, env_steps, ray.get(reference, timeout=CONTROL_TIMEOUT_S))]
        except RayActorError as error:
            self._start_evaluator()
            return [EvalDone(step, env_steps, None, f"the evaluator died ({death_of(error)}) and was started again")]
        except RayError as error:
            return [EvalDone(step, env_steps, None, str(cause_of(error)))]

    # Faults.

    def _lose_learner(self, error: RayError) -> Event:
        cause = cause_of(error)
        if isinstance(cause, RollcallError):
            raise cause
        detail = f"the learner died ({death_of(error)})" if isinstance(error, RayActorError) else f"{cause!r}"
        self._learner_budget.next_delay_s(detail)
        for _, reports, _weights in self._steps:
            for reference in reports:
                self._pending.pop(reference, None)
        self._steps.clear()
        for learner in self._learners:
            ray.kill(learner)
        return LearnerLost(detail)

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int, detail: str) -> None:
        self._start_learner(checkpoint)
        self.publish_initial(epoch=epoch, version=version)
