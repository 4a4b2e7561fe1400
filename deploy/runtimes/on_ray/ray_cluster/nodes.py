"""Asks every node that will work for a run, before anything begins, whether it has what the run needs: the same
Rollcall, vLLM, the user's modules, the run directory. Knows needs in general; must never know what a process does."""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollcall.actors.engine.settings import check_installed
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.messages.events import Event
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.faults import cause_of

ANSWER_TIMEOUT_S = 180.0  # a node that has just come starts Python for the first time
SLICE_S = 0.5  # of the wait for answers


@dataclass(frozen=True)
class Needs:
    """What a node must have."""

    rollcall: str  # its version
    generates: bool  # vLLM
    modules: tuple[str, ...]  # of the user
    working_directory: str  # where those are; empty: Ray brings it along
    run_directory: Path


def own_version() -> str:
    try:
        return version("rollcall-rl")
    except PackageNotFoundError:  # a source tree that nobody installed
        return "unknown"


def ask_node(node_id: str, needs: Needs) -> Any:
    """A reference to what it lacks."""
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(lacks).options(num_cpus=0, scheduling_strategy=here, max_retries=0).remote(needs)


def check_nodes(
    node_ids: Sequence[str],
    needs: Needs,
    calls: Calls,
    stop_requested: Callable[[], bool],
    *,
    ask: Callable[[str, Needs], Any] = ask_node,
) -> None:
    """Asks all at once; returns when all of them have it.

    Raises:
      BadInput: which node lacks what.
      RollcallError: a stop was requested.
    """
    silent = set(node_ids)

    def on_answer(node_id: str, answer: Answer) -> list[Event]:
        silent.discard(node_id)
        if problem := _problem(answer):
            raise BadInput(f"node {_address(node_id, calls)} {problem}")
        return []

    for node_id in node_ids:
        calls.expect(ask(node_id, needs), partial(on_answer, node_id), owner=needs, timeout_s=ANSWER_TIMEOUT_S)
    while silent:
        if stop_requested():
            raise RollcallError("stopped while the nodes were asked what they have: nothing had begun")
        calls.wait(SLICE_S)


def _problem(answer: Answer) -> str:
    try:
        return str(answer())
    except GetTimeoutError:
        return f"did not answer within {ANSWER_TIMEOUT_S:.0f} s"
    except RayError as error:
        words = " ".join(str(cause_of(error)).split())
        return f"cannot run Rollcall ({words[:200]}): every node needs the same image"


def lacks(needs: Needs) -> str:
    """What this node lacks, in words; empty when it has all."""
    if own_version() != needs.rollcall:
        return f"has Rollcall {own_version()}, the driver {needs.rollcall}: install the same on every node"
    if needs.generates:
        try:
            check_installed()
        except BadInput as error:
            return f"cannot generate: {error}"
    return _lacks_directory(needs.run_directory) or _lacks_modules(needs)


def _lacks_directory(directory: Path) -> str:
    if not (directory / "logs").is_dir():
        return f"does not see the run directory {directory}: set $ROLLCALL_RUNS to storage that all nodes share"
    probe = directory / "logs" / f".probe-{uuid.uuid4().hex}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return f"cannot write into the run directory {directory}: {error.strerror or error}"
    return ""


def _lacks_modules(needs: Needs) -> str:
    where = needs.working_directory
    if where and os.path.isdir(where) and where not in sys.path:
        sys.path.insert(0, where)
    for name in needs.modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            remedy = "submit the run as a Ray job with --working-dir" if where else "is it in the job's --working-dir?"
            return f"cannot import {name} ({type(error).__name__}: {error}): {remedy}"
    return ""


def _address(node_id: str, calls: Calls) -> str:
    found = [node["NodeManagerAddress"] for node in calls.api.nodes() if node["NodeID"] == node_id]
    return f"{found[0]} ({node_id[:8]})" if found else node_id
