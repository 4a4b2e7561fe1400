"""Opens a run's gateway: its token, its address, and where whoever starts outside actors finds both."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import write_aside
from rollcall.cluster.metrics.run_metrics import RunMetrics
from rollcall.deploy.gateway.desk import Desk
from rollcall.deploy.gateway.handler import Served
from rollcall.deploy.gateway.rules import TrajectoryRules
from rollcall.deploy.gateway.server import Gateway
from rollcall.deploy.gateway.workers import OutsideWorkers, Runtime
from rollcall.deploy.kinds.outside import OutsideShards

TOKEN_FILE, URL_FILE = "outside.token", "outside.url"  # in the run's directory
LEAST_TOKEN = 16  # characters


def with_gateway(
    runtime: Runtime,
    outside: OutsideShards,
    run_directory: Path,
    metrics: RunMetrics,
    tell: Callable[[str, str], None],
) -> OutsideWorkers:
    """The runtime with outside actors beside its own, and a gateway that is open. Closing the workers closes both.

    Raises:
      BadInput: when the token cannot be read, or the address not be served on.
    """
    config = outside.config
    host, _, port = config.listen.rpartition(":")
    token, token_file = _token(config.token_file, run_directory)
    desk = Desk(max_actors=config.max_actors, lease_s=config.lease_s)
    told: dict[str, JsonValue] = {"run": run_directory.resolve().name, **outside.told}
    served = Served(
        desk,
        TrajectoryRules(outside),
        token=token.encode(),
        run=told,
        max_body_bytes=int(config.max_body_mib * 2**20),
        count=metrics.on_outside,
    )
    gateway = Gateway(served, address=(host, int(port)), max_actors=config.max_actors)
    metrics.watch_outside(lambda: desk.num_actors)
    write_aside(run_directory / URL_FILE, gateway.url + "\n")
    tell("outside", f"outside actors: rollcall actor {gateway.url} --token-file {token_file}")
    return OutsideWorkers(runtime, desk, first_shard=outside.first_shard, serve=gateway.serve, shut=gateway.close)


def _token(named: str | None, run_directory: Path) -> tuple[str, Path]:
    """The token and its file. A run that goes on has the same."""
    path = Path(named).expanduser() if named is not None else run_directory / TOKEN_FILE
    if named is None and not path.exists():
        write_aside(path, secrets.token_urlsafe(32) + "\n", private=True)
    return read_token(path, "actors.outside.token_file"), path


def read_token(path: Path, called: str) -> str:
    """Raises BadInput: when there is no token in it, or one that is soon guessed."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{called} = {path}: cannot be read ({error})") from None
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:
        raise BadInput(f"{called} = {path}: a token has {LEAST_TOKEN} characters or more, and no spaces")
    return token
