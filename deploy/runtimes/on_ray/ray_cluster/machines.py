"""What the nodes of a Ray cluster have of memory: each is asked, and of one that does not answer what Ray says of it is
taken. Never an error: a plan that knows less is a worse plan, and no reason not to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollcall.deploy.plan.machine import Machine, this_machine

ANSWER_TIMEOUT_S = 60.0  # a node that has just come starts Python for the first time

_ray: Any = ray  # parts of its interface have no types


def ray_nodes() -> list[Mapping[str, Any]]:
    """Those that are alive, as Ray lists them."""
    return [node for node in _ray.nodes() if node["Alive"]]


def machines_of(nodes: Sequence[Mapping[str, Any]], runs: Path, *, here: Machine | None) -> list[Machine]:
    """`here`: this machine, which is the only node; None: the nodes are asked."""
    if here is not None and len(nodes) == 1:
        return [_counted(here, nodes[0])]
    asked = {node["NodeID"]: _ask(node["NodeID"], runs) for node in nodes}
    done, _ = _ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_TIMEOUT_S)
    return [_answer(node, asked[node["NodeID"]] if asked[node["NodeID"]] in done else None) for node in nodes]


def _ask(node_id: str, runs: Path) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _ray.remote(this_machine).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote(runs)


def _answer(node: Mapping[str, Any], reference: Any) -> Machine:
    try:
        if reference is not None:
            return _counted(_ray.get(reference), node)
    except RayError:
        pass
    memory = int(node["Resources"].get("memory", 0) + node["Resources"].get("object_store_memory", 0))
    return _counted(Machine("", memory, memory, 0, 0), node)


def _counted(machine: Machine, node: Mapping[str, Any]) -> Machine:
    """With CPUs and GPUs as Ray counts them."""
    resources = node["Resources"]
    return replace(
        machine,
        name=machine.name if machine.name and machine.name != "this machine" else str(node["NodeManagerAddress"]),
        num_cpus=resources.get("CPU", 0.0),
        num_gpus=resources.get("GPU", 0.0),
    )
