"""What the command line does with runs on preferences: `rollcall reward train`, and train, resume, eval, export and
config where they meet a recipe or a run with data. Prints; must never know how training works."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.preference_config import (
    DirectRunConfig,
    PreferenceRunConfig,
    RewardTrainConfig,
    load_preference_config,
)
from rollcall.deploy.config.settings import COMMAND_LINE, Settings, learns_from_data, recipe_name
from rollcall.deploy.drive import runs
from rollcall.deploy.drive.offline import ProgressLines
from rollcall.deploy.kinds import preference_run, reward_train
from rollcall.deploy.report.progress import duration, number, percent
from rollcall.deploy.rundir import resubmission
from rollcall.deploy.rundir.earlier_runs import read_run

DONE, FAILED, INTERRUPTED = 0, 1, 130
_FILES = (".jsonl", ".jsonl.gz")


def train_reward(args: argparse.Namespace) -> int:
    """`rollcall reward train FILE_OR_RECIPE key=value ...`"""
    config: PreferenceRunConfig
    if args.source.endswith(_FILES):
        config, recipe = load_preference_config(_for_file(Path(args.source)), args.overrides), "reward"
    else:
        if not learns_from_data(args.source):
            raise BadInput(
                f"{args.source}: no recipe of a reward model: it has no section data: rollcall train runs it"
            )
        config, recipe = load_preference_config(args.source, args.overrides), recipe_name(args.source)
    if not isinstance(config, RewardTrainConfig):
        raise BadInput(f"{args.source}: a recipe with an algorithm trains a policy: rollcall train {args.source}")
    return _carry_out(config, _begin(config, recipe, args.overrides), resume=False)


def train_policy(args: argparse.Namespace) -> int:
    """`rollcall train RECIPE` of a recipe with data."""
    config = load_preference_config(args.recipe, args.overrides)
    if not isinstance(config, DirectRunConfig):
        raise BadInput(f"{args.recipe}: a recipe of a reward model: rollcall reward train {args.recipe}")
    explicit = any(override.partition("=")[0].strip() == "name" for override in args.overrides)
    before = resubmission.find_to_go_on_with(
        config, config.name, explicit=explicit, wanted=args.resume, read=_begun_with
    )
    if before is None:
        return _carry_out(config, _begin(config, recipe_name(args.recipe), args.overrides), resume=False)
    begun = resubmission.take_up(before)
    return DONE if begun is None else _carry_out(config, before, resume=begun)


def resume(directory: Path) -> int:
    return _carry_out(_begun_with(directory), directory, resume=True)


def _begun_with(directory: Path) -> PreferenceRunConfig:
    return load_preference_config(read_run(directory)[0])


def show_config(args: argparse.Namespace) -> int:
    config = load_preference_config(args.recipe, args.overrides)
    print(config.to_yaml(), end="")
    print(f"\n# config hash {config.config_hash}")
    for name, value in config.derived().items():
        print(f"# {name:<30}{value}")
    return DONE


def evaluate(args: argparse.Namespace) -> int:
    """`rollcall eval`: the held-out comparisons, by the policy or the reward model of a checkpoint."""
    from rollcall.deploy.kinds import preference_runs

    for name in ("episodes", "video"):
        if getattr(args, name) is not None:
            raise BadInput(
                f"--{name} ({COMMAND_LINE}): a run on preferences has no episodes: it is judged on all pairs"
            )
    result = preference_runs.evaluate(args.target)
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['checkpoint']}: {_right(result)}")
    return DONE


def _for_file(path: Path) -> Settings:
    """A recipe that says nothing but where the comparisons are, and of which kind the first is."""
    from rollcall.reward_service.preferences.files import SegmentPair, read_preferences

    kind = "segment" if isinstance(read_preferences(path)[0], SegmentPair) else "text"
    tree = {"name": "reward", "data": {"train": str(path)}, "model": {"kind": kind}}
    return Settings(tree=tree, origins={("data",): COMMAND_LINE}, source=COMMAND_LINE)


def _begin(config: PreferenceRunConfig, recipe: str, overrides: list[str]) -> Path:
    """A directory for a new run, said before anything else."""
    explicit = any(override.partition("=")[0].strip() == "name" for override in overrides)
    directory = runs.claim_directory(config.name, explicit=explicit)
    config = config.model_copy(update={"name": directory.name})
    print(f"run directory: {directory}", flush=True)
    for name, value in config.derived().items():
        print(f"{name:<30}{value}", flush=True)
    runs.begin_run(config, directory, recipe=recipe)
    return directory


def _carry_out(config: PreferenceRunConfig, directory: Path, *, resume: bool) -> int:
    config = config.model_copy(update={"name": directory.name})
    console = [ProgressLines(sys.stdout)]
    with runs.stop_on_signals(directory) as stop:
        if isinstance(config, DirectRunConfig):
            summary = preference_run.carry_out(config, directory, resume=resume, stop=stop, console=console)
        else:
            summary = reward_train.carry_out(config, directory, resume=resume, stop=stop, console=console)
    print(f"{summary['status']} in {duration(summary['wall_s'])}: {number(summary['learner_steps'])} learner steps")
    counts = summary["comparisons"]
    left_out = f", {number(counts['left_out'])} left out" if counts["left_out"] else ""
    print(f"comparisons: {number(counts['train'])} learnt from, {number(counts['held_out'])} held out{left_out}")
    for name, text in (("train", "those learnt from"), ("held_out", "held out")):
        if summary[name]:
            print(f"{text}: {_right(summary[name])}")
    if last := summary.get("held_out_last"):
        done = number(summary["learner_steps"])
        print(
            f"kept: the model of step {number(summary['kept']['step'])}; that of step {done}, the last: {_right(last)}"
        )
    print(f"report: {directory / 'report.html'}")
    if isinstance(config, DirectRunConfig):
        print(f"policy: {summary['policy']}")
    else:
        print(f"serve it with: rollcall reward serve --model {config.name}={summary['model']}")
    if summary["status"] == "completed":
        return DONE
    print(f"go on with: rollcall resume {directory}")
    return INTERRUPTED


def _right(found: Mapping[str, Any]) -> str:
    accuracy = found.get("accuracy", found.get("mean"))
    loss = found.get("loss", found.get("eval_loss"))
    text = f"{percent(accuracy)} [{percent(found.get('low'))}, {percent(found.get('high'))}] of {number(found['n'])} "
    text += f"pairs right, loss {number(loss, 3)}"
    for name, own in (found.get("groups") or {}).items():
        text += f"; {name} {percent(own['accuracy'])} of {number(own['n'])}"
    if found.get("kl_reference") is not None:
        text += f"; KL to the reference {number(found['kl_reference'], 2)}"
    return text
