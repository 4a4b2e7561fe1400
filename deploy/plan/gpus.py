"""Who gets how much of which GPU where the settings leave it open, and what follows for engines: their share of its
memory, and how weights come to them. Pure functions over what is needed and what there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rollcall.deploy.plan.needs import Engines, in_words

Transfer = Literal["object_store", "nccl", "ipc"]
USABLE = 0.94  # of a GPU's memory: the rest is CUDA's own, of every process that uses it
SLACK = 1.15  # of what is needed: an allocator's holes
WHOLE_UTILIZATION = 0.85  # of an engine that has a GPU to itself
LEAST_UTILIZATION = 0.05
BESIDE_ACTOR = 0.25  # of a GPU: an evaluator's, beside an engine that acts
ENGINES_SHARE = 0.5  # of a GPU whose memory is not known


@dataclass(frozen=True)
class Wanted:
    """What a run would have of GPUs. Amounts that are None are for us to choose."""

    num_learners: int
    num_actors: int
    evaluates: bool
    learner_gpu: float | None
    actor_gpu: float | None
    evaluator_gpu: float | None
    learner_uses_gpu: bool  # learner.device is not cpu
    generates: bool  # actors are engines, which need a GPU where there are any
    gpus_per_engine: int = 1  # tensor_parallel_size
    utilization: float | None = None
    transfer: Transfer | None = None
    learner_bytes: int = 0  # of a GPU, of each learner process
    engines: Engines | None = None


@dataclass(frozen=True)
class Shares:
    """Of each process, as Ray counts GPUs; 0: it has none."""

    learner: float = 0.0
    actor: float = 0.0
    evaluator: float = 0.0
    utilization: float | None = None  # of a GPU's memory: an actor's engine; None: as the settings say
    evaluator_utilization: float | None = None
    transfer: Transfer = "object_store"
    problem: str = ""  # why there is no good way to share
    remedy: str = ""  # of a problem that a smaller run would have, too


def share_out(wanted: Wanted, gpus: Sequence[float], *, gpu_bytes: int = 0) -> Shares:
    """`gpus`: how many each node has; `gpu_bytes`: memory of the smallest, 0: not known."""
    total = math.floor(sum(gpus))
    if total < 1:
        none = Shares(
            learner=wanted.learner_gpu or 0.0,
            actor=wanted.actor_gpu or 0.0,
            evaluator=wanted.evaluator_gpu or 0.0,
            transfer=wanted.transfer or "object_store",
        )
        return _sendable(none, wanted, total)
    learners = wanted.num_learners if wanted.learner_uses_gpu else 0
    if not wanted.generates:
        one = 1.0 if learners and total >= learners else 0.0
        return _by_hand(Shares(learner=one), wanted)
    engines, each = wanted.num_actors + wanted.evaluates, wanted.gpus_per_engine
    if any(share is not None for share in (wanted.learner_gpu, wanted.actor_gpu, wanted.evaluator_gpu)):
        found = _around_hand(wanted, learners, total)
    elif learners + engines * each <= total:
        found = Shares(1.0 if learners else 0.0, float(each), float(each), WHOLE_UTILIZATION, WHOLE_UTILIZATION)
    elif learners + wanted.num_actors * each <= total and each == 1:
        found = _evaluator_beside_actor(learners)
    elif each > 1:
        found = Shares(problem=_too_few(wanted, learners, total))
    elif total > 1 and learners < total:
        found = _engines_together(wanted, learners, engines, total - learners)
    else:
        found = _all_together(wanted, learners, engines, total, gpu_bytes)
    apart = found.learner >= 1 and total > 1
    transfer: Transfer = "object_store"
    if found.learner and found.actor and wanted.gpus_per_engine == 1:  # others send to one GPU
        transfer = "nccl" if apart else "ipc" if wanted.num_learners == 1 and total == 1 else "object_store"
    return _sendable(_by_hand(replace(found, transfer=transfer), wanted), wanted, total)


def _sendable(found: Shares, wanted: Wanted, total: int) -> Shares:
    """With the problem of a way of the weights that is asked for and cannot be here: an engine would refuse it, once
    its model is loaded. Who asks for GPUs of a cluster that has none yet, waits for them."""
    transfer = wanted.transfer
    setting = f"actors.engine.weight_transfer={transfer}"
    problem = remedy = ""
    if found.problem or transfer not in ("nccl", "ipc"):
        pass
    elif total < 1:
        if not found.learner or not found.actor:
            problem, remedy = f"{setting} sends weights from GPU to GPU, and there is none", "use auto"
    elif transfer == "nccl" and total == 1:
        problem, remedy = f"{setting} is between two GPUs, and there is one", "use ipc"
    elif transfer == "ipc" and (found.learner >= 1 or found.actor >= 1):
        problem, remedy = f"{setting} is within one GPU, and learner and engine have one each", "use nccl"
    return replace(found, problem=problem, remedy=remedy) if problem else found


def _by_hand(found: Shares, wanted: Wanted) -> Shares:
    """What the settings say, wins."""
    return replace(
        found,
        learner=found.learner if wanted.learner_gpu is None else wanted.learner_gpu,
        actor=found.actor if wanted.actor_gpu is None else wanted.actor_gpu,
        evaluator=found.evaluator if wanted.evaluator_gpu is None else wanted.evaluator_gpu,
        utilization=found.utilization if wanted.utilization is None else wanted.utilization,
        evaluator_utilization=found.evaluator_utilization if wanted.utilization is None else wanted.utilization,
        transfer=wanted.transfer or found.transfer,
    )


def _around_hand(wanted: Wanted, learners: int, total: int) -> Shares:
    """Some amounts are given: the others share what these leave, evenly, as large as they may be."""
    given = {
        "learner": (learners, wanted.learner_gpu),
        "actor": (wanted.num_actors, wanted.actor_gpu),
        "evaluator": (int(wanted.evaluates), wanted.evaluator_gpu),
    }
    left = total - sum(count * share for count, share in given.values() if share is not None)
    open_ones = sum(count for count, share in given.values() if share is None)
    one = _fraction(min(1.0, left / open_ones)) if open_ones and left > 0 else 0.0
    amounts = {name: one if share is None else share for name, (_, share) in given.items()}
    if not learners:
        amounts["learner"] = wanted.learner_gpu or 0.0
    return Shares(
        learner=amounts["learner"],
        actor=amounts["actor"],
        evaluator=amounts["evaluator"],
        utilization=_memory_of(amounts["actor"]),
        evaluator_utilization=_memory_of(amounts["evaluator"]),
    )


def _memory_of(share: float) -> float:
    """Of each GPU that an engine has so much of."""
    return max(LEAST_UTILIZATION, _fraction(WHOLE_UTILIZATION * min(1.0, share)))


def _evaluator_beside_actor(learners: int) -> Shares:
    actor = 1 - BESIDE_ACTOR
    return Shares(
        learner=1.0 if learners else 0.0,
        actor=actor,
        evaluator=BESIDE_ACTOR,
        utilization=_fraction(WHOLE_UTILIZATION * actor),
        evaluator_utilization=_fraction(WHOLE_UTILIZATION * BESIDE_ACTOR),
    )


def _engines_together(wanted: Wanted, learners: int, engines: int, gpus: int) -> Shares:
    """Learners have GPUs of their own; several engines share each of the others."""
    one = _fraction(1 / math.ceil(engines / gpus))
    memory = _fraction(WHOLE_UTILIZATION * one)
    return Shares(1.0 if learners else 0.0, one, one, memory, memory)


def _all_together(wanted: Wanted, learners: int, engines: int, total: int, gpu_bytes: int) -> Shares:
    """Learners and engines share every GPU: as much memory for each as it needs, and what is left for keys and
    values. An evaluator, which answers a few hundred rows now and then, has half of an actor's share."""
    learners_each, engines_each = math.ceil(learners / total), math.ceil(engines / total)
    of_engines = ENGINES_SHARE if learners else USABLE
    if gpu_bytes and wanted.engines is not None:
        usable = USABLE * gpu_bytes
        for_learners = learners_each * wanted.learner_bytes * SLACK
        least, best = wanted.engines.least_bytes, wanted.engines.best_bytes
        if for_learners + engines_each * least > usable:
            return Shares(
                problem=f"a GPU of {in_words(gpu_bytes)} has no room for {_processes(learners_each, 'learner process')}"
                f" of {in_words(wanted.learner_bytes)} and {_processes(engines_each, 'engine')} of at least "
                f"{in_words(least)}"
            )
        of_engines = min(usable - for_learners, engines_each * max(best, least) * SLACK) / gpu_bytes
    actor = evaluator = of_engines / engines_each
    if total == 1 and wanted.evaluates:
        evaluator = of_engines / (2 * wanted.num_actors + 1)
        actor = 2 * evaluator
        if gpu_bytes and wanted.engines is not None and evaluator * gpu_bytes < wanted.engines.least_bytes:
            actor = evaluator = of_engines / engines_each
    actor, evaluator = _fraction(actor), _fraction(evaluator)
    # What is left of the GPU as Ray counts it: learners do not ask Ray for memory.
    left = 1.0 - (wanted.num_actors * actor + wanted.evaluates * evaluator if total == 1 else engines_each * actor)
    return Shares(
        learner=_fraction(left / learners_each) if learners else 0.0,
        actor=actor,
        evaluator=evaluator,
        utilization=actor,
        evaluator_utilization=evaluator,
    )


def _fraction(share: float) -> float:
    """Rounded down: what is rounded up has no room."""
    return math.floor(share * 100 + 1e-9) / 100


def _processes(count: int, name: str) -> str:
    return f"one {name}" if count == 1 else f"{count} {name}{'es' if name.endswith('s') else 's'}"


def _too_few(wanted: Wanted, learners: int, total: int) -> str:
    evaluator = " and as many for the evaluator (eval.num_rows=0: none)" if wanted.evaluates else ""
    return (
        f"{total} GPUs are too few for {_processes(learners, 'learner process')} and "
        f"{_processes(wanted.num_actors, 'engine')} of {wanted.gpus_per_engine} GPUs{evaluator}: lower "
        "actors.engine.tensor_parallel_size or actors.num"
    )
