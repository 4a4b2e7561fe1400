"""A private cluster's node without those of Ray's own processes that nobody asks here: the autoscaler, the log monitor,
the API server, and the agents for its metrics and for runtime environments. Together they cost a start five seconds of
CPU time, and listen on the machine's network. Ray has no setting for that: its start is changed while we are in it."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")  # of the raylet, which does not do without
STAND_IN = Path(__file__).with_name("absent_agent.py")


@contextmanager
def bare_node() -> Iterator[None]:
    """Within it `ray.init` starts the cluster's store of facts (GCS) and its raylet, and no more."""
    node: Any = importlib.import_module("ray._private.node").Node
    services: Any = importlib.import_module("ray._private.services")
    utils: Any = importlib.import_module("ray._private.utils")
    start = services.start_ray_process
    with ExitStack() as changes:
        for place, name, instead in (
            (node, "start_monitor", _nothing),
            (node, "start_log_monitor", _nothing),
            (node, "start_api_server", _no_address),
            (utils, "get_dashboard_dependency_error", lambda: None),  # looks by importing a web server
            (services, "start_ray_process", lambda command, *a, **k: start(_without_agents(command), *a, **k)),
        ):
            changes.callback(setattr, place, name, _changed(place, name, instead))
        yield


def _changed(place: Any, name: str, instead: Callable[..., Any]) -> Any:
    before = getattr(place, name)
    setattr(place, name, instead)
    return before


def _nothing(_node: Any) -> None:
    """Starts none."""


def _no_address(node: Any, **_: Any) -> None:
    node._webui_url = None


def _without_agents(command: list[str]) -> list[str]:
    return [_stand_in(word) if word.startswith(AGENTS) else word for word in command]


def _stand_in(option: str) -> str:
    """The same agent's command, of a process that is there and does nothing."""
    flag, _, line = option.partition("=")
    words = shlex.split(line)
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return f"{flag}={shlex.join([sys.executable, '-I', '-S', str(STAND_IN), *words[script + 1 :]])}"
