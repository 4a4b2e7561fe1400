"""A run that begins with another run's weights: found, held against the settings of the new run, and copied into its
directory, so that nothing depends on the other run afterwards. Books, optimiser and schedules begin anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rollcall.cluster.checkpoint import read_manifest
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.deploy.kinds.control.experts import write_expert
from rollcall.deploy.kinds.control.policy import LoadedControl
from rollcall.deploy.kinds.kind import LoadedRun, StoredRun
from rollcall.deploy.kinds.recipes import Recipe, open_run
from rollcall.deploy.rundir.directories import claim_directory
from rollcall.deploy.rundir.files import begin_run


@dataclass(frozen=True)
class Beginning:
    """The weights that a new run begins with, and where they come from."""

    loaded: LoadedRun
    origin: Mapping[str, Any]


def beginning_of(recipe: Recipe) -> Beginning | None:
    """What `policy.init_from` names, if it names anything.

    Raises:
      BadInput: when there is no such run or checkpoint, or the new run's policy is another one.
    """
    target = recipe.config.begins_from
    if target is None:
        return None
    return _found("policy.init_from", target, recipe, recipe.kind.misfit)


def expert_of(recipe: Recipe) -> Beginning | None:
    """The policy of the run that teaches this one, if one does.

    Raises:
      BadInput: when there is no such run or checkpoint, or its policy is of another env.
    """
    target = recipe.config.taught_by
    if target is None:
        return None
    return _found("algorithm.expert", target, recipe, recipe.kind.unfit_expert)


def _found(setting: str, target: str, recipe: Recipe, misfit: Callable[[Any, Any], str]) -> Beginning:
    try:
        run = open_run(target)
        if run.kind.policy != recipe.kind.policy:
            raise BadInput(run.kind.elsewhere(run.directory))
        loaded = run.kind.load(run)
        problem = misfit(recipe.config, loaded)
    except (BadInput, CheckpointDamaged) as error:
        raise BadInput(f"{setting} = {target!r}: {error}") from None
    if problem:
        raise BadInput(f"{setting} = {target!r}: {problem}")
    manifest, weights = read_manifest(loaded.checkpoint), loaded.weights
    origin = {
        "run": manifest.run_id,
        "checkpoint": str(loaded.checkpoint.resolve()),
        "policy_id": weights.policy_id,
        "policy_version": weights.version,
        "config_hash": manifest.config_hash,
        "weights": weights.checksum,
    }
    return Beginning(loaded, origin)


def new_run(recipe: Recipe, *, named: str, explicit: bool, tell: Callable[[Path], None] = lambda _: None) -> StoredRun:
    """A run in a directory of its own, begun. `named`: what its recipe is called; `explicit`: the run's name was asked
    for; `tell`: told of the directory before anything is in it.

    Raises:
      BadInput: as beginning_of, when an explicit name is taken, or the directory cannot be written to.
    """
    beginning, expert = beginning_of(recipe), expert_of(recipe)
    directory = claim_directory(recipe.config.name, explicit=explicit)
    recipe = replace(recipe, config=recipe.config.model_copy(update={"name": directory.name}))
    tell(directory)
    return _begun(recipe, directory, beginning, expert, named)


def begin_again(recipe: Recipe, directory: Path, *, named: str) -> StoredRun:
    """As new_run, in a directory that is there."""
    return _begun(recipe, directory, beginning_of(recipe), expert_of(recipe), named)


def _begun(
    recipe: Recipe, directory: Path, beginning: Beginning | None, expert: Beginning | None, named: str
) -> StoredRun:
    origin = None if beginning is None else beginning.origin
    try:
        if beginning is not None:
            beginning.loaded.write_beginning(directory, beginning.origin)
        if expert is not None:
            assert isinstance(expert.loaded, LoadedControl), "of a run whose policy is a network"
            write_expert(expert.loaded, directory, expert.origin)
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror or error}") from None
    written = {"over": recipe.over, "chosen": recipe.chosen}
    config_hash = begin_run(recipe.config, directory, recipe=named, init_from=origin, written=written)
    return StoredRun(recipe.kind, recipe.config, directory, config_hash)
