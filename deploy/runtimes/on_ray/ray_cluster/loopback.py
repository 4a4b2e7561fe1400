"""A private cluster that nobody on the machine's network can reach. Ray has no setting for that: its start is changed
while we are in it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rollcall.deploy.runtimes.loopback import INTERFACES, where_unset

LOOPBACK = "127.0.0.1"

# What gloo, NCCL and vLLM listen on; the cluster's processes inherit them.
_VARIABLES = {**INTERFACES, "VLLM_HOST_IP": LOOPBACK}


@contextmanager
def on_loopback() -> Iterator[None]:
    """Within it `ray.init` takes LOOPBACK as a node's address as it is, and its processes listen there alone. Ray would
    put the machine's own address in its place, and listen on all, but where it knows of one machine only (macOS)."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        with where_unset(_VARIABLES):
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
