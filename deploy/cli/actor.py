"""`rollcall actor`: an actor of a run on another machine, over HTTP."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, INTERRUPTED, Add, at_least
from rollcall.deploy.config.settings import COMMAND_LINE


def add_actor(add: Add) -> None:
    """Adds the command."""
    actor = add("actor", _actor, "act for a run that goes on elsewhere, over HTTP (actors.outside of its recipe)")
    actor.add_argument("url", metavar="URL", help="of the run's gateway: the run says it, and RUN/outside.url has it")
    actor.add_argument(
        "--token-file", type=Path, required=True, metavar="FILE", help="holds the run's token (RUN/outside.token)"
    )
    actor.add_argument("--name", default=platform.node(), help="what the run's log calls it; default: this machine's")
    actor.add_argument(
        "--patience", type=int, default=300, metavar="SECONDS", help="how long a gateway that is away is waited for"
    )
    actor.epilog = "the env's own modules are looked for in the working directory; Ctrl-C leaves the run"


def _actor(args: argparse.Namespace) -> int:
    at_least("--patience", args.patience, 1)
    if not args.url.startswith(("http://", "https://")):
        raise BadInput(f"URL = {args.url!r} ({COMMAND_LINE}): must begin with http:// or https://")
    if len(args.name) > 100 or not args.name.isprintable():
        raise BadInput(f"--name = {args.name!r} ({COMMAND_LINE}): at most 100 printable characters")
    from rollcall.actors.outside.gateway_client import GatewayClient
    from rollcall.actors.outside.work import OutsideActor
    from rollcall.deploy.gateway.opening import read_token

    gateway = GatewayClient(args.url, read_token(args.token_file, "--token-file"))
    actor = OutsideActor(
        gateway, _make, name=args.name, patience_s=args.patience, tell=lambda text: print(text, flush=True)
    )
    try:
        actor.work()
    except KeyboardInterrupt:
        actor.leave()
        print(f"left; {actor.accepted} trajectories were taken", flush=True)
        return INTERRUPTED
    finally:
        gateway.close()
    print(f"done; {actor.accepted} trajectories were taken", flush=True)
    return DONE


def _make(told: Mapping[str, Any], actor_id: str, source: Any) -> Any:
    """The actor that the run's own processes have."""
    from rollcall.deploy.kinds.control.factory import ControlFactory
    from rollcall.deploy.kinds.control.outside import config_told

    return ControlFactory(config_told(told), Path()).actor(actor_id, source)
