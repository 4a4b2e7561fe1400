"""Runs that were made before, perhaps by another release: how their config.yaml is read in this one. A setting that was
renamed, removed, or added with another default than what runs did without it stands here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json
from rollcall.deploy.config.settings import KeyPath, Settings, read_recipe, settings_hash
from rollcall.learners.loop.config import in_sections

# Old path -> new path: read as the new one. What is renamed in runs of one kind alone stands in its file (`renamed`).
RENAMED: Mapping[KeyPath, KeyPath] = {
    ("preferences", "taste"): ("preferences", "true_reward"),
    ("preferences", "pairs"): ("preferences", "total_labels"),
}
REMOVED: Mapping[KeyPath, str] = {}  # path -> what to do about a run that has it
# What runs did before a setting was there, where its default does something else: such runs go on doing it.
BEFORE: Mapping[KeyPath, Any] = {
    ("actors", "engine", "dtype"): "float32",
    ("actors", "engine", "weight_transfer"): "object_store",
}
# The same, of the runs alone that have a setting of this name. (Those of reward models have a loss.)
BEFORE_WITH: Mapping[str, Mapping[KeyPath, Any]] = {
    "loss": {("keep",): "last", ("patience",): None, ("learner", "optimizer", "weight_decay"): 0.0},
    "actors": {("runtime",): "ray"},
    "task": {
        ("policy", "weights_dtype"): "float32",
        ("policy", "attention"): "sdpa",
        ("eval", "every_steps"): None,
    },
    "imitate": {("policy", "weights_dtype"): "float32", ("policy", "attention"): "sdpa"},
}


SUPERVISED = "sft"  # the algorithm of supervised fine-tuning, in summaries of every release


def read_run(run_directory: Path) -> tuple[Settings, str]:
    """(a run's settings as this release knows them, the hash of its config.yaml as it was written). A setting that the
    run's release did not have is not among them, and has its default.

    Raises:
      BadInput: when there is no config.yaml to read, or it has a setting that was removed.
    """
    settings = read_recipe(run_directory / "config.yaml")
    config_hash = settings_hash(settings.tree)
    settings.made_by = _made_by(run_directory)
    _refuse_supervised(run_directory, settings)
    for path, remedy in REMOVED.items():
        if settings.has(path):
            raise BadInput(f"{'.'.join(path)} ({settings.origin(path)}): this version has no such setting: {remedy}")
    settings.rename(RENAMED)
    if _is_section(settings, ("learner",)):  # its optimiser and schedule had no sections
        settings.tree["learner"] = in_sections(settings.tree["learner"])
    before = dict(BEFORE)
    for name, more in BEFORE_WITH.items():
        before |= more if settings.has((name,)) else {}
    if settings.get(("task", "name")) == "jsonl":  # of a chat too, a system prompt was put before the user's text
        before["task", "system_prompt_as"] = "text"
    for path, value in before.items():
        section = path[:-1]
        if not settings.has(path) and (not section or _is_section(settings, section)):
            settings.set(path, value, "as runs without this setting are")
    return settings, config_hash


def _is_section(settings: Settings, path: KeyPath) -> bool:
    return settings.has(path) and isinstance(settings.value(path), Mapping)


def run_hash(run_directory: Path) -> str:
    """The hash of a run's config.yaml as it was written. Raises BadInput: as `read_run`."""
    return settings_hash(read_recipe(run_directory / "config.yaml").tree)


def _refuse_supervised(run_directory: Path, settings: Settings) -> None:
    """Raises BadInput: for a run of `rollcall sft` of a release in which those had a model and no checkpoints."""
    if read_json(run_directory / "summary.json").get("algorithm") != SUPERVISED:
        return
    if settings.get(("algorithm", "name")) != SUPERVISED:
        model = run_directory / "warm_start"
        what = f"its model is {model}" if model.is_dir() else "it ended without a model: begin it again"
        raise BadInput(f"{run_directory}: a run of rollcall sft, which has no checkpoints: {what}")


def _made_by(run_directory: Path) -> str:
    version = (read_json(run_directory / "run.json").get("versions") or {}).get("rollcall-rl")
    return f"rollcall-rl {version}" if version else "another version of Rollcall"
