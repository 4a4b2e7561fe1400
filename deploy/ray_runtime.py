"""The Ray runtime: the coordinator's Workers, with every member of the run a Ray actor in ray_processes.py.
Knows who is alive and what each was asked; must never decide what happens to the books."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages import Array, ShardPayload, Ticket
from rollcall.cluster.supervision import RestartBudget, SupervisionConfig
from rollcall.cluster.workers import (
    EvalDone,
    Event,
    LearnerLost,
    StepDone,
    StepRequest,
    TicketFailed,
    TicketProduced,
)
from rollcall.deploy.parts import Parts
from rollcall.deploy.ray_cluster import Cluster
from rollcall.deploy.ray_processes import (
    CONTROL_TIMEOUT_S,
    EvalProcess,
    GymActorProcess,
    LearnerProcess,
    LMActorProcess,
    ParameterServerProcess,
)
from rollcall.learners.learner import StepOrder

DEADLINE_GRACE_S = 10.0
START_TIMEOUT_S = 300.0  # importing torch and building an env on a loaded machine

Handle = Any


@dataclass(slots=True)
class _Pending:
    ticket: Ticket
    produced: Any
    trajectory: Any


@dataclass(slots=True)
class _Actor:
    """What the driver knows of one actor process."""

    actor_id: str
    handle: Any
    budget: RestartBudget
    pending: deque[_Pending] = field(default_factory=deque)
    head_since: float = 0.0  # when work on the first pending ticket began, as far as can be known
    start_at: float | None = None  # when to start it again, while it is down


@dataclass(frozen=True, slots=True)
class Composition:
    """What to run; `parts` travels to the processes."""

    parts: Parts
    num_actors: int
    eval_episodes: int
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
        self._server = self._spawn_server()
        self._server_budget = self._budget("the parameter server")
        self._actors = [
            self._new_actor(f"{composition.parts.actor_prefix}-{index}") for index in range(composition.num_actors)
        ]
        self._learners: list[Any] = []
        self._learner_budget = self._budget("learner")
        self._evaluator: Any = None
        self._weights: Any = None
        self._index: dict[Any, Any] = {}  # reference -> what it answers
        self._steps: deque[tuple[StepRequest, list[Any], Any]] = deque()
        self._evals: dict[Any, tuple[int, int]] = {}
        self._actor_restarts = 0
        self._server_restarts = 0

    # Start.

    def start(self, checkpoint: Path | None, *, shard_state: tuple[dict[str, Array], dict[str, Any]] | None) -> None:
        """Starts all processes, in parallel; each has a deadline.

        Raises:
          RollcallError: naming the member that did not start, and why.
        """
        self._start_learner(checkpoint)
        if self._plan.eval_episodes:
            self._start_evaluator()
        for actor in self._actors:
            try:
                ray.get(actor.handle.ready.remote(), timeout=START_TIMEOUT_S)
                if shard_state is not None:
                    ray.get(actor.handle.restore_shards.remote(*shard_state), timeout=CONTROL_TIMEOUT_S)
            except GetTimeoutError:
                raise RollcallError(_no_room(actor.actor_id)) from None
            except RayError as error:
                raise RollcallError(f"{actor.actor_id} did not start: {_cause(error)}") from error

    def publish_initial(self, *, epoch: int, version: int) -> None:
        self.publish(self._learners[0].weights.remote(epoch, version))

    def _spawn_server(self) -> Any:
        readers = self._plan.num_actors + 8  # each may wait in a call of its own
        remote: Any = ray.remote(ParameterServerProcess)
        return remote.options(num_cpus=0, max_concurrency=readers).remote(self._plan.keep_versions)

    def _new_actor(self, actor_id: str) -> _Actor:
        return _Actor(actor_id, self._spawn_actor(actor_id), self._budget(actor_id))

    def _spawn_actor(self, actor_id: str) -> Any:
        traces = str(self._plan.run_directory / "logs" / f"{actor_id}.trace")
        process = LMActorProcess if self._generates else GymActorProcess
        remote: Any = ray.remote(process)
        return remote.options(num_cpus=1, num_gpus=self._actor_gpus, max_restarts=0).remote(
            actor_id, self._plan.parts, self._server, self._cwd, traces
        )

    def _start_learner(self, checkpoint: Path | None) -> None:
        count = self._plan.num_learner_processes
        remote = ray.remote(LearnerProcess).options(num_cpus=1, num_gpus=self._gpus, max_restarts=0)
        self._learners = [remote.remote(self._plan.parts, rank, count, self._cwd) for rank in range(count)]
        try:
            address = ray.get(self._learners[0].address.remote(), timeout=START_TIMEOUT_S) if count > 1 else ""
            started = [item.start.remote(address, self._plan.learner_device, checkpoint) for item in self._learners]
            ray.get(started, timeout=START_TIMEOUT_S)
        except GetTimeoutError:
            raise RollcallError(_no_room("the learner")) from None
        except RayTaskError as error:
            cause = _cause(error)
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
        for index, actor in enumerate(self._actors):
            own = [ticket for ticket in tickets if ticket.lane % len(self._actors) == index]
            if not own:
                continue
            if actor.start_at is not None:
                self._restart_actor(actor)
            if self._generates:
                actor.handle.admit.remote(own)  # together, before the engine's next step
            for ticket in own:
                self._submit(actor, ticket)

    def _submit(self, actor: _Actor, ticket: Ticket) -> None:
        produced, trajectory = actor.handle.produce.options(num_returns=2).remote(ticket)
        if not actor.pending:
            actor.head_since = time.monotonic()
        pending = _Pending(ticket, produced, trajectory)
        actor.pending.append(pending)
        self._index[produced] = (actor, pending)

    def submit_step(self, request: StepRequest, handles: Sequence[Handle]) -> None:
        order = StepOrder(request.step, request.epoch, request.progress, request.checkpoint_directory)
        replies = [item.step.options(num_returns=2).remote(order, *handles) for item in self._learners]
        reports = [reply[0] for reply in replies]
        self._steps.append((request, reports, replies[0][1]))
        for report in reports:
            self._index[report] = None

    def submit_eval(self, *, step: int, env_steps: int) -> None:
        reference = self._evaluator.evaluate.remote(self._weights, self._plan.eval_episodes)
        self._evals[reference] = (step, env_steps)
        self._index[reference] = None

    @property
    def evals_pending(self) -> bool:
        return bool(self._evals)

    @property
    def restarts(self) -> int:
        return self._actor_restarts + self._server_restarts

    def publish(self, weights: Handle) -> None:
        """Also replaces a parameter server that has died: the newest weights are all that it had to keep. Actors that
        still ask the old one fail, and are started again with the new one."""
        self._weights = weights
        try:
            ray.get(self._server.publish.remote([weights]), timeout=CONTROL_TIMEOUT_S)
        except RayActorError as error:
            self._server_restarts += 1
            time.sleep(self._server_budget.next_delay_s(_death(error)))
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
        for handle in [*(actor.handle for actor in self._actors), *self._learners, self._evaluator, self._server]:
            if handle is not None:
                ray.kill(handle)
        self._cluster.close()

    def release(self, handle: Handle) -> None:
        """References free themselves when the coordinator forgets them."""

    def save_learner(self, directory: Path, *, epoch: int, version: int) -> None:
        ray.get(self._learners[0].save.remote(directory, epoch, version), timeout=START_TIMEOUT_S)

    def shard_states(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        tensors: dict[str, Array] = {}
        meta: dict[str, Any] = {}
        calls = [actor.handle.shard_states.remote() for actor in self._actors]
        for state in ray.get(calls, timeout=CONTROL_TIMEOUT_S):
            if state is None:
                return None
            tensors |= state[0]
            meta |= state[1]
        return tensors, meta

    def waiting_for(self) -> str:
        """In words: who works on what, for how long."""
        now = time.monotonic()
        busy = [
            f"{actor.actor_id} on ticket {actor.pending[0].ticket.ticket_id} "
            f"({_what(actor.pending[0].ticket)}) for {now - actor.head_since:.0f} s"
            for actor in self._actors
            if actor.pending
        ]
        learner = [f"the learner on step {self._steps[0][0].step}"] if self._steps else []
        return ", ".join(busy + learner) or "nobody: no work is submitted"

    # Events.

    def poll(self, timeout_s: float) -> list[Event]:
        events = self._overdue()
        references = list(self._index)
        if not references or events:
            return events
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        for reference in ready:
            if reference not in self._index:
                continue  # settled by an event before it
            answer = self._index[reference]
            if answer is not None:
                events += self._on_ticket(*answer)
            elif reference in self._evals:
                events.append(self._on_eval(reference))
            else:
                events += self._on_step()
        return events

    def _on_ticket(self, actor: _Actor, pending: _Pending) -> list[Event]:
        del self._index[pending.produced]
        try:
            outcome = ray.get(pending.produced)
        except RayActorError as error:
            return self._lose_actor(actor, "actor_died", f"{actor.actor_id} died ({_death(error)})")
        except RayError as error:
            # An exception that the actor does not contain is a fault of ours or of the env's code: it is shown whole.
            return self._lose_actor(actor, "actor_failed", f"{actor.actor_id} raised {_cause(error)!r}", kill=True)
        finally:
            if pending in actor.pending:
                actor.pending.remove(pending)
                actor.head_since = time.monotonic()
        if isinstance(outcome, TicketFailed):
            return [outcome]
        return [TicketProduced(outcome, pending.trajectory)]

    def _on_step(self) -> list[Event]:
        _, reports, weights = self._steps[0]
        done, waiting = ray.wait(reports, num_returns=len(reports), timeout=0, fetch_local=False)
        try:
            results = ray.get(done)
        except RayError as error:
            return [self._lose_learner(error)]
        if waiting:
            for reference in done:  # the other processes finish within their collective's deadline
                self._index.pop(reference, None)
            return []
        self._steps.popleft()
        for reference in reports:
            self._index.pop(reference, None)
        return [StepDone(results[0], weights)]

    def _on_eval(self, reference: Any) -> Event:
        del self._index[reference]
        step, env_steps = self._evals.pop(reference)
        try:
            return EvalDone(step, env_steps, ray.get(reference))
        except RayActorError as error:
            self._start_evaluator()
            return EvalDone(step, env_steps, None, f"the evaluator died ({_death(error)}) and was started again")
        except RayError as error:
            return EvalDone(step, env_steps, None, str(_cause(error)))

    # Faults.

    def _overdue(self) -> list[Event]:
        """Ends actors whose unit takes longer than its deadline."""
        now = time.monotonic()
        events: list[Event] = []
        for actor in self._actors:
            # A language actor keeps the deadlines of its tickets itself: it is ended only when it does not.
            grace_s = DEADLINE_GRACE_S if self._generates else 0.0
            if actor.pending and now - actor.head_since > actor.pending[0].ticket.deadline_s + grace_s:
                ticket = actor.pending[0].ticket
                detail = (
                    f"{actor.actor_id}: {_what(ticket)} has not returned within "
                    f"{ticket.deadline_s:.0f} s; logs/{actor.actor_id}.trace shows where it hangs"
                )
                events += self._lose_actor(actor, "deadline", detail, kill=True)
        return events

    def _lose_actor(self, actor: _Actor, reason: str, detail: str, *, kill: bool = False) -> list[Event]:
        """All its pending units fail; it is started again when its back-off allows, and its shards start anew."""
        if actor.start_at is not None:
            return []
        if kill:
            ray.kill(actor.handle)
        lost = [pending.ticket for pending in actor.pending]
        for pending in actor.pending:
            self._index.pop(pending.produced, None)
        actor.pending.clear()
        actor.start_at = time.monotonic() + actor.budget.next_delay_s(detail)
        self._actor_restarts += 1
        return [
            TicketFailed(
                ticket_id=ticket.ticket_id,
                attempt=ticket.attempt,
                epoch=ticket.epoch,
                reason=reason if position == 0 else "actor_died",
                detail=detail,
                state_lost=True,
            )
            for position, ticket in enumerate(lost)
        ]

    def _restart_actor(self, actor: _Actor) -> None:
        assert actor.start_at is not None
        time.sleep(max(0.0, actor.start_at - time.monotonic()))  # at most max_delay_s of its budget
        actor.handle = self._spawn_actor(actor.actor_id)
        actor.start_at = None

    def _lose_learner(self, error: RayError) -> Event:
        cause = _cause(error)
        if isinstance(cause, RollcallError):
            raise cause
        detail = f"the learner died ({_death(error)})" if isinstance(error, RayActorError) else f"{cause!r}"
        self._learner_budget.next_delay_s(detail)
        for _, reports, _weights in self._steps:
            for reference in reports:
                self._index.pop(reference, None)
        self._steps.clear()
        for learner in self._learners:
            ray.kill(learner)
        return LearnerLost(detail)

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int, detail: str) -> None:
        self._start_learner(checkpoint)
        self.publish_initial(epoch=epoch, version=version)


def _what(ticket: Ticket) -> str:
    """What a ticket is about, in words."""
    payload = ticket.payload
    return f"shard {payload.shard}'s env" if isinstance(payload, ShardPayload) else f"row {payload.row}"


def _cause(error: RayError) -> BaseException:
    """The exception a task raised, without Ray's wrapping."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, BaseException) else error
    return error


def _death(error: RayActorError) -> str:
    """Ray's reason, in one short line."""
    text = " ".join(str(error).split())
    return text[:200]


def _no_room(member: str) -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    return (
        f"{member} did not start within {START_TIMEOUT_S:.0f} s: the cluster has {total.get('CPU', 0):.0f} CPUs, "
        f"{free.get('CPU', 0):.0f} of them free; each actor and each learner process needs one"
    )
