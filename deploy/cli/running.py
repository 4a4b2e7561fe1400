"""`rollcall train`, `resume`, `sft` and `reward train`: what each takes, and the run that it carries out. Runs of
whatever kind are begun, gone on with and told of alike."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, FAILED, INTERRUPTED, SETTINGS, Add, answer_slips
from rollcall.deploy.cli.outlets import printing_may_end
from rollcall.deploy.config.settings import COMMAND_LINE, Settings, recipe_name
from rollcall.deploy.runtimes.uncollected import uncollected

if TYPE_CHECKING:
    from rollcall.deploy.drive.records import Changes
    from rollcall.deploy.kinds.kind import StoredRun
    from rollcall.deploy.kinds.recipes import Recipe
    from rollcall.deploy.report.recorders import Recorder

_BY_PEOPLE = ("preferences.rater=people", "preferences.true_reward=null")
_FILES = (".jsonl", ".jsonl.gz")


def add_running(add: Add) -> None:
    """Adds the commands that begin runs, or go on with them."""
    train = add("train", _train, "train a policy; prints the run directory first")
    train.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    train.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    train.add_argument(
        "--resume", action="store_true", help="go on with the run of that name=... if there is one; in a Ray job always"
    )
    train.add_argument(
        "--people", action="store_true", help="people label what raters are asked about, at a page that the run names"
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check settings, data, models and room, and begin nothing",
    )
    add_output(train)
    resume = add("resume", _resume, "go on with a run from its last checkpoint, as it was or with other settings")
    resume.add_argument("directory", metavar="RUN", help="a run directory, or its name under runs/")
    change = "what is to change from here on: total_env_steps=..., learner.learning_rate=...; booked in segments.json"
    resume.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=change)
    resume.epilog = (
        "may change: total_env_steps, total_learner_steps, algorithm.* but its name, learner.* but optimizer, eval.*, "
        "checkpoint.*, actors.num, actors.outside.* but num_shards, threads, deadlines and sizes of the engine, "
        "reward.url, reward.patience_s, cluster.*, metrics.*, recorders.*, supervision.*; what the books and the "
        "models are made with stays (docs/going-on.md)"
    )
    add_output(resume)
    sft = add("sft", _sft, "only imitate: the warm start of a language recipe, as a run that ends with a model")
    sft.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file, with policy.warm_start")
    sft.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    add_output(sft)


def add_output(command: argparse.ArgumentParser) -> None:
    """How much a command that trains says."""
    command.add_argument("-q", "--quiet", action="store_true", help="print the run directory, and what went wrong")
    command.add_argument(
        "--json", action="store_true", help="print the summary as one JSON object; the rest goes to stderr"
    )


def _answering(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """With --json standard output is for the answer alone, args.answer: all else that is printed goes to stderr."""

    @printing_may_end()
    def run(args: argparse.Namespace) -> int:
        args.answer, args.began = sys.stdout, time.monotonic()
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
            return command(args)

    return run


@_answering
def _train(args: argparse.Namespace) -> int:
    args.overrides = [*args.overrides, *_by_people(args)]
    answer_slips(args.recipe, args.overrides)
    with _starting("importing torch", args), uncollected():
        from rollcall.deploy.kinds.recipes import load_recipe
    from rollcall.deploy.rundir.jobs import named_overrides

    args.overrides = named_overrides(args.overrides)
    if args.dry_run:
        return _dry_run(load_recipe(args.recipe, args.overrides), args)
    return _train_or_go_on(load_recipe(args.recipe, args.overrides), args, named=recipe_name(args.recipe))


def _by_people(args: argparse.Namespace) -> tuple[str, ...]:
    """Raises BadInput: of a recipe that asks no raters."""
    from rollcall.deploy.config.kind_settings import settings_of

    if not args.people:
        return ()
    if not isinstance(settings_of(args.recipe, args.overrides).get(("preferences",)), dict):
        raise BadInput(f"--people ({COMMAND_LINE}): {args.recipe} asks no raters: it has no preferences section")
    return _BY_PEOPLE


@_answering
def _sft(args: argparse.Namespace) -> int:
    answer_slips(args.recipe, args.overrides)
    from rollcall.deploy.kinds.recipes import load_supervised

    recipe = load_supervised(args.recipe, args.overrides)
    return _carry_out(_begin(recipe, args, named=recipe_name(args.recipe)), args, resume=False)


@_answering
def train_reward(args: argparse.Namespace) -> int:
    """`rollcall reward train FILE_OR_RECIPE key=value ...`"""
    from rollcall.deploy.config.kind_settings import settings_of
    from rollcall.deploy.kinds.recipes import load_reward_model

    of_file = args.source.endswith(_FILES)
    settings = settings_of(_for_file(Path(args.source)) if of_file else args.source, args.overrides)
    recipe = load_reward_model(settings, args.source)
    named = "reward" if of_file else recipe_name(args.source)
    return _carry_out(_begin(recipe, args, named=named), args, resume=False)


@_answering
def _resume(args: argparse.Namespace) -> int:
    from rollcall.cluster.checkpoint import latest_checkpoint
    from rollcall.cluster.files import read_json

    with uncollected():
        from rollcall.deploy.drive.changes import changed, refuse_no_more
        from rollcall.deploy.kinds.recipes import stored_run
    from rollcall.deploy.kinds.registry import kind_of
    from rollcall.deploy.rundir.directories import find_run
    from rollcall.deploy.rundir.earlier_runs import read_run

    directory = find_run(args.directory)
    settings, config_hash = read_run(directory)
    data = kind_of(settings.tree).data
    run = None if not data else stored_run(directory, settings, config_hash)
    if run is not None:
        changed(run, args.overrides)  # which a run on data refuses
    print(f"run directory: {directory}", flush=True)
    completed = read_json(directory / "summary.json").get("status") == "completed"
    if completed and not args.overrides:
        total = "total_learner_steps" if settings.get(("total_env_steps",)) is None else "total_env_steps"
        more = "" if data else f" (to make it longer: rollcall resume {args.directory} {total}=...)"
        print(f"the run is completed: nothing to go on with{more}")
        return DONE
    run, changes = changed(run or stored_run(directory, settings, config_hash), args.overrides)
    if completed and not changes:
        print("the run is completed, and nothing is changed: nothing to go on with")
        return DONE
    if changes:
        refuse_no_more(run.config, latest_checkpoint(directory)[1], changes)
        for name, (before, after) in changes.items():
            print(f"{name}: {before} -> {after}", flush=True)
    return _carry_out(run, args, resume=True, changes=changes)


def _dry_run(recipe: Recipe, args: argparse.Namespace) -> int:
    from rollcall.deploy.drive.dry_run import dry_run

    found = dry_run(recipe)
    if args.json:
        print(json.dumps(found.as_json(), indent=1), file=args.answer)
    elif not args.quiet:
        print("\n".join(found.lines(explicit=_named(args))))
    if found.problems:
        raise BadInput("\n".join(found.problems))
    return DONE


def _train_or_go_on(recipe: Recipe, args: argparse.Namespace, *, named: str) -> int:
    """A new run, or the one that a command like this one began, as far as it came."""
    from dataclasses import replace

    from rollcall.deploy.kinds.beginning import begin_again
    from rollcall.deploy.kinds.recipes import load_run
    from rollcall.deploy.rundir import resubmission

    before = resubmission.find_to_go_on_with(
        recipe.config,
        explicit=_named(args),
        wanted=args.resume,
        read=lambda directory: load_run(directory).config,
        chosen=recipe.chosen,
    )
    if before is None:
        return _carry_out(_begin(recipe, args, named=named), args, resume=False)
    begun = resubmission.take_up(before)
    _say_job(before)
    if begun is None:
        return DONE
    earlier = load_run(before)
    config = resubmission.as_begun(recipe.config, earlier.config, chosen=recipe.chosen)
    recipe = replace(recipe, config=config)
    run = replace(earlier, config=config) if begun else begin_again(recipe, before, named=named)
    return _carry_out(run, args, resume=begun)


def _begin(recipe: Recipe, args: argparse.Namespace, *, named: str) -> StoredRun:
    """A directory for a new run, said before anything else."""
    from rollcall.deploy.kinds.beginning import new_run
    from rollcall.deploy.report.progress import beside

    def tell(directory: Path) -> None:
        print(f"run directory: {directory}", flush=True)
        if not args.quiet:
            columns = get_terminal_size().columns if sys.stdout.isatty() else None
            print("".join(f"{line}\n" for line in beside(recipe.config.derived(), columns)), end="")
        _say_job(directory)

    return new_run(recipe, named=named, explicit=_named(args), tell=tell)


def _named(args: argparse.Namespace) -> bool:
    return any(override.partition("=")[0].strip() == "name" for override in args.overrides)


def _say_job(directory: Path) -> None:
    from rollcall.deploy.rundir.jobs import current_job

    job = current_job()
    if job is not None:
        print(f"Ray job: {job.submission_id}, run {directory.name}")
    sys.stdout.flush()


def _carry_out(run: StoredRun, args: argparse.Namespace, *, resume: bool, changes: Changes | None = None) -> int:
    from rollcall.deploy.report.phase_line import redraws

    with _starting("importing the program", args), uncollected():
        from rollcall.deploy.drive.lifecycle import carry_out
    from rollcall.deploy.drive.signals import StoppedAtOnce, stop_on_signals
    from rollcall.deploy.report.closing import next_line
    from rollcall.deploy.report.live_view import LiveView
    from rollcall.deploy.report.recorders import plain

    console: list[Recorder] = []

    def shown(text: str) -> bool:
        return any(isinstance(view, LiveView) and view.show(text) for view in console)

    with stop_on_signals(run.directory, shown=shown) as stop:
        if not (args.quiet or args.json):
            console.append(run.kind.console(sys.stdout, live=redraws(sys.stdout), began=args.began))
        try:
            summary = carry_out(run, resume=resume, stop_requested=stop.is_set, console=console, changes=changes)
        except StoppedAtOnce as stopped:
            if not run.kind.resumable(run.directory):
                raise
            print(f"{stopped}; go on with: rollcall resume {run.directory}")
            return INTERRUPTED
    if args.json:
        print(json.dumps(plain({**summary, "run_directory": str(run.directory)})), file=args.answer)
    for line in run.kind.closing_lines(summary, run.directory) if console else ():
        print(line)
    if summary["status"] == "completed":
        if console:
            print(next_line(run.directory, evaluates=run.kind.evaluates, exports=run.kind.exportable))
        return DONE
    if summary["status"] == "stopped" and run.kind.resumable(run.directory):
        print(f"go on with: rollcall resume {run.directory}")
        return INTERRUPTED
    return FAILED


def _starting(what: str, args: argparse.Namespace) -> AbstractContextManager[None]:
    from rollcall.deploy.report.phase_line import before_the_run

    return contextlib.nullcontext() if args.quiet or args.json else before_the_run(what)


def _for_file(path: Path) -> Settings:
    """A recipe that says nothing but where the comparisons are, and of which kind the first is; of texts with labels
    also what learns well from some thousands of these."""
    from rollcall.deploy.preferences.text_labels import is_labelled
    from rollcall.reward_service.preferences.files import SegmentPair, read_preferences

    if is_labelled(path):
        return Settings(tree=_of_labels(path), origins={("data",): COMMAND_LINE}, source=COMMAND_LINE)
    kind = "segment" if isinstance(read_preferences(path)[0], SegmentPair) else "text"
    tree = {"name": "reward", "data": {"train": str(path)}, "model": {"kind": kind}}
    return Settings(tree=tree, origins={("data",): COMMAND_LINE}, source=COMMAND_LINE)


def _of_labels(path: Path) -> dict[str, Any]:
    learner = {"learning_rate": 0.002, "schedule": {"kind": "linear"}}
    return {
        "name": "reward",
        "data": {"train": str(path)},
        "model": {"kind": "text", "start": "words", "max_tokens": 8192},
        "epochs": 2,
        "learner": learner,
    }
