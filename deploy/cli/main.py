"""The `rollcall` command: reads the command line, calls what does the work, turns every ending into one exit code.
Imports nothing heavy until a command needs it, so that --help and recipes answer at once."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rollcall.cluster.errors import BadInput, CheckpointDamaged, RollcallError, RunAlive
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.cli.manifests import add_manifests
from rollcall.deploy.cli.monitor import add_monitor
from rollcall.deploy.cli.reward import add_reward
from rollcall.deploy.config.settings import (
    COMMAND_LINE,
    learns_from_data,
    preference_recipes,
    read_recipe,
    recipe_name,
    recipe_title,
    shipped_recipes,
)
from rollcall.deploy.tools.bench.arguments import add_benches

if TYPE_CHECKING:
    from rollcall.deploy.config.load import AnyConfig
    from rollcall.deploy.report.recorders import Recorder

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_EXTRAS = {
    **{"ale_py": "atari", "mujoco": "mujoco"},
    **dict.fromkeys(("transformers", "tokenizers", "vllm"), "lm-cpu"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{' '.join(message.split())} ({COMMAND_LINE}); see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rollcall",
        description="Reinforcement learning in which every rollout is accounted for.",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted with a checkpoint",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    settings = "settings such as actors.num=4 algorithm.clip_range=0.1 env=my_module:make_env"
    train = add("train", _train, "train a policy; prints the run directory first")
    train.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    train.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=settings)
    train.add_argument(
        "--resume", action="store_true", help="go on with the run of that name=... if there is one; in a Ray job always"
    )
    resume = add("resume", _resume, "go on with a run from its last checkpoint, as it was or with other settings")
    resume.add_argument("directory", metavar="RUN", help="a run directory, or its name under runs/")
    change = "what is to change from here on: total_env_steps=..., learner.learning_rate=...; booked in segments.json"
    resume.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=change)
    resume.epilog = (
        "may change: total_env_steps, total_learner_steps, algorithm.* but its name, learner.* but optimizer, eval.*, "
        "checkpoint.*, actors.num, threads, deadlines and sizes of the engine, reward.url, reward.patience_s, "
        "cluster.*, metrics.*, supervision.*; what the books and the models are made with stays (docs/going-on.md)"
    )
    sft = add("sft", _sft, "only imitate: the warm start of a language recipe, as a run that ends with a model")
    sft.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file, with policy.warm_start")
    sft.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=settings)
    evaluate = add("eval", _eval, "evaluate a run's last checkpoint, or a given one, on fixed seeds or held-out rows")
    evaluate.add_argument("target", metavar="RUN_OR_CHECKPOINT")
    evaluate.add_argument(
        "--episodes", type=int, metavar="N", help="episodes, or held-out rows; default: the recipe's eval.episodes"
    )
    evaluate.add_argument("--seed", type=int, metavar="S", help="default: the run's own evaluation seeds")
    evaluate.add_argument("--video", type=Path, metavar="FILE", help="also film one episode, as a .gif (control)")
    evaluate.add_argument("--stochastic", action="store_true", help="sample actions or tokens, not the likeliest")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    export = add(
        "export", _export, "write a language run's policy as a Hugging Face directory, for transformers or vLLM"
    )
    export.add_argument("target", metavar="RUN_OR_CHECKPOINT")
    export.add_argument("directory", nargs="?", type=Path, metavar="DIRECTORY", help="default: RUN/policy")
    report = add("report", _report, "write report.html, a self-contained page of curves")
    report.add_argument("directory", metavar="RUN")
    report.add_argument(
        "--beside",
        metavar="RUN",
        action="append",
        default=[],
        help="another run in the same charts; may be given again",
    )
    audit = add("audit", _audit, "check that the books balance: every rollout exactly once")
    audit.add_argument("directory", metavar="RUN")
    add("recipes", _recipes, "list the shipped recipes")
    config = add("config", _config, "show a recipe's resolved configuration and what follows from it")
    config.add_argument("recipe", nargs="?", metavar="RECIPE")
    config.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=settings)
    config.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe instead")
    bench = add("bench", _bench, "measure against this machine's bound, and against a peer")
    what = bench.add_subparsers(dest="what", metavar="WHAT", parser_class=_Parser, required=True)
    add_benches(what)
    reward = commands.add_parser("reward", help="the reward service", description="the reward service")
    add_reward(reward)
    watch = "start Prometheus over the runs, with the shipped rules; its alerts are lines here"
    add_monitor(commands.add_parser("monitor", help=watch, description=watch))
    checks = "check Kubernetes manifests, your own overlays too, before a cluster has to"
    add_manifests(commands.add_parser("manifests", help=checks, description=checks))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Threads that wait for each other by turning round take whole time slices from each other where cores are shared:
    # a step of a warm start with two threads took 0.04 s instead of 1 to 13 s beside other work.
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_command(arguments)
        parsed = build_parser().parse_args(arguments)
        if parsed.version:
            return _version()
        if parsed.command is None:
            build_parser().print_help()
            return DONE
        return int(parsed.run(parsed))
    except (BadInput, CheckpointDamaged, RunAlive) as error:
        _complain(str(error))
        return BAD_INPUT
    except ModuleNotFoundError as error:
        return _missing_package(error)
    except KeyboardInterrupt:
        _complain("interrupted")
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


def console() -> NoReturn:
    """The entry point of the `rollcall` script."""
    sys.exit(main())


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"rollcall: error: {line}", file=sys.stderr)


def _check_command(arguments: Sequence[str]) -> None:
    """argparse lists the commands but suggests none."""
    runs = ("train", "resume", "sft", "eval", "export", "report", "audit", "monitor", "manifests")
    known = (*runs, "recipes", "config", "bench", "reward")
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
    return FAILED


def _consoles() -> list[Recorder]:
    from rollcall.deploy.report import progress

    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        return [progress.LiveView(Console())]
    return [progress.PlainLines(sys.stdout)]


def _train(args: argparse.Namespace) -> int:
    from rollcall.deploy.config import load as config_file
    from rollcall.deploy.rundir import jobs, resubmission

    args.overrides = jobs.named_overrides(args.overrides)
    if learns_from_data(args.recipe):
        from rollcall.deploy.cli import preferences

        return preferences.train_policy(args)
    config = config_file.load_config(args.recipe, args.overrides)
    before = resubmission.find_to_go_on_with(
        config,
        config.name,
        explicit=_named(args),
        wanted=args.resume,
        read=lambda directory: config_file.load_run(directory)[0],
    )
    if before is not None:
        return _go_on(config, before, args)
    directory = _begin(config, args)
    return _carry_out(config.model_copy(update={"name": directory.name}), directory, resume=False)


def _begin(config: AnyConfig, args: argparse.Namespace) -> Path:
    """A directory for a new run, said before anything else."""
    from rollcall.deploy.drive import runs
    from rollcall.deploy.kinds import init_from

    beginning = init_from.beginning_of(config)
    directory = runs.claim_directory(config.name, explicit=_named(args))
    config = config.model_copy(update={"name": directory.name})
    print(f"run directory: {directory}", flush=True)
    for name, value in config.derived().items() if args.command == "train" else ():
        print(f"{name:<30}{value}")
    _say_job(directory)
    init_from.begin_run(config, directory, beginning, recipe=recipe_name(args.recipe))
    return directory


def _named(args: argparse.Namespace) -> bool:
    return any(override.partition("=")[0].strip() == "name" for override in args.overrides)


def _say_job(directory: Path) -> None:
    from rollcall.deploy.rundir import jobs

    job = jobs.current_job()
    if job is not None:
        print(f"Ray job: {job.submission_id}, run {directory.name}")
    sys.stdout.flush()


def _go_on(config: AnyConfig, directory: Path, args: argparse.Namespace) -> int:
    """With a run that a command like this one began, as far as it came."""
    from rollcall.deploy.kinds import init_from
    from rollcall.deploy.rundir import resubmission

    begun = resubmission.take_up(directory)
    _say_job(directory)
    if begun is None:
        return DONE
    if not begun:
        init_from.begin_run(config, directory, init_from.beginning_of(config), recipe=recipe_name(args.recipe))
    return _carry_out(config, directory, resume=begun)


def _resume(args: argparse.Namespace) -> int:
    from rollcall.deploy.drive import runs
    from rollcall.deploy.rundir import changes as changes_file

    directory = runs.find_run(args.directory)
    runs.refuse_supervised(directory)
    offline = learns_from_data(directory / "config.yaml")
    if offline and args.overrides:
        raise BadInput(
            f"{args.overrides[0]} ({COMMAND_LINE}): {directory} is a run on preferences, which goes on with the "
            "settings it began with"
        )
    print(f"run directory: {directory}", flush=True)
    completed = runs.read_json(directory / "summary.json").get("status") == "completed"
    if completed and not args.overrides:
        more = "" if offline else f" (to make it longer: rollcall resume {args.directory} {_total(directory)}=...)"
        print(f"the run is completed: nothing to go on with{more}")
        return DONE
    if offline:
        from rollcall.deploy.cli import preferences

        return preferences.resume(directory)
    config, changes = changes_file.changed(directory, args.overrides)
    if completed and not changes:
        print("the run is completed, and nothing is changed: nothing to go on with")
        return DONE
    if changes:
        from rollcall.cluster.checkpoint import latest_checkpoint

        changes_file.refuse_no_more(config, latest_checkpoint(directory)[1], changes)
        for name, (before, after) in changes.items():
            print(f"{name}: {before} -> {after}", flush=True)
    return _carry_out(config, directory, resume=True, changes=changes)


def _total(directory: Path) -> str:
    """The setting by which a run ends."""
    tree = read_recipe(directory / "config.yaml").tree
    return "total_learner_steps" if tree.get("total_env_steps") is None else "total_env_steps"


def _carry_out(
    config: AnyConfig, directory: Path, *, resume: bool, changes: Mapping[str, tuple[Any, Any]] | None = None
) -> int:
    from rollcall.deploy.drive import runs
    from rollcall.deploy.report import progress

    with runs.stop_on_signals(directory) as stop:
        summary = runs.carry_out(config, directory, resume=resume, stop=stop, console=_consoles(), changes=changes)
    number = progress.number
    wall = progress.duration(float(summary.get("wall_s") or 0))
    language = "generated_tokens" in summary
    speed = f"{number(summary.get('tokens_per_s' if language else 'steps_per_s'))}/s"
    bound = summary.get("bound_fraction")
    speed += f" ({bound:.0%} of this machine's bound)" if bound else ""
    amount = (
        f"{number(summary.get('generated_tokens'))} tokens"
        if language
        else f"{number(summary.get('env_steps'))} env steps"
    )
    steps = f"{amount}, {number(summary.get('learner_steps'))} learner steps"
    print(f"{summary.get('status')} in {wall}: {steps}, {speed}")
    if summary.get("first_eval"):
        print(
            f"before training: {progress.eval_text(summary['first_eval'])} {progress.eval_noun(summary['first_eval'])}"
        )
    if summary.get("final_eval"):
        print(
            f"final evaluation: {progress.eval_text(summary['final_eval'])} {progress.eval_noun(summary['final_eval'])}"
        )
    print(f"report: {directory / 'report.html'}")
    if summary.get("policy"):
        print(f"policy: {summary['policy']}")
    elif language and summary.get("status") in ("completed", "stopped"):
        print(f"policy: not exported, see {directory / 'logs' / 'driver.log'}; again: rollcall export {directory}")
    if summary.get("status") == "completed":
        return DONE
    if summary.get("status") == "stopped":
        print(f"go on with: rollcall resume {directory}")
        return INTERRUPTED
    return FAILED


def _sft(args: argparse.Namespace) -> int:
    from rollcall.deploy.kinds import sft
    from rollcall.deploy.report import progress

    config = sft.load_supervised(args.recipe, args.overrides)
    directory = _begin(config, args)
    summary = sft.carry_out(config, directory, recipe=recipe_name(args.recipe))
    print(f"{summary['status']} in {progress.duration(summary['wall_s'])}: {summary['learner_steps']} learner steps")
    for name, text in (("first_eval", "before"), ("final_eval", "after")):
        if summary[name]:
            print(f"{text}: {progress.eval_text(summary[name])} {progress.eval_noun(summary[name])}")
    model = summary["model_directory"]
    print(f"model: {model or 'none was written'}")
    if summary["status"] == "completed":
        print(f"learn on from it with: policy.model={model} policy.warm_start=null")
        return DONE
    return INTERRUPTED if model else FAILED


def _eval(args: argparse.Namespace) -> int:
    from rollcall.deploy.drive import runs
    from rollcall.deploy.kinds import policies
    from rollcall.deploy.report import progress

    if args.episodes is not None and args.episodes < 1:
        raise BadInput(f"--episodes = {args.episodes} ({COMMAND_LINE}): must be 1 or more")
    if args.seed is not None and args.seed < 0:
        raise BadInput(f"--seed = {args.seed} ({COMMAND_LINE}): must be 0 or more")
    if learns_from_data(runs.find_checkpoint(args.target)[0] / "config.yaml"):
        from rollcall.deploy.cli import preferences

        return preferences.evaluate(args)
    loaded = policies.load_either(args.target)
    if args.video is not None and not isinstance(loaded, policies.Loaded):
        raise BadInput(f"--video = {str(args.video)!r} ({COMMAND_LINE}): a language run shows nothing to film")
    result = policies.evaluate(loaded, episodes=args.episodes, seed=args.seed, stochastic=args.stochastic)
    if isinstance(loaded, policies.Loaded) and args.video is not None:
        result["video"] = str(policies.record(loaded, args.video, seed=args.seed, stochastic=args.stochastic))
    if args.json:
        print(json.dumps(result))
        return DONE
    unparsed = f", {result['unparsed']} unparsed" if result.get("unparsed") else ""
    score = f"{progress.eval_text(result)} {progress.eval_noun(result)} ({result['mode']}{unparsed})"
    print(f"{result['checkpoint']}: {score}")
    if args.video is not None:
        print(f"video: {result['video']}")
    return DONE


def _export(args: argparse.Namespace) -> int:
    from rollcall.deploy.kinds.export import export_policy

    print(export_policy(args.target, args.directory))
    return DONE


def _report(args: argparse.Namespace) -> int:
    from rollcall.deploy.drive import runs
    from rollcall.deploy.report import page

    beside = [runs.find_run(run) for run in args.beside]
    print(page.write_report(runs.find_run(args.directory), beside=beside))
    return DONE


def _audit(args: argparse.Namespace) -> int:
    from rollcall.cluster.books.audit import audit_run
    from rollcall.cluster.books.settings_history import booked_spans
    from rollcall.deploy.drive import runs

    directory = runs.find_run(args.directory)
    if learns_from_data(directory / "config.yaml"):
        raise BadInput(f"{directory}: a run on preferences: it made no rollouts, so there are no books to audit")
    discrepancies = audit_run(directory)
    for discrepancy in discrepancies:
        print(discrepancy)
    if not discrepancies:
        print(f"{directory}: the books balance")
        for segment in booked_spans(directory)[1:]:
            print(f"segment {segment}")
    return FAILED if discrepancies else DONE


def _recipes(args: argparse.Namespace) -> int:
    for name, path in (shipped_recipes() | preference_recipes()).items():
        print(f"{name:<22}{recipe_title(path)}")
    return DONE


def _config(args: argparse.Namespace) -> int:
    from rollcall.deploy.config import load as config_file

    if args.schema:
        print(json.dumps(config_file.json_schema(), indent=1))
        return DONE
    if args.recipe is None:
        raise BadInput(f"config needs a RECIPE or --schema ({COMMAND_LINE}); see rollcall recipes")
    if learns_from_data(args.recipe):
        from rollcall.deploy.cli import preferences

        return preferences.show_config(args)
    config = config_file.load_config(args.recipe, args.overrides)
    print(config.to_yaml(), end="")
    print(f"\n# config hash {config.config_hash}")
    for name, value in config.derived().items():
        print(f"# {name:<30}{value}")
    return DONE


def _bench(args: argparse.Namespace) -> int:
    if args.repeats < 1:
        raise BadInput(f"--repeats = {args.repeats} ({COMMAND_LINE}): must be 1 or more")
    run: Any = importlib.import_module(f"rollcall.deploy.tools.bench.{args.what}").main
    return int(run(args))
