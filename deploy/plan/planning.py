"""The plan of a run: its needs against what there is. Says what fits, what does not, and what would make it smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rollcall.cluster.errors import REMEDY
from rollcall.deploy.config.recipe.root_config import OptimisedConfig, RootConfig
from rollcall.deploy.config.recipe.run_config import OnlineConfig
from rollcall.deploy.plan.gpus import Shares, Wanted, share_out
from rollcall.deploy.plan.machine import Machine
from rollcall.deploy.plan.memory import CUDA, ON_GPU
from rollcall.deploy.plan.needs import GIB, MIB, Needs, Role, Unit, in_words, settings_of

LEAST_STORE = 1 * GIB  # of a private cluster's objects: it is reserved, and only what is used of it is taken
STORE_SLACK = 1.25  # the store is divided into pieces, and objects cannot be
RAYS_LEAST = 80 * MIB
NAMED_PARTS, NAMED_ROLES = 3, 2  # in a message
TRY_ANYWAY = "if_too_large=warn begins all the same"


@dataclass(frozen=True)
class Plan:
    """Needs, what there is for them, and who has a GPU."""

    needs: Needs
    machines: Sequence[Machine]
    shares: Shares = field(default_factory=Shares)
    asked_gpus: float = 0.0  # by the settings, of a private cluster, which will never have more

    def on_gpu(self, role: Role) -> bool:
        shares = {"learner": self.shares.learner, "actor": self.shares.actor, "evaluator": self.shares.evaluator}
        if role.unit is None:
            return False
        if not self.needs.on_ray:
            return any(machine.gpu_bytes for machine in self.machines)
        return shares[role.unit] > 0

    def memory_of(self, role: Role) -> int:
        """Of one process, in the machine's memory."""
        return role.size_bytes(on_gpu=self.on_gpu(role)) + (ON_GPU if self.on_gpu(role) else 0)

    @property
    def memory_bytes(self) -> int:
        """Of all processes, with the objects that they share."""
        return sum(role.count * self.memory_of(role) for role in self.needs.roles) + self.needs.object_store_bytes

    @property
    def store_bytes(self) -> int:
        """What a private cluster is to set aside for objects: what the run needs, and never more than there is."""
        wanted = max(LEAST_STORE, int(STORE_SLACK * self.needs.object_store_bytes))
        (machine, *_) = self.machines
        if machine.shared_bytes and wanted > machine.shared_bytes:
            # Ray takes the disk for objects where shared memory has no room, and is slow then: rather a smaller store.
            fitting = int(0.9 * machine.shared_bytes)
            wanted = fitting if fitting >= max(RAYS_LEAST, self.needs.object_store_bytes) else wanted
        return max(RAYS_LEAST, min(wanted, int(0.5 * machine.memory_bytes)))

    def problems(self) -> list[str]:
        """Why the run cannot be: two lines each, what is too large and what makes it smaller. None: it fits."""
        return [*self._memory(), *self._gpus(), *self._disk()]

    def warnings(self) -> list[str]:
        """What may go badly, a line each."""
        found = []
        memory, free = self.memory_bytes, sum(machine.free_bytes for machine in self.machines)
        if free < memory <= sum(machine.memory_bytes for machine in self.machines):
            found.append(
                f"it needs {in_words(memory)} of memory, and {in_words(free)} are free now: others use the rest"
            )
        (machine, *others) = self.machines
        if self.needs.on_ray and not others and 0 < machine.shared_bytes < self.needs.object_store_bytes:
            found.append(
                f"/dev/shm has {in_words(machine.shared_bytes)} free, and weights and trajectories under way take "
                f"{in_words(self.needs.object_store_bytes)}: Ray puts them on the disk then, which is slow: give it "
                "more (docker run --shm-size, in Kubernetes an emptyDir of medium Memory)"
            )
        return found

    def _memory(self) -> list[str]:
        machines, roles = self.machines, self.needs.roles
        total, largest = sum(m.memory_bytes for m in machines), max(m.memory_bytes for m in machines)
        alone = len(machines) == 1
        where = machines[0].name if alone else "the largest node"
        worst = max(roles, key=self.memory_of)
        if self.memory_of(worst) > largest:
            return [
                f"{where} has {in_words(largest)} of memory, too little for {self.named(worst)}\n"
                f"{self.smaller([worst])}; {TRY_ANYWAY}"
            ]
        if self.memory_bytes <= total:
            return []
        order = sorted(roles, key=lambda role: -role.count * self.memory_of(role))[:NAMED_ROLES]
        everybody = where if alone else f"all {len(machines)} nodes"
        return [
            f"{everybody} has {in_words(total)} of memory, and the run needs {in_words(self.memory_bytes)}: "
            f"{'; '.join(map(self.named, order))}\n{self.smaller(order)}; {TRY_ANYWAY}"
        ]

    def named(self, role: Role) -> str:
        """A role with its size, and what makes most of it."""
        if role.count > 1:
            return f"{role.count} {role.plural} of {self.held(role)} each"
        return f"the {role.name}, {self.held(role)}"

    def held(self, role: Role) -> str:
        """The size of one process, with what makes most of it."""
        on_gpu = self.on_gpu(role)
        size = in_words(self.memory_of(role)) + (f" and {in_words(role.device_bytes)} of a GPU" if on_gpu else "")
        parts = ", ".join(f"{part.name} {in_words(part.size_bytes)}" for part in role.largest[:NAMED_PARTS])
        return f"{size} ({parts})" if parts else size

    @staticmethod
    def smaller(roles: Sequence[Role]) -> str:
        """The settings that take less."""
        settings = settings_of(part for role in roles for part in role.largest[:NAMED_PARTS])
        fewer = ["actors.num"] if any(role.count > 1 and role.unit != "learner" for role in roles) else []
        return f"{REMEDY}{', '.join(filter(None, [settings, *fewer])) or 'a smaller model'}"

    def _gpus(self) -> list[str]:
        (machine, *_) = self.machines
        if self.asked_gpus > machine.num_gpus + 1e-6:
            has = f"{machine.num_gpus:g}" if machine.num_gpus else "no"
            return [
                f"{machine.name} has {has} GPUs, and cluster.*.num_gpus ask for {self.asked_gpus:g}: lower them, or "
                "name a cluster that has as many ($RAY_ADDRESS)"
            ]
        if not self.shares.problem:
            return []
        if self.shares.remedy:
            return [f"{self.shares.problem}: {self.shares.remedy}; {TRY_ANYWAY}"]
        roles = [role for role in self.needs.roles if role.unit]
        return [f"{self.shares.problem}\n{self.smaller(roles)}; {TRY_ANYWAY}"]

    def _disk(self) -> list[str]:
        free = min((machine.disk_bytes for machine in self.machines if machine.disk_bytes), default=0)
        if not free or self.needs.disk_bytes <= free:
            return []
        return [
            f"the run writes {in_words(self.needs.disk_bytes)} ({self.needs.checkpoints_kept + 1} checkpoints of "
            f"{in_words(self.needs.checkpoint_bytes)}), and its disk has {in_words(free)} free\n"
            f"{REMEDY}checkpoint.keep; or set $ROLLCALL_RUNS to a larger disk; {TRY_ANYWAY}"
        ]


def plan_for(config: RootConfig, needs: Needs, machines: Sequence[Machine], *, private: bool = False) -> Plan:
    """With GPUs shared out as the settings say, and where they leave it open as the needs do. `private`: a run on Ray
    starts a cluster of its own, on this machine."""
    sizes = [size for machine in machines for size in machine.gpu_bytes]
    units: set[Unit] = {"actor", "evaluator"}
    if isinstance(config, OptimisedConfig) and config.learner.device != "cpu":
        units.add("learner")
    with_gpus = needs.for_gpu(min(sizes), units) if sizes else needs
    if not isinstance(config, OnlineConfig):
        return Plan(with_gpus, machines)
    shares = shares_for(config, with_gpus, machines)
    have = {"learner": shares.learner, "actor": shares.actor, "evaluator": shares.evaluator}
    has_gpu = {unit for unit in units if sizes and (have[unit] or not needs.on_ray)}
    asked = _asked_gpus(config, needs, shares) if private and needs.on_ray else 0.0
    return Plan(needs.for_gpu(min(sizes, default=0), has_gpu), machines, shares, asked)


def _asked_gpus(config: OnlineConfig, needs: Needs, shares: Shares) -> float:
    """Of what a run begins with (on_ray/ray_cluster/placement.py)."""
    wanted = wanted_of(config, needs)
    actors = min(wanted.num_actors, config.cluster.min_actors or wanted.num_actors)
    return (
        wanted.num_learners * shares.learner + actors * shares.actor + (shares.evaluator if wanted.evaluates else 0.0)
    )


def shares_for(config: OnlineConfig, needs: Needs | None, machines: Sequence[Machine]) -> Shares:
    """`needs`: None where they are not known."""
    sizes = [size for machine in machines for size in machine.gpu_bytes]
    gpus = [machine.num_gpus for machine in machines]
    return share_out(wanted_of(config, needs), gpus, gpu_bytes=min(sizes, default=0))


def wanted_of(config: OnlineConfig, needs: Needs | None) -> Wanted:
    """What a run would have of GPUs."""
    actors: Any = getattr(config, "actors", None)
    engine, roles = getattr(actors, "engine", None), config.cluster
    transfer = None if engine is None or engine.weight_transfer == "auto" else engine.weight_transfer
    learner = needs.role("learner") if needs is not None else None
    evaluator = needs.role("evaluator") if needs is not None else None
    return Wanted(
        num_learners=config.learner.num_processes,
        num_actors=actors.num,
        evaluates=evaluator is not None,
        learner_gpu=roles.learner.num_gpus,
        actor_gpu=roles.actors.num_gpus,
        evaluator_gpu=roles.evaluation.num_gpus,
        learner_uses_gpu=config.learner.device != "cpu",
        generates=engine is not None,
        gpus_per_engine=1 if engine is None else engine.tensor_parallel_size,
        utilization=None if engine is None else engine.gpu_memory_utilization,
        transfer=transfer,
        learner_bytes=CUDA + learner.device_bytes if learner is not None else 0,
        engines=needs.engines if needs is not None else None,
    )
