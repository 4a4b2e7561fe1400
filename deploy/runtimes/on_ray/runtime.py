"""The Ray runtime: the coordinator's Workers, with every member of the run a Ray actor. Puts the members together; what
is to be done when one of them dies, each member's own file knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.loop.supervision import START_FAILED, RestartBudget
from rollcall.cluster.messages.attempt import Produced, Ticket
from rollcall.cluster.messages.events import Event, Handle, LearnerLost, StateLost, States, TicketFailed
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.kinds.kind import MemberFactory
from rollcall.deploy.runtimes.on_ray.actors import RayActors
from rollcall.deploy.runtimes.on_ray.calls import Calls, WatchedRay
from rollcall.deploy.runtimes.on_ray.deaths import Deaths
from rollcall.deploy.runtimes.on_ray.evaluator import RayEvaluator
from rollcall.deploy.runtimes.on_ray.faults import CONTROL_TIMEOUT_S
from rollcall.deploy.runtimes.on_ray.learner import RayLearner
from rollcall.deploy.runtimes.on_ray.members import Composition, Members
from rollcall.deploy.runtimes.on_ray.parameter_server import RayParameterServer
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster import Cluster
from rollcall.deploy.runtimes.on_ray.ray_cluster.nodes import check_nodes
from rollcall.deploy.runtimes.on_ray.ray_cluster.placement import Placement
from rollcall.deploy.runtimes.on_ray.scoring_calls import RayScoring
from rollcall.deploy.runtimes.on_ray.trainer_calls import RayTrainerCalls
from rollcall.deploy.runtimes.preference_gate import PreferenceGate

_LOSSES = (LearnerLost, StateLost, TicketFailed)


class RayWorkers:
    """The coordinator's Workers, on Ray."""

    def __init__(
        self,
        composition: Composition,
        cluster: Cluster,
        tell: Callable[[str, str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """`tell`: (kind, text) of what takes long before anything begins.

        Raises:
          BadInput: when the cluster has no room for the run, or its nodes lack what the run needs.
          RollcallError: a stop was requested before that was known.
          ClusterLost: meanwhile.
        """
        self._plan = composition
        self._cluster = cluster
        self._tell = tell
        self._calls = Calls(WatchedRay(self.check))
        config, factory = composition.config, composition.factory
        self._placement = Placement(
            config.cluster,
            num_learners=config.learner.num_processes,
            num_actors=config.actors.num,
            shares=composition.shares,
            evaluates=bool(factory.eval_episodes),
            private=cluster.private,
            trains_on_preferences=factory.trains_on_preferences,
        )

        def look() -> bool:
            cluster.check()
            return stop_requested()

        self._placement.reserve(lambda text: tell("room", text), look)
        if not cluster.private:
            check_nodes(self._placement.node_ids(), composition.needs, self._calls, stop_requested)
        self._deaths = Deaths(composition.plan)
        self._members = Members(composition, self._placement, self.check)
        self._server = RayParameterServer(
            self._members.server,
            self._budget("the parameter server"),
            self._calls,
            tell_failed=self._tell_failed("parameter_server"),
        )
        self._learner = self._new_learner()
        self._actors = self._new_actors()
        self._scoring: RayScoring | None = None
        self._trainer = RayTrainerCalls(
            self._members.preference_trainer, self._calls, tell_failed=self._tell_failed("preference_trainer")
        )
        self._gate: PreferenceGate | None = None
        self._evaluator = RayEvaluator(
            self._members.evaluator,
            self._budget("the evaluator"),
            self._calls,
            episodes=factory.eval_episodes,
            deaths=self._deaths,
            tell_failed=self._tell_failed("evaluator"),
        )

    def _new_learner(self) -> RayLearner:
        return RayLearner(
            self._members.learners,
            self._budget("the learner"),
            self._calls,
            self._server,
            device=self._plan.config.learner.device,
            sends_weights=self._plan.factory.weight_transfer != "object_store",
            tell_up=partial(_tell_up, self._tell),
            tell_failed=self._tell_failed("learner"),
            deaths=self._deaths,
        )

    def _new_actors(self) -> RayActors:
        factory = self._plan.factory
        return RayActors(
            [f"{factory.actor_prefix}-{index}" for index in range(self._plan.config.actors.num)],
            spawn=self._members.actor,
            make=lambda handle: self._members.make_actor(handle, self._server.handle),
            budget=self._budget,
            calls=self._calls,
            num_first=self._placement.min_actors,
            admits_together=factory.generates,
            on_loss=self._check_suppliers,
            may_start=lambda: self._server.is_up,
            tell_up=partial(_tell_up, self._tell),
            tell_failed=self._tell_failed("actor"),
            deaths=self._deaths,
        )

    def prepared(self, reward: RewardEndpoint | None) -> None:
        """All that members load is there; `reward`: where trajectories are scored."""
        factory = self._plan.factory if reward is None else self._plan.factory.with_reward(reward)
        self._members.prepared(factory)
        if factory.reward is not None:
            self._scoring = RayScoring(
                self._members.scoring,
                self._budget("the scoring process"),
                self._calls,
                tell_failed=self._tell_failed("scoring"),
            )
        self._gate = self._preference_gate(factory)

    def _preference_gate(self, factory: MemberFactory) -> PreferenceGate | None:
        """Of a run from preferences."""
        training = factory.preference_training
        if training is None:
            return None
        budget, patience_s = self._budget("the preference trainer"), training.config.patience_s
        return PreferenceGate(self._trainer, due=training.due, patience_s=patience_s, budget=budget)

    def _budget(self, component: str) -> RestartBudget:
        limits = self._plan.config.supervision
        return RestartBudget(component, max_restarts=limits.max_restarts, window_s=limits.restart_window_s)

    def _tell_failed(self, role: str) -> Callable[[str], None]:
        """For a member of this role, to say why it did not start."""
        return lambda why: self._tell(START_FAILED, f"{role}: {why}")

    # Beginning and end.

    def start(self, checkpoint: Path | None, *, shard_state: States | None) -> None:
        """Starts all processes, in parallel. `poll` raises RollcallError for a member that does not start in time,
        naming it, and why."""
        self._learner.start(checkpoint)
        if self._gate is not None:
            self._gate.start()
        self._actors.begin_with(shard_state)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        self._learner.publish_initial(epoch=epoch, version=version)

    @property
    def have_started(self) -> bool:
        return self._learner.is_up and self._actors.have_started

    def close(self) -> None:
        """Ends every process of this run. (Whoever asks a lost cluster for anything may wait for a minute.)"""
        if self._cluster.is_lost:
            self._cluster.close()
            return
        scoring = self._scoring.handle if self._scoring is not None else None
        others = [scoring, self._trainer.handle, self._evaluator.handle, self._server.handle]
        for handle in [*self._actors.handles, *self._learner.processes, *others]:
            if handle is not None:
                ray.kill(handle)
        self._placement.close()
        self._cluster.close()

    # Work.

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        self._actors.submit(tickets)

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        assert self._scoring is not None
        if self._gate is not None:
            self._gate.hold(produced, handle)
        else:
            self._scoring.submit(produced, handle)

    def submit_step(self, order: StepOrder, handles: Sequence[Handle]) -> None:
        self._learner.submit(order, handles)

    def submit_eval(self, *, step: int, env_steps: int) -> None:
        self._evaluator.submit(step=step, env_steps=env_steps, weights=self._server.newest)

    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None:
        self._learner.save(directory, epoch=epoch, version=version)

    def submit_shard_states(self, undone: Collection[int] = ()) -> None:
        patience_s = min(self._plan.stop_patience_s, CONTROL_TIMEOUT_S) if undone else CONTROL_TIMEOUT_S
        self._actors.submit_shard_states(undone, patience_s)

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int) -> None:
        self._learner.start(checkpoint)
        self._learner.publish_initial(epoch=epoch, version=version)

    def interrupt_learner(self) -> None:
        self._learner.interrupt()

    # How it stands.

    @property
    def evals_pending(self) -> bool:
        return self._evaluator.pending

    @property
    def restarts(self) -> int:
        return sum(self.restarts_by_role.values())

    @property
    def restarts_by_role(self) -> Mapping[str, int]:
        return {
            "actor": self._actors.restarts,
            "learner": self._learner.failed_starts,
            "evaluator": self._evaluator.restarts,
            "parameter_server": self._server.restarts,
            "scoring": self._scoring.restarts if self._scoring is not None else 0,
            "preference_trainer": self._gate.restarts if self._gate is not None else 0,
        }

    @property
    def weights_hash(self) -> str:
        """Of the newest weights; empty if they are lost."""
        if self._server.newest is None or self._cluster.is_lost:
            return ""
        try:
            return str(ray.get(self._server.newest, timeout=CONTROL_TIMEOUT_S).checksum)
        except RayError:
            return ""

    @property
    def newest(self) -> Handle | None:
        """A reference to the newest weights."""
        newest: Handle | None = self._server.newest
        return newest

    def weights_of(self, newest: Handle) -> Weights | None:
        """Of a reference, without waiting; None while they are not there, or where they are lost."""
        reference: Any = newest
        try:
            ready, _ = ray.wait([reference], timeout=0)
            return cast(Weights, ray.get(reference, timeout=CONTROL_TIMEOUT_S)) if ready else None
        except RayError:
            return None

    def adopt(self, trajectory: GymTrajectory) -> Handle:
        """A reference to what another than its own actors made."""
        return ray.put(trajectory)

    def waiting_for(self) -> str:
        """In words: who works on what, for how long."""
        scoring = self._scoring.doing() if self._scoring is not None else []
        labels = self._gate.doing() if self._gate is not None else []
        doing = [*self._actors.doing(), *labels, *scoring, *self._learner.doing(), *self._server.doing()]
        return ", ".join(doing) or "nobody: no work is submitted"

    # Events.

    def check(self) -> None:
        """Raises ClusterLost."""
        self._cluster.check(now=True)

    @property
    def is_lost(self) -> bool:
        return self._cluster.is_lost

    def poll(self, timeout_s: float) -> list[Event]:
        """Raises ClusterLost: before anything that follows from it is taken for a fault of its own."""
        self._cluster.check()
        try:
            events = self._poll(timeout_s)
        except Exception:
            self._cluster.check(now=True)
            raise
        if any(isinstance(event, _LOSSES) for event in events):
            self._cluster.check(now=True)
        return events

    def _poll(self, timeout_s: float) -> list[Event]:
        self._server.tend()
        self._evaluator.tend()
        if self._scoring is not None:
            self._scoring.tend()
            for produced, trajectory in self._gate.tend() if self._gate is not None else ():
                self._scoring.submit(produced, trajectory)
        return [*self._actors.tend(), *self._learner.tend()] or self._calls.wait(timeout_s)

    def _check_suppliers(self) -> None:
        """Whoever gives an actor its weights may be why it is to be started again."""
        if self._server.newest is not None:
            self._server.check()
            self._learner.check()


def _tell_up(tell: Callable[[str, str], None], member: str, seconds: float) -> None:
    """Where it took long enough to ask oneself what goes on."""
    if seconds > 1.0:
        tell("start", f"{member} is up after {seconds:.1f} s")
