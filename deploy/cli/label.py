"""The command lines of `rollcall reward label`. Imports nothing heavy: a command imports what it needs when called."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollcall.deploy.config.settings import COMMAND_LINE


def add_label(what: Any) -> None:
    """Adds `label` and its commands to the subparsers of `rollcall reward`."""
    text = "ask people which of two is better, or make raters of a known reward; labels out as a preference file"
    label = what.add_parser("label", help=text, description=text)
    commands = label.add_subparsers(dest="label_command", metavar="COMMAND", required=True)
    _serve(commands)
    _files(commands)
    _synth(commands)
    _judge(commands)


def _command(commands: Any, name: str, function: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=_late(function))
    return command


def _late(function: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from rollcall.deploy.tools import reward_label

        return int(getattr(reward_label, function)(args))

    return run


def _serve(commands: Any) -> None:
    serve = _command(commands, "serve", "serve", "serve the labelling page; prints its URL first, and ends on SIGTERM")
    serve.add_argument("directory", type=Path, metavar="DIRECTORY", help="where comparisons and labels are kept")
    serve.add_argument("--host", metavar="ADDRESS", help="default: 127.0.0.1; others need a token")
    serve.add_argument("--port", type=int, metavar="N", help="0: a free one")
    serve.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token; else $ROLLCALL_REWARD_TOKEN")
    serve.add_argument("--lease-ttl-s", type=float, metavar="S", help="how long one rater has a comparison (600)")
    serve.add_argument("--labels-per-comparison", type=int, metavar="N", help="raters asked about the same one (1)")
    serve.add_argument("--max-skips", type=int, metavar="N", help="raters who may skip one before it is let go (3)")


def _files(commands: Any) -> None:
    target = "a labelling directory that nobody serves, or with --unlabelled a service's URL"
    export = _command(commands, "export", "export", "write every label as a preference file")
    export.add_argument("directory", type=Path, metavar="DIRECTORY", help="may be being served")
    export.add_argument("file", type=Path, metavar="FILE", help=".jsonl, or .jsonl.gz")
    import_ = _command(commands, "import", "import_", "read a preference file: labels, or only what is to be labelled")
    import_.add_argument("file", type=Path, metavar="FILE", help=".jsonl, or .jsonl.gz")
    import_.add_argument("target", metavar="DIRECTORY_OR_URL", help=target)
    import_.add_argument("--unlabelled", action="store_true", help="only the comparisons, to be labelled anew")
    import_.add_argument("--token-file", type=Path, metavar="FILE", help="of the service")
    agreement = _command(commands, "agreement", "show_agreement", "how far raters agree, and how far beyond chance")
    agreement.add_argument("directory", type=Path, metavar="DIRECTORY", help="may be being served")
    agreement.add_argument("--json", action="store_true", help="print one JSON object")


def _judge(commands: Any) -> None:
    judge = _command(commands, "judge", "judge", "label pairs of texts by a language model behind OpenAI's protocol")
    judge.add_argument("target", metavar="DIRECTORY_OR_URL", help="a directory that nobody serves, or a service's URL")
    judge.add_argument(
        "--judge",
        required=True,
        type=Path,
        metavar="FILE.yaml",
        help="url, model, principles; key: $ROLLCALL_JUDGE_KEY",
    )
    judge.add_argument("--rater", default="judge", metavar="NAME", help="default: judge")
    judge.add_argument("--tie-margin", type=float, default=0.0, metavar="P", help="this near to 0.5 is a tie")
    judge.add_argument("--limit", type=int, metavar="N", help="labels at most; default: until nothing waits")
    judge.add_argument("--wait-s", type=float, default=0.0, metavar="S", help="how long to wait for more comparisons")
    judge.add_argument("--token-file", type=Path, metavar="FILE", help="of the service")


def _synth(commands: Any) -> None:
    synth = _command(commands, "synth", "synth", "label with a known reward, and the noise of people")
    synth.add_argument("target", metavar="DIRECTORY_OR_URL", help="a directory that nobody serves, or a service's URL")
    synth.add_argument(
        "--true-reward",
        "--taste",
        required=True,
        metavar="MODULE:FUNCTION",
        help="true_reward(prompt, response) or true_reward(observations, actions): a number, or one a step "
        f"({COMMAND_LINE} searches the working directory too)",
    )
    synth.add_argument("--rater", default="synthetic", metavar="NAME", help="default: synthetic")
    synth.add_argument("--limit", type=int, metavar="N", help="labels at most; default: until nothing waits")
    synth.add_argument("--wait-s", type=float, default=0.0, metavar="S", help="how long to wait for more comparisons")
    synth.add_argument("--temperature", type=float, metavar="T", help="of Bradley and Terry's rule; 0: no noise")
    synth.add_argument("--error-rate", type=float, metavar="P", help="how often an answer is turned round")
    synth.add_argument("--tie-threshold", type=float, metavar="R", help="rewards that differ by no more are a tie")
    synth.add_argument("--seed", type=int, metavar="S", help="of the noise")
    synth.add_argument("--token-file", type=Path, metavar="FILE", help="of the service")
