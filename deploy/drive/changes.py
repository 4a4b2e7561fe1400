"""A run that goes on with other settings: which may change, and from where on. A changed run goes on with the same
books and the same models, so whatever they are made of stays. Knows settings; must never know how training works."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rollcall.cluster.books.settings_history import changes_between
from rollcall.cluster.checkpoint import Manifest
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.kind_settings import settings_of
from rollcall.deploy.config.recipe.run_config import OnlineConfig
from rollcall.deploy.config.settings import COMMAND_LINE, Settings
from rollcall.deploy.drive.records import Changes
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.kinds.recipes import recipe_of
from rollcall.learners.algorithm import HasModels

# How long the run is, what the loss weighs, how the optimiser steps, who watches and where it runs; in words: rollcall
# resume --help and docs/going-on.md. Neither the books (seed, env or task, reward, shards, prompts, lag bound) nor the
# models and the optimiser's state are made of these.
MAY_CHANGE = (
    *("total_env_steps", "total_learner_steps"),
    *(r"algorithm\.(?!(name|expert)$).*", r"learner\.(?!optimizer(\.(kind|form|momentum))?$).*"),
    *(r"eval\..*", r"checkpoint\..*", r"cluster\..*", r"metrics\..*", r"supervision\..*", r"recorders\..*"),
    r"redis\.\w+_timeout_s",
    *(r"actors\.(num|threads|torch_threads|ticket_deadline_s|max_env_restarts)",),
    r"actors\.outside\.(listen|token_file|max_actors|max_body_mib|lease_s)",
    r"actors\.engine\.(max_num_seqs|admit_below|kv_cache_gib|gpu_memory_utilization|enforce_eager|weight_transfer"
    r"|async_scheduling|tensor_parallel_size|sleep)",
    *(r"reward\.(url|patience_s)", r"preferences\.patience_s"),
)


def changed(run: StoredRun, overrides: Iterable[str]) -> tuple[StoredRun, Changes]:
    """(the run with the settings that it is to go on with, what of them is not as before).

    Raises:
      BadInput: one line for each setting that is wrong, or that a run keeps.
    """
    overrides = list(overrides)
    if not overrides:
        return run, {}
    if run.kind.data:
        raise BadInput(
            f"{overrides[0]} ({COMMAND_LINE}): {run.directory} is a run on {run.kind.data}, which goes on with the "
            "settings it began with"
        )
    settings = settings_of(copy.deepcopy(run.written), overrides)
    _refuse_kept(_written(run.written, settings), run.directory)  # before anything says that they do not go together
    after = recipe_of(settings).config
    assert isinstance(after, OnlineConfig), "runs on data are refused"
    changes = changes_between(*(config.model_dump(mode="json") for config in (run.config, after)))
    _refuse_kept(changes, run.directory)
    models = [_models(config) for config in (run.config, after)]
    if models[0] != models[1]:
        named = ", ".join(f"{name} = {value}" for name, (_, value) in changes.items() if name.startswith("algorithm."))
        raise BadInput(
            f"{named} ({COMMAND_LINE}): the algorithm would need other models ({models[1]}) than the run has "
            f"({models[0]}): {_begin_anew(run.directory)}"
        )
    return replace(run, config=after), changes


def refuse_no_more(config: OnlineConfig, manifest: Manifest, changes: Changes) -> None:
    """Raises BadInput: for a run that would be at its end with these settings, or is."""
    totals = ("total_env_steps", "total_learner_steps")
    given = next((name for name in totals if changes.get(name, (None, None))[1] is not None), None)
    done = {"total_env_steps": int(manifest.driver["counters"]["env_steps"]), "total_learner_steps": manifest.step}
    steps, env_steps = config.learner_steps, config.env_steps
    over = manifest.step >= steps if steps is not None else done["total_env_steps"] >= (env_steps or 0)
    if over and given is not None:
        raise BadInput(
            f"{given} = {changes[given][1]} ({COMMAND_LINE}): the run has done {done[given]} already: give more; it "
            "is the whole run's"
        )
    if over:
        total = "total_env_steps" if env_steps is not None else "total_learner_steps"
        raise BadInput(
            f"{', '.join(changes)} ({COMMAND_LINE}): the run is completed; to go on with it give a larger {total} too "
            f"(it has done {done[total]})"
        )


def _written(before: Settings, after: Settings) -> Changes:
    """What the overrides change of the settings that the run has written."""
    changes = changes_between(before.tree, after.tree)
    return {n: pair for n, pair in changes.items() if all(s.has(tuple(n.split("."))) for s in (before, after))}


def _refuse_kept(changes: Changes, run_directory: Path) -> None:
    kept = [name for name in changes if not any(re.fullmatch(pattern, name) for pattern in MAY_CHANGE)]
    if kept:
        raise BadInput("\n".join(_refusal(name, changes[name], run_directory) for name in kept))


def _refusal(name: str, change: tuple[Any, Any], run_directory: Path) -> str:
    before, after = change
    if name == "name":
        return f"name = {after!r} ({COMMAND_LINE}): the run's directory has that name: move the directory instead"
    if name.startswith("redis."):
        return f"{name} = {after!r} ({COMMAND_LINE}): the run's books are there, so it stays {before!r}"
    return (
        f"{name} = {after!r} ({COMMAND_LINE}): the run's books or models are made with {before!r}, so it stays "
        f"(rollcall resume --help says what may change); {_begin_anew(run_directory)}"
    )


def _begin_anew(run_directory: Path) -> str:
    return f"a new run can begin with this one's weights: policy.init_from={run_directory}"


def _models(config: OnlineConfig) -> str:
    """Which ones the algorithm trains or holds."""
    algorithm = config.build_algorithm()
    wanted = {"critic": algorithm.needs.critic, "reference": algorithm.needs.reference}
    own = algorithm.extra_models() if isinstance(algorithm, HasModels) else {}
    names = ["policy", *(name for name, wants in wanted.items() if wants), *sorted([*own, *algorithm.needs.networks])]
    return ", ".join(names)
