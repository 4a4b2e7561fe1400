"""From a run's config to its workers on Ray: connects, says what is needed, and hands the rest to runtime.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rollcall.deploy.config.recipe.language_config import ActingConfig
from rollcall.deploy.kinds.kind import MemberFactory
from rollcall.deploy.kinds.preference_trainer import TrainRewardModel
from rollcall.deploy.plan.machine import Machine
from rollcall.deploy.plan.planning import LEAST_STORE, Plan, shares_for
from rollcall.deploy.rundir.jobs import current_job, stop_patience_s
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster import connect

if TYPE_CHECKING:
    from rollcall.deploy.runtimes.on_ray.ray_cluster.nodes import Needs
    from rollcall.deploy.runtimes.on_ray.runtime import RayWorkers


def ray_workers(
    config: ActingConfig,
    factory: MemberFactory,
    directory: Path,
    tell: Callable[[str, str], None],
    *,
    keep_versions: int,
    train_reward_model: TrainRewardModel,
    stop_requested: Callable[[], bool],
    plan: Plan | None,
    plan_on: Callable[[Sequence[Machine]], tuple[Plan | None, MemberFactory]],
) -> RayWorkers:
    """Connected, with room on the cluster, and nothing begun. `plan`: for this machine, where the run is to be on it;
    `plan_on`: makes it for others.

    Raises:
      BadInput: when there is no such cluster, no room on it, or its nodes lack what the run needs.
      RollcallError: when a stop was requested before that was known.
    """
    roles = config.cluster
    demand = config.actors.num * roles.actors.num_cpus + config.learner.num_processes * roles.learner.num_cpus
    if factory.trains_on_preferences:
        demand += roles.preference_trainer.num_cpus
    began = time.monotonic()
    cluster = connect(num_cpus=demand, store_bytes=LEAST_STORE if plan is None else plan.store_bytes)
    if (seconds := time.monotonic() - began) > 1.0:
        whose = "a private" if cluster.private else "the"
        tell("start", f"{whose} Ray cluster answers after {seconds:.1f} s")
    try:
        # These import ray, which had to be told of tokens first.
        from rollcall.deploy.runtimes.on_ray.members import Composition
        from rollcall.deploy.runtimes.on_ray.place import objects_to_send
        from rollcall.deploy.runtimes.on_ray.ray_cluster.machines import machines_of, ray_nodes
        from rollcall.deploy.runtimes.on_ray.runtime import RayWorkers

        machines = machines_of(ray_nodes(), directory.resolve(), here=None if plan is None else plan.machines[0])
        if not cluster.private:
            plan, factory = plan_on(machines)
        needs = None if plan is None else plan.needs
        shares = shares_for(config, needs, machines)
        factory = factory.with_gpus(shares)
        composition = Composition(
            config=config,
            factory=factory,
            keep_versions=keep_versions,
            needs=_needs(factory, directory),
            stop_patience_s=stop_patience_s(),
            train_reward_model=train_reward_model,
            shares=shares,
            plan=plan,
            objects=objects_to_send(config),
        )
        return RayWorkers(composition, cluster, tell, stop_requested)
    except BaseException as error:
        try:
            if isinstance(error, Exception):
                cluster.check(now=True)  # which explains it
        finally:
            cluster.close()
        raise


def _needs(factory: MemberFactory, directory: Path) -> Needs:
    """What every node must have that works for this run."""
    from rollcall.deploy.runtimes.on_ray.ray_cluster.nodes import Needs, own_version

    job = current_job()
    return Needs(
        rollcall=own_version(),
        generates=factory.generates,
        modules=tuple(factory.modules),
        working_directory="" if job is not None and job.has_working_dir else os.getcwd(),
        run_directory=directory.resolve(),
    )
