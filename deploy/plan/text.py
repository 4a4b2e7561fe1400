"""A plan in words: whole, as `rollcall plan` prints it; in a few lines, as a run begins with it; and as JSON."""

from __future__ import annotations

from typing import Any

from rollcall.deploy.plan.machine import THIS_MACHINE, Machine
from rollcall.deploy.plan.needs import MIB, Role, in_words
from rollcall.deploy.plan.planning import Plan


def whole(plan: Plan) -> list[str]:
    """Every role with its parts, what there is, and whether it fits."""
    needs = plan.needs
    lines = [needs.model, "", f"{'':<34}{'memory':>10}{'GPU':>10}  of which"]
    lines += [_role(plan, role) for role in needs.roles]
    lines += ["", *_totals(plan), *_gpus(plan), *plan.warnings()]
    problems = plan.problems()
    return [*lines, "", *(f"does not fit: {problem}" for problem in problems)] if problems else [*lines, "", "it fits"]


def essence(plan: Plan) -> list[str]:
    """What a run says of its plan before it begins."""
    roles = ", ".join(
        f"{f'{role.count} x ' if role.count > 1 else ''}{role.name} {in_words(plan.memory_of(role))}"
        for role in plan.needs.roles
    )
    memory = _of_all(plan, "memory_bytes")
    first = f"{in_words(plan.memory_bytes)} of {in_words(memory)} memory: {roles}"
    disk = f"{in_words(plan.needs.disk_bytes)} of disk" if plan.needs.disk_bytes else ""
    return [f"{plan.needs.model}; {first}" + (f"; {disk}" if disk else ""), *_gpus(plan), *plan.warnings()]


def as_json(plan: Plan) -> dict[str, Any]:
    """The same for programs; sizes in bytes."""
    needs = plan.needs
    return {
        "model": needs.model,
        "roles": [
            {
                "name": role.name,
                "count": role.count,
                "memory_bytes": plan.memory_of(role),
                "gpu_bytes": role.device_bytes if plan.on_gpu(role) else 0,
                "parts": {part.name: part.size_bytes for part in role.parts},
            }
            for role in needs.roles
        ],
        "memory_bytes": plan.memory_bytes,
        "object_store": {
            "needed_bytes": needs.object_store_bytes,
            "size_bytes": plan.store_bytes if needs.on_ray else 0,
        },
        "published_bytes": needs.published_bytes,
        "disk": {"checkpoint_bytes": needs.checkpoint_bytes, "whole_run_bytes": needs.disk_bytes},
        "gpu_shares": {
            "learner": plan.shares.learner,
            "actor": plan.shares.actor,
            "evaluator": plan.shares.evaluator,
            "utilization": plan.shares.utilization,
            "evaluator_utilization": plan.shares.evaluator_utilization,
            "weight_transfer": plan.shares.transfer,
        },
        "machines": [_machine(machine) for machine in plan.machines],
        "problems": plan.problems(),
        "warnings": plan.warnings(),
        "fits": not plan.problems(),
    }


def _machine(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "memory_bytes": machine.memory_bytes,
        "free_bytes": machine.free_bytes,
        "shared_memory_bytes": machine.shared_bytes,
        "disk_bytes": machine.disk_bytes,
        "gpu_bytes": list(machine.gpu_bytes),
        "num_gpus": machine.num_gpus,
    }


def _role(plan: Plan, role: Role) -> str:
    name = f"{role.count} {role.plural}, each" if role.count > 1 else role.name
    on_gpu = in_words(role.device_bytes) if plan.on_gpu(role) else "-"
    parts = ", ".join(f"{part.name} {in_words(part.size_bytes)}" for part in role.parts if part.size_bytes >= MIB)
    return f"{name:<34}{in_words(plan.memory_of(role)):>10}{on_gpu:>10}  {parts}"


def _totals(plan: Plan) -> list[str]:
    needs = plan.needs
    memory, free = _of_all(plan, "memory_bytes"), _of_all(plan, "free_bytes")
    lines = [f"{'memory':<14}{in_words(plan.memory_bytes)} of {in_words(memory)}, of which {in_words(free)} are free"]
    if any(machine.name != THIS_MACHINE for machine in plan.machines):
        lines.append(
            f"{'nodes':<14}{len(plan.machines)} are here now; those that an autoscaler would add are not counted"
        )
    if needs.on_ray:
        shared = _of_all(plan, "shared_bytes")
        lines.append(
            f"{'object store':<14}{in_words(needs.object_store_bytes)} under way: {in_words(needs.published_bytes)} a "
            f"version of the weights, {in_words(needs.trajectories_bytes)} trajectories; {in_words(plan.store_bytes)} "
            f"are set aside" + (f" of {in_words(shared)} in /dev/shm" if shared else "")
        )
    disk = _of_all(plan, "disk_bytes")
    lines.append(
        f"{'disk':<14}{in_words(needs.disk_bytes)}: {needs.checkpoints_kept} checkpoints of "
        f"{in_words(needs.checkpoint_bytes)}, and one that is being written"
        + (f"; {in_words(disk)} are free" if disk else "")
    )
    return lines


def _gpus(plan: Plan) -> list[str]:
    found = [size for machine in plan.machines for size in machine.gpu_bytes]
    shares = plan.shares
    if not found or not (shares.learner or shares.actor):
        return []
    words = [
        f"{name} {share:g}"
        for name, share in (("learner", shares.learner), ("actor", shares.actor), ("evaluator", shares.evaluator))
        if share
    ]
    engine = f"; engines take {shares.utilization:.0%} of a GPU's memory" if shares.utilization else ""
    way = f"; weights by {shares.transfer}" if shares.actor else ""
    return [f"{len(found)} x {in_words(min(found))} of GPU, shared out: {', '.join(words)}{engine}{way}"]


def _of_all(plan: Plan, name: str) -> int:
    return sum(int(getattr(machine, name)) for machine in plan.machines)
