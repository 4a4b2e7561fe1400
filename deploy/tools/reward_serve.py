"""`rollcall reward serve`: settings from a file and the command line, and a service that runs until told to end."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.cluster.metrics.discovery import announce
from rollcall.deploy.config.settings import COMMAND_LINE, Settings, parse_override, parse_yaml
from rollcall.deploy.rundir.jobs import runs_root
from rollcall.reward_service.labelling.routes import OPEN_PATHS, PAGE_PATH
from rollcall.reward_service.service.private import label_routers
from rollcall.reward_service.service.server import Server, leave_at_once_unless
from rollcall.reward_service.service.service_config import ServiceConfig


def main(args: argparse.Namespace) -> int:
    """Exit code 0 after a drain. `args`: as cli_reward makes them."""
    config = load_service_config(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with label_routers(config) as routers:
        server = Server(config, routers=routers, open_paths=OPEN_PATHS if routers else ())
        print(server.url, flush=True)
        if routers:
            print(f"labelling page: {server.url}{PAGE_PATH}", flush=True)
        with _announced(server):
            ended = server.run()
    leave_at_once_unless(ended)
    return 0


@contextmanager
def _announced(server: Server) -> Iterator[None]:
    """Prometheus finds it, where it may read its metrics without the token."""
    address = f"{server.config.host}:{urlsplit(server.url).port}"
    name = f"reward_service-{urlsplit(server.url).port}"
    here = announce(runs_root(), name, address, {"role": "reward_service"}) if server.config.open_metrics else None
    try:
        yield
    finally:
        if here is not None:
            here.withdraw()


def load_service_config(args: argparse.Namespace) -> ServiceConfig:
    """The file, then key=value, then the options.

    Raises:
      BadInput: one line for each thing that is wrong, with where it was written.
    """
    settings = Settings(source=COMMAND_LINE)
    overrides = list(args.overrides)
    if args.config is not None and "=" in args.config and not Path(args.config).exists():
        overrides.insert(0, args.config)
    elif args.config is not None:
        settings = _read(Path(args.config))
    for text in overrides:
        path, value = parse_override(text)
        settings.set(path, value, COMMAND_LINE)
    for name in ("host", "port", "default_model"):
        if getattr(args, name) is not None:
            settings.set((name,), getattr(args, name), COMMAND_LINE)
    for name in ("token_file", "labels"):
        if getattr(args, name) is not None:
            settings.set((name,), str(getattr(args, name)), COMMAND_LINE)
    if args.model_root:
        settings.set(("model_roots",), [str(root) for root in args.model_root], COMMAND_LINE)
    for text in args.model:
        name, scorer = _model(text)
        settings.set(("models", name), scorer, COMMAND_LINE)
    try:
        return ServiceConfig.model_validate(settings.tree)
    except ValidationError as error:
        raise BadInput("\n".join(_explained(error, settings))) from None


def _read(path: Path) -> Settings:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the settings {path} ({COMMAND_LINE}): {error}") from None


def _model(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=KIND_OR_PATH`: a directory is a reward model's, module:function is a user's scorer, the rest is a kind."""
    name, equals, what = text.partition("=")
    if not (equals and name and what):
        raise BadInput(f"--model = {text!r} ({COMMAND_LINE}): must be NAME=KIND_OR_PATH, such as main=runs/rm/model")
    if Path(what).is_dir():
        return name, {"kind": "reward_model", "path": what}
    if os.sep in what:
        raise BadInput(f"--model = {text!r} ({COMMAND_LINE}): no such directory: give one that holds a model")
    if ":" in what:
        return name, {"kind": "function", "path": what}
    return name, {"kind": what}


def _explained(error: ValidationError, settings: Settings) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        path = _written(settings.tree, [str(part) for part in item["loc"]])
        kind, text = item["type"], item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if kind == "missing":
            lines.append(f"{settings.origin(path[:-1]) or settings.source}: {'.'.join(path)} is missing")
            continue
        if kind == "extra_forbidden":
            text = "unknown key" + (did_you_mean(path[-1], ServiceConfig.model_fields) if len(path) == 1 else "")
        shown = json.dumps(item["input"], default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        where = settings.origin(path) or settings.source
        lines.append(f"{'.'.join(path) or 'settings'} = {shown} ({where}): {' '.join(text.split())}")
    return list(dict.fromkeys(lines))


def _written(tree: Any, location: Sequence[str]) -> tuple[str, ...]:
    """Where the user wrote it: without the names of a union's members, which pydantic puts in between."""
    path: list[str] = []
    node = tree
    for index, part in enumerate(location):
        inside = isinstance(node, dict) and part in node
        if not inside and index + 1 < len(location) and isinstance(node, dict) and node.get("kind") == part:
            continue
        path.append(part)
        node = node[part] if inside else None
    return tuple(path)
