"""The members of a run on Ray: which process each is, where it goes, and what it is given. Starts them, and forgets
them: who is alive is runtime.py's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from rollcall.deploy.config.recipe.language_config import ActingConfig
from rollcall.deploy.kinds.kind import MemberFactory
from rollcall.deploy.kinds.preference_trainer import TrainRewardModel
from rollcall.deploy.plan.gpus import Shares
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.runtimes.on_ray.place import Place
from rollcall.deploy.runtimes.on_ray.processes import (
    ASIDE,
    TRANSFER,
    EvalProcess,
    GymActorProcess,
    LearnerProcess,
    LMActorProcess,
    PreferenceTrainerProcess,
    ScoringProcess,
)
from rollcall.deploy.runtimes.on_ray.ray_cluster.nodes import Needs
from rollcall.deploy.runtimes.on_ray.ray_cluster.placement import Placement
from rollcall.deploy.runtimes.on_ray.weights import ParameterServerProcess

SCORING_CONCURRENCY = 8  # requests to the reward service that one scoring process may have under way


@dataclass(frozen=True, slots=True)
class Composition:
    """What to run; `factory` travels to the processes."""

    config: ActingConfig
    factory: MemberFactory
    keep_versions: int
    needs: Needs
    stop_patience_s: float  # how long a stop may wait for anybody
    train_reward_model: TrainRewardModel
    shares: Shares = field(default_factory=Shares)  # of GPUs
    plan: Plan | None = None  # where it is known what the run needs
    objects: Mapping[str, object] = field(default_factory=dict)  # of the user, that have no module


class Members:
    """Starts the processes of one run. Each comes back as a Ray actor handle."""

    def __init__(self, composition: Composition, placement: Placement, look: Callable[[], None] = lambda: None) -> None:
        """`look`, before each start, raises where the cluster is lost: who asks a lost one for anything gets no
        answer, and is ended after STUCK_S (ray_cluster/cluster.py)."""
        self._look = look
        self._plan = composition
        self._placement = placement
        place = Place(composition.needs.working_directory, composition.objects)
        self._where = (place, composition.needs.run_directory / "logs")

    def server(self) -> Any:
        self._look()
        readers = self._plan.config.actors.num + 8  # each may wait in a call of its own
        remote: Any = ray.remote(ParameterServerProcess)
        options = self._placement.parameter_server()
        return remote.options(**options, max_concurrency=readers).remote(self._plan.keep_versions)

    def prepared(self, factory: MemberFactory) -> None:
        """`factory` is what members are made of from here on."""
        self._plan = replace(self._plan, factory=factory)

    def actor(self, actor_id: str, index: int) -> Any:
        """A process that is yet to make its actor."""
        self._look()
        remote: Any = ray.remote(LMActorProcess if self._plan.factory.generates else GymActorProcess)
        options = self._placement.actor(index)
        return remote.options(**options, max_restarts=0).remote(actor_id, self._plan.factory, *self._where)

    def make_actor(self, handle: Any, server: Any) -> Any:
        return handle.make.remote(self._plan.factory, server)

    def learners(self) -> list[Any]:
        self._look()
        count = self._plan.config.learner.num_processes
        untyped: Any = ray.remote
        remote = untyped(concurrency_groups={ASIDE: 1, TRANSFER: 1})(LearnerProcess)
        return [
            remote.options(**self._placement.learner(rank), max_restarts=0).remote(
                self._plan.factory, rank, count, *self._where
            )
            for rank in range(count)
        ]

    def evaluator(self) -> Any:
        self._look()
        remote: Any = ray.remote(EvalProcess)
        return remote.options(**self._placement.evaluation()).remote(self._plan.factory, *self._where)

    def scoring(self) -> Any:
        self._look()
        remote: Any = ray.remote(ScoringProcess)
        wanted = self._plan.factory.reward_config
        options = self._placement.scoring(beside_driver=wanted is None or wanted.url is None)
        return remote.options(**options, max_restarts=0, max_concurrency=SCORING_CONCURRENCY).remote(
            self._plan.factory, *self._where
        )

    def preference_trainer(self) -> Any:
        self._look()
        untyped: Any = ray.remote
        remote = untyped(concurrency_groups={ASIDE: 1})(PreferenceTrainerProcess)
        options = self._placement.preference_trainer()
        return remote.options(**options, max_restarts=0).remote(
            self._plan.factory, self._plan.train_reward_model, *self._where
        )
