"""`rollcall select`: several completions of each prompt, sampled, scored, and the best kept as data sets. The command
can be given again, and goes on; each prompt is answered once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rollcall.actors.trajectory_scoring import as_asked
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json, write_aside
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.config.kind_settings import settings_of
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.recipe.selection_config import KeepConfig
from rollcall.deploy.config.settings import COMMAND_LINE, preference_recipes, shipped_recipes
from rollcall.deploy.drive.reward_launch import reward_endpoint
from rollcall.deploy.drive.signals import nothing_to_keep, stop_on_signals
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.policy import LoadedLanguage
from rollcall.deploy.kinds.recipes import open_run, recipe_of
from rollcall.deploy.kinds.selection.completions import AnsweredFile
from rollcall.deploy.kinds.selection.data_sets import LABELLED, PAIRS, SFT, Tally, best_of_curve, write_data_sets
from rollcall.deploy.kinds.selection.making import Generation, chosen_rows, digest_of, sampled_by
from rollcall.deploy.kinds.selection.progress import AnswerLines
from rollcall.deploy.report.progress import number

COMPLETIONS, SETTINGS, SUMMARY = "completions.jsonl", "selection.json", "summary.json"
DONE, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Policy:
    """Who is asked."""

    members: LanguageFactory
    weights: Weights | None  # none: those of the model's directory
    digest: str
    said: str  # for people: a checkpoint, or a directory


def main(args: argparse.Namespace) -> int:
    """Answers what is not answered yet, and writes the data sets anew."""
    rule = _rule(args)
    with stop_on_signals(args.directory) as stop:
        with nothing_to_keep():
            policy = _policy(args)
            rows = chosen_rows(policy.members, count=args.prompts, seed=args.seed)
            settings = sampled_by(policy.members, policy.digest, seed=args.seed)
            _claim(args.directory, settings)
        with _only_one(args.directory), closing(AnsweredFile(args.directory / COMPLETIONS)) as file:
            unscored = _answer(policy, rows, file, rule, args, stop.is_set)
            summary = _sum_up(policy, rows, file, rule, args.directory, unscored)
    print("\n".join(_closing_lines(summary, args.directory)), flush=True)
    if summary["missing"] == 0:
        return DONE
    print(f"{number(summary['missing'])} prompts are not answered: give the command again to go on")
    return INTERRUPTED if stop.is_set() else FAILED


def _rule(args: argparse.Namespace) -> KeepConfig:
    best = args.best if args.best is not None or args.at_least is not None else 1
    try:
        return KeepConfig(best=best, at_least=args.at_least)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "--best"
        raise BadInput(f"{name} ({COMMAND_LINE}): {first['msg'].removeprefix('Value error, ')}") from None


def _policy(args: argparse.Namespace) -> Policy:
    """Of a run or checkpoint, whose task and sampling it is asked by; or of the model that a recipe names.

    Raises:
      BadInput: when there is none.
    """
    samples = [] if args.samples is None else [f"actors.samples_per_prompt={args.samples}"]
    target, overrides = str(args.target), [*args.overrides, *samples]
    if target in shipped_recipes() | preference_recipes() or target.endswith((".yaml", ".yml")):
        return _of_recipe(target, overrides)
    if (Path(target) / "config.json").is_file() and not (Path(target) / "config.yaml").is_file():
        raise BadInput(
            f"{target} ({COMMAND_LINE}): a model's directory, which has no task: rollcall select RECIPE DIRECTORY "
            f"policy.model={target}"
        )
    return _of_run(open_run(target), overrides)


def _of_run(run: StoredRun, overrides: list[str]) -> Policy:
    if run.kind.policy != "language model":
        raise BadInput(
            f"{run.directory}: not a run of a language model with a task: {run.kind.elsewhere(run.directory)}"
        )
    loaded = run.kind.load(run)
    assert isinstance(loaded, LoadedLanguage)
    found = _language(recipe_of(settings_of(run.written, overrides)).config)
    config = found.model_copy(update={"policy": loaded.config.policy})
    members = replace(loaded.members, config=config)
    members.check()
    return Policy(members, loaded.weights, loaded.weights.checksum[:16], str(loaded.checkpoint))


def _of_recipe(recipe: str, overrides: list[str]) -> Policy:
    found = recipe_of(settings_of(recipe, overrides))
    if found.kind.policy != "language model":
        raise BadInput(f"{recipe} ({COMMAND_LINE}): no recipe with a task for a language model")
    given = _language(found.config)
    policy = given.policy
    if policy.init_from is not None:
        of_run = _of_run(open_run(policy.init_from), [])
        settings = given.model_copy(update={"policy": of_run.members.config.policy})
        return replace(of_run, members=replace(of_run.members, config=settings))
    if policy.model == "tiny":
        raise BadInput(
            f"{recipe} ({COMMAND_LINE}): its model is made by its runs: name one of them in the recipe's place "
            "(rollcall select RUN DIRECTORY), or policy.init_from=RUN, or policy.model=DIRECTORY"
        )
    config = given.model_copy(update={"policy": policy.model_copy(update={"warm_start": None})})
    members = LanguageFactory(config, Path.cwd())
    members.check()
    return Policy(members, None, digest_of(members.model_directory), policy.model)


def _language(config: RootConfig) -> LanguageConfig:
    assert isinstance(config, LanguageConfig), "of a kind whose policy is a language model"
    return config


def _claim(directory: Path, settings: dict[str, Any]) -> None:
    """Raises BadInput: where something else is in it, or completions of another policy, task or scorer."""
    known = read_json(directory / SETTINGS)
    if not known and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(
            f"{directory} ({COMMAND_LINE}): something else is there, and no selection: name another directory"
        )
    changed = sorted(name for name in settings if known and known.get(name) != settings[name])
    if changed:
        raise BadInput(
            f"{directory} ({COMMAND_LINE}): its completions were made with another {' and '.join(changed)} "
            f"({SETTINGS} there): name another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not known:
            write_aside(directory / SETTINGS, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror or error} ({COMMAND_LINE})") from None


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    lock = DirectoryLock(directory)
    try:
        yield
    finally:
        lock.release()


def _answer(
    policy: Policy,
    rows: list[int],
    file: AnsweredFile,
    rule: KeepConfig,
    args: argparse.Namespace,
    stop_requested: Callable[[], bool],
) -> list[str]:
    """Returns why rows are left out, of those that are."""
    left = [row for row in rows if row not in file.rows]
    if len(left) < len(rows):
        print(f"{number(len(rows) - len(left))} of {number(len(rows))} prompts are answered already", flush=True)
    if not left:
        return []
    with _scored_members(policy.members, args.directory, stop_requested) as members:
        with nothing_to_keep():
            generation = Generation.start(members, policy.weights)
        with closing(generation):
            sampler, progress = generation.sampler(seed=args.seed), AnswerLines(sys.stdout, len(left))
            for item in sampler.answers(left, stop_requested=stop_requested):
                file.add(item)
                progress.tally.add(item, rule)
                progress.tell()
    return sampler.unscored


@contextmanager
def _scored_members(
    members: LanguageFactory, directory: Path, stop_requested: Callable[[], bool]
) -> Iterator[LanguageFactory]:
    config = members.reward_config
    if config is None:
        yield members
        return

    def tell(kind: str, text: str) -> None:
        print(f"{kind}: {text}", flush=True)

    supervision = members.config.supervision
    with reward_endpoint(config, directory, supervision, tell, stop_requested, scored="text") as endpoint:
        yield members.with_reward(endpoint)


def _sum_up(
    policy: Policy, rows: list[int], file: AnsweredFile, rule: KeepConfig, directory: Path, unscored: list[str]
) -> dict[str, Any]:
    task, tally, scores, scorers = policy.members.task, Tally(), [], set()
    for item in file.read(rows):
        tally.add(item, rule)
        scorers.add(item.scorer)
        scores.append([completion.score for completion in item.completions])
    written = write_data_sets(
        directory,
        lambda: file.read(rows),
        rule,
        asked=lambda prompt: as_asked(task, prompt),
        origin={"policy": policy.digest},
    )
    summary = {
        **tally.as_dict(),
        "missing": len(rows) - tally.prompts,
        "unscored": {"prompts": len(unscored), "first": unscored[0]} if unscored else None,
        "scorers": sorted(scorers),
        "best_of": best_of_curve(scores),
        **{"policy": policy.said, "keep": rule.model_dump(), "files": written},
    }
    write_aside(directory / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _closing_lines(summary: dict[str, Any], directory: Path) -> Iterator[str]:
    yield (
        f"{number(summary['prompts'])} prompts, {number(summary['completions'])} completions, "
        f"{number(summary['generated_tokens'])} tokens, mean score {number(summary['mean_score'], 3)}"
    )
    if summary["kept"] == 0:
        yield "nothing is kept: no completion came to its own end and passed (--at-least, actors.sampling.max_tokens)"
    else:
        without = summary["prompts_without"]
        yield f"kept: {number(summary['kept'])}, mean score {number(summary['kept_mean_score'], 3)}" + (
            f"; {number(without)} prompts have none" if without else ""
        )
    if summary["best_of"]:
        told = [f"{point['n']}: {number(point['expected_best'], 3)}" for point in summary["best_of"]]
        bound = summary["best_of"][-1]["kl_at_most"]
        yield f"expected best of {', of '.join(told)} (KL at most {number(bound, 2)} nats)"
    if len(summary["scorers"]) > 1:
        yield f"not all scored alike: by {' and '.join(summary['scorers'])}: the scorer was changed in between"
    if summary["unscored"]:
        yield f"not scored: {number(summary['unscored']['prompts'])} prompts; the first: {summary['unscored']['first']}"
    uses = {
        SFT: "rollcall sft RECIPE task='{name: jsonl, path: %s}'",
        PAIRS: "rollcall train synthetic-dpo data='{train: %s}'",
        LABELLED: "rollcall train synthetic-kto data='{train: %s}'",
    }
    for name, count in summary["files"].items():
        if count:
            yield f"{directory / name}: {number(count)} lines: {uses[name] % (directory / name)}"
