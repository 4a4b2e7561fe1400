"""Where processes of a run meet that speak to each other directly, past Ray. Knows the node, not what they say."""

from __future__ import annotations

import importlib
import secrets
import socket
from typing import Any

import ray

from rollcall.deploy.runtimes.on_ray.ray_cluster.loopback import LOOPBACK


def free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind((ray.util.get_node_ip_address(), 0))  # type: ignore[no-untyped-call]
        host, port = probe.getsockname()
    return host, port


def meeting_place() -> str:
    """For the processes of one learner, the first of which asks. On a private cluster it is a file in the cluster's
    folder, which nobody else may enter: whoever can reach a port there could have a say."""
    host, port = free_address()
    if host != LOOPBACK:
        return f"{host}:{port}"
    worker: Any = importlib.import_module("ray._private.worker")
    return f"file://{worker.global_worker.node.get_session_dir_path()}/meeting-{secrets.token_hex(8)}"
