"""The command lines of `rollcall reward`: what each takes, and which module does it. Imports nothing heavy: a command's
module is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollcall.deploy.cli.label import add_label
from rollcall.deploy.cli.running import add_output
from rollcall.deploy.config.settings import COMMAND_LINE


def add_reward(parser: argparse.ArgumentParser) -> None:
    """Adds a subparser for each command under `rollcall reward`."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    _serve(what)
    _train(what)
    add_label(what)


def _command(what: Any, name: str, module: str, function: str, text: str) -> argparse.ArgumentParser:
    """A command that is `module.function(args) -> exit code`, imported when it is called."""
    command: argparse.ArgumentParser = what.add_parser(name, help=text, description=text)
    command.set_defaults(run=_late(module, function))
    return command


def _late(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(module), function)(args))

    return run


def _serve(what: Any) -> None:
    serve = _command(
        what,
        "serve",
        "rollcall.deploy.tools.reward_serve",
        "main",
        "serve scores over HTTP; prints the URL first, and drains on SIGTERM or Ctrl-C",
    )
    serve.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the service's settings")
    serve.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings such as batching.max_wait_ms=2"
    )
    serve.add_argument("--host", metavar="ADDRESS", help="default: 127.0.0.1; others need a token")
    serve.add_argument("--port", type=int, metavar="N", help="0: a free one")
    serve.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=KIND_OR_PATH",
        help="a scorer to serve: a kind such as exact_match, a reward model's directory, or module:function; may be "
        f"given again ({COMMAND_LINE} adds to CONFIG.yaml)",
    )
    serve.add_argument("--default-model", metavar="NAME", help="who scores requests that name no model")
    serve.add_argument(
        "--model-root",
        action="append",
        default=[],
        type=Path,
        metavar="DIRECTORY",
        help="models may be loaded from below it while the service runs; may be given again",
    )
    serve.add_argument("--token-file", type=Path, metavar="FILE", help="holds the bearer token")
    serve.add_argument(
        "--labels", type=Path, metavar="DIRECTORY", help="also serve the labelling page, for the preferences kept there"
    )


def _train(what: Any) -> None:
    train = _command(
        what,
        "train",
        "rollcall.deploy.cli.running",
        "train_reward",
        "train a reward model from preferences; prints the run directory first, and how to serve the model last",
    )
    train.add_argument(
        "source",
        metavar="FILE_OR_RECIPE",
        help="preferences (.jsonl, .jsonl.gz), a shipped recipe's name, or a YAML file",
    )
    train.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings such as epochs=2 model.tiny.num_layers=3",
    )
    add_output(train)
