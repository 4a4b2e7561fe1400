"""What each role of a run needs of a Ray cluster, and whether a cluster can have it. Sums and labels only: whoever asks
Ray is on_ray/ray_cluster/placement.py; must never know what a role does."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class RoleConfig(BaseModel):
    """What one process of a role needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: Amount = Field(default=1, description="CPUs, as Ray counts them")
    num_gpus: Amount | None = Field(
        default=None,
        description="GPUs; null: by the run's plan: one each where there are enough, else learners and engines share "
        "them (rollcall plan says how)",
    )
    resources: dict[str, Amount] = Field(default_factory=dict, description="custom resources of the cluster, by name")
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes it may run on: value, !value, in(a, b) or !in(a, b)"
    )


class BesideConfig(RoleConfig):
    """Of a role that mostly waits: it needs a place, and no share of it."""

    num_cpus: Amount = Field(default=0, description="CPUs, as Ray counts them")


class ClusterConfig(BaseModel):
    """What the run needs of the Ray cluster. Nothing of it changes the result: none of it is in the config's hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    placement: Strategy = Field(
        default="PACK", description="how Ray places learners and actors: on few nodes, on many, on one, or one on each"
    )
    min_actors: int | None = Field(
        default=None,
        ge=1,
        description="actors that must be there to begin; the others join when there is room; null: all",
    )
    room_timeout_s: float = Field(
        default=60.0, gt=0, description="how long to wait for room; with an autoscaler, as long as a node takes to come"
    )
    actors: RoleConfig = Field(default_factory=RoleConfig, description="each actor")
    learner: RoleConfig = Field(default_factory=RoleConfig, description="each learner process")
    evaluation: BesideConfig = Field(default_factory=BesideConfig, description="the evaluator")
    scoring: BesideConfig = Field(default_factory=BesideConfig, description="who asks the reward service")
    preference_trainer: RoleConfig = Field(
        default_factory=RoleConfig,
        description="who trains reward models from preferences while the policy learns; always on the driver's node",
    )
    parameter_server: BesideConfig = Field(
        default_factory=BesideConfig, description="the parameter server; unless it needs anything, beside the learner"
    )


@dataclass(frozen=True)
class Bundle:
    """What one process is to have, on one node."""

    role: str  # in the plural, for messages: "actors"
    demand: Mapping[str, float]  # resource -> amount, each above 0
    labels: Mapping[str, str]

    @property
    def text(self) -> str:
        needs = [f"{amount:g} {name}" for name, amount in self.demand.items()]
        labels = [f"{key}={value}" for key, value in self.labels.items()]
        return ", ".join(needs) + (f" on a node with {', '.join(labels)}" if labels else "")


@dataclass(frozen=True)
class Node:
    """A node of the cluster: all it has, whoever uses it."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def bundle(role: str, needs: RoleConfig, *, num_gpus: float) -> Bundle:
    """`num_gpus`: where the settings leave it open."""
    gpus = needs.num_gpus if needs.num_gpus is not None else num_gpus
    amounts = {"CPU": needs.num_cpus, "GPU": gpus, **needs.resources}
    return Bundle(role, {name: amount for name, amount in amounts.items() if amount}, needs.label_selector)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels are what a selector in Ray's manner asks for."""
    for key, wanted in selector.items():
        negated = wanted.startswith("!")
        listed = re.fullmatch(r"in\((.*)\)", wanted.removeprefix("!"))
        values = [value.strip() for value in listed[1].split(",")] if listed else [wanted.removeprefix("!")]
        if (labels.get(key) in values) == negated:
            return False
    return True


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy) -> str:
    """What a cluster that nobody else uses would still lack, role by role; empty when it has room for all."""
    unplaced = _unplaced(bundles, nodes, strategy)
    if not unplaced:
        return ""
    wanted = Counter(item.role for item in bundles)
    lines = []
    for role, count in Counter(item.role for item in unplaced).items():
        one = next(item for item in unplaced if item.role == role)
        lines.append(f"{count} of {wanted[role]} {role} (each {one.text}): {_reason(one, nodes, strategy)}")
    return "; ".join(lines)


def total(nodes: Iterable[Node]) -> str:
    """All that a cluster has, in words."""
    nodes = list(nodes)
    sums: Counter[str] = Counter()
    for node in nodes:
        sums.update({k: v for k, v in node.resources.items() if not k.startswith(("node:", "memory", "object_store"))})
    amounts = ", ".join(f"{sums[name]:g} {name}" for name in sorted({"CPU", "GPU", *sums}))
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} with {amounts}"


def _unplaced(bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy) -> list[Bundle]:
    """First fit, the largest first: what is left has no room, or so little that Ray might not find it either."""
    if strategy == "STRICT_PACK":
        tries = [_first_fit(bundles, [node], one_each=False) for node in nodes] or [list(bundles)]
        return min(tries, key=len)
    return _first_fit(bundles, nodes, one_each=strategy == "STRICT_SPREAD")


def _first_fit(bundles: Sequence[Bundle], nodes: Sequence[Node], *, one_each: bool) -> list[Bundle]:
    free = [dict(node.resources) for node in nodes]
    used = [False] * len(nodes)
    left = []
    for item in sorted(bundles, key=lambda b: (-len(b.labels), -math.fsum(b.demand.values()))):
        for index, node in enumerate(nodes):
            if (one_each and used[index]) or not matches(node.labels, item.labels):
                continue
            if all(free[index].get(name, 0.0) >= amount for name, amount in item.demand.items()):
                for name, amount in item.demand.items():
                    free[index][name] -= amount
                used[index] = True
                break
        else:
            left.append(item)
    return left


def _reason(item: Bundle, nodes: Sequence[Node], strategy: Strategy) -> str:
    fitting = [node for node in nodes if matches(node.labels, item.labels)]
    if not fitting:
        return "no node has these labels"
    for name, amount in item.demand.items():
        most = max(node.resources.get(name, 0.0) for node in fitting)
        if most < amount:
            return (
                f"no such node has more than {most:g} {name}"
                if item.labels
                else f"no node has more than {most:g} {name}"
            )
    if strategy in ("STRICT_PACK", "STRICT_SPREAD"):
        return f"cluster.placement={strategy} leaves them no place"
    return "the others take all that there is"
