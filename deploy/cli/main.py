"""The `rollcall` command: reads the command line, calls what does the work, turns every ending into one exit code.
Imports nothing heavy until a command needs it, so that --help and recipes answer at once."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput, BooksDamaged, CheckpointDamaged, RollcallError, RunAlive
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.cli.actor import add_actor
from rollcall.deploy.cli.commands import BAD_INPUT, DONE, FAILED, Parser, at_least
from rollcall.deploy.cli.completion import ASKED, add_completion, answer, commands_of
from rollcall.deploy.cli.doctor import add_doctor
from rollcall.deploy.cli.learnt import add_learnt
from rollcall.deploy.cli.manifests import add_manifests
from rollcall.deploy.cli.monitor import add_monitor
from rollcall.deploy.cli.outlets import printing_may_end
from rollcall.deploy.cli.overview import add_overview
from rollcall.deploy.cli.own import add_own
from rollcall.deploy.cli.plan import add_plan
from rollcall.deploy.cli.recipes import add_recipes
from rollcall.deploy.cli.reward import add_reward
from rollcall.deploy.cli.running import add_running
from rollcall.deploy.cli.select import add_select
from rollcall.deploy.cli.solve import add_solve
from rollcall.deploy.cli.sweep import add_sweep
from rollcall.deploy.config.settings import COMMAND_LINE, shipped_recipes
from rollcall.deploy.runtimes.library_settings import set_for_libraries
from rollcall.deploy.tools.bench.arguments import add_benches

_EXTRAS = {
    **{"ale_py": "atari", "mujoco": "mujoco", "envpool": "envpool"},
    **dict.fromkeys(("transformers", "tokenizers", "vllm"), "lm-cpu"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rollcall",
        description="Reinforcement learning in which every rollout is accounted for.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted with a checkpoint",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add_running(add)
    add_learnt(add)
    add_overview(add)
    add_sweep(add)
    add_select(add)
    add_recipes(add)
    add_plan(add)
    add_own(add)
    add_doctor(add)
    add_solve(add)
    add_actor(add)
    bench = add("bench", _bench, "measure against this machine's bound, and against a peer")
    what = bench.add_subparsers(dest="what", metavar="WHAT", parser_class=Parser, required=True)
    add_benches(what)
    reward = commands.add_parser("reward", help="the reward service", description="the reward service")
    add_reward(reward)
    watch = "start Prometheus over the runs, with the shipped rules; its alerts are lines here"
    add_monitor(commands.add_parser("monitor", help=watch, description=watch))
    checks = "check Kubernetes manifests, your own overlays too, before a cluster has to"
    add_manifests(commands.add_parser("manifests", help=checks, description=checks))
    add_completion(add, lambda: parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    set_for_libraries()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser()
        if arguments[:1] == [ASKED]:
            return answer(parser, arguments[1:])
        _check_command(parser, arguments)
        parsed = parser.parse_args(arguments)
        if parsed.version:
            return _version()
        if parsed.command is None:
            parser.print_help()
            return DONE
        return int(parsed.run(parsed))
    except (BadInput, BooksDamaged, CheckpointDamaged, RunAlive) as error:
        _complain(str(error))
        return BAD_INPUT
    except ModuleNotFoundError as error:
        return _missing_package(error)
    except KeyboardInterrupt as error:
        _complain(str(error) or "interrupted")
        return FAILED
    except BrokenPipeError:  # `rollcall recipes | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except Exception as error:
        return _unexpected(error)


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"rollcall {version('rollcall-rl')}")
    except PackageNotFoundError:  # a source tree that nobody installed
        print("rollcall, not installed")
    return DONE


def _complain(text: str) -> None:
    with printing_may_end():
        for line in text.splitlines():
            print(f"rollcall: error: {line}", file=sys.stderr)


def _check_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """argparse lists the commands but suggests none."""
    known = commands_of(parser)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        hint = did_you_mean(arguments[0], known) or f"; there are {', '.join(known)}"
        if arguments[0] in shipped_recipes():
            hint = f"; did you mean rollcall train {arguments[0]}?"
        raise BadInput(f"unknown command {arguments[0]!r} ({COMMAND_LINE}){hint}")


def _missing_package(error: ModuleNotFoundError) -> int:
    package = (error.name or "").partition(".")[0]
    if package in _EXTRAS:
        _complain(f"this needs the package {package}: pip install 'rollcall-rl[{_EXTRAS[package]}]'")
        return BAD_INPUT
    return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """One line; the traceback is in the run's log, or in a file of its own when there is no run."""
    log = getattr(error, "rollcall_log", None)
    if log is None:
        descriptor, name = tempfile.mkstemp(prefix="rollcall-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        log = Path(name)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    if isinstance(error, RollcallError) and str(error):
        text = error.headline
    _complain(f"{text} (traceback in {log})")
    if isinstance(error, RollcallError) and error.remedy:
        _complain(error.remedy)
    return FAILED


def _bench(args: argparse.Namespace) -> int:
    at_least("--repeats", args.repeats, 1)
    run: Any = importlib.import_module(f"rollcall.deploy.tools.bench.{args.what}").main
    return int(run(args))
