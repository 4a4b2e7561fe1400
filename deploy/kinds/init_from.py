"""A run that begins with another run's weights: found, held against the settings of the new run, and copied into its
directory, so that nothing depends on the other run afterwards. Books, optimiser and schedules begin anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces

from rollcall.actors.language.text_codec import TextCodec
from rollcall.cluster.checkpoint import read_manifest, write_weights
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.messages.records import Weights
from rollcall.deploy.config.language_config import LanguageConfig
from rollcall.deploy.config.load import AnyConfig
from rollcall.deploy.config.run_config import RunConfig
from rollcall.deploy.drive import runs
from rollcall.deploy.kinds import policies
from rollcall.deploy.kinds.export import MARKER, model_source, save_policy
from rollcall.deploy.kinds.initial_weights import DIRECTORY, misfit
from rollcall.deploy.kinds.parts import parts_of

# Settings of a control policy that say how it begins, or how it learns; of the others its weights are what they are.
_FREE = ("init_from", "orthogonal_init", "log_std_init", "normalise_rewards", "reward_clip")
# These show in the shapes of the weights, or change nothing where they do not.
_SHOWN = ("shared_torso", "recurrent_size", "observation_clip")
_MAX_PROMPTS = 100  # looked at for characters that the model's tokenizer does not know


@dataclass(frozen=True)
class Beginning:
    """The weights that a new run begins with, and where they come from."""

    origin: Mapping[str, Any]
    weights: Weights
    model: Path | None  # of a language model: a directory with its config and tokenizer

    def write(self, run_directory: Path) -> None:
        """Into the run's directory, in one move."""
        goal = run_directory / DIRECTORY
        if self.model is not None:
            save_policy(self.weights, self.model, goal, marker=dict(self.origin))
            return
        aside = run_directory / f".{DIRECTORY}.making"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write_weights(aside, self.weights)
        (aside / MARKER).write_text(json.dumps(self.origin, indent=1) + "\n")
        shutil.rmtree(goal, ignore_errors=True)  # of a run that begins again before its first checkpoint
        aside.replace(goal)


def beginning_of(config: AnyConfig) -> Beginning | None:
    """What `policy.init_from` names, if it names anything.

    Raises:
      BadInput: when there is no such run or checkpoint, or the new run's policy is another one.
    """
    target = config.policy.init_from
    if target is None:
        return None
    try:
        language = isinstance(config, LanguageConfig)
        loaded = policies.load_language(target) if language else policies.load(target)
        if isinstance(loaded, policies.LoadedLanguage):
            assert isinstance(config, LanguageConfig)
            directory = model_source(loaded.parts.model_directory)
            model: Path | None = directory
            problem = _language_misfit(config, directory)
        else:
            assert isinstance(config, RunConfig)
            model, problem = None, _control_misfit(config, loaded)
    except (BadInput, CheckpointDamaged) as error:
        raise BadInput(f"policy.init_from = {target!r}: {error}") from None
    if problem:
        raise BadInput(f"policy.init_from = {target!r}: {problem}")
    manifest, weights = read_manifest(loaded.checkpoint), loaded.weights
    origin = {
        "run": manifest.run_id,
        "checkpoint": str(loaded.checkpoint.resolve()),
        "policy_id": weights.policy_id,
        "policy_version": weights.version,
        "config_hash": manifest.config_hash,
        "weights": weights.checksum,
    }
    return Beginning(origin, weights, model)


def begin_run(config: AnyConfig, directory: Path, beginning: Beginning | None, *, recipe: str) -> None:
    """As runs.begin_run, with the weights to begin with put beside.

    Raises:
      BadInput: when the directory cannot be written to.
    """
    if beginning is None:
        runs.begin_run(config, directory, recipe=recipe)
        return
    try:
        beginning.write(directory)
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror or error}") from None
    runs.begin_run(config, directory, recipe=recipe, init_from=beginning.origin)


def _control_misfit(config: RunConfig, loaded: policies.Loaded) -> str:
    """Why the loaded policy is none of the new run; empty when it is."""
    ours, theirs = config.policy.model_dump(mode="json"), loaded.config.policy.model_dump(mode="json")
    for name, value in theirs.items():
        if name not in (*_FREE, *_SHOWN) and ours.get(name) != value:
            return (
                f"its policy.{name} is {json.dumps(value)}, and this run's {json.dumps(ours.get(name))}: write "
                f"policy.{name}={json.dumps(value)}"
            )
    parts = parts_of(config, Path())
    observations, actions = parts.spaces  # type: ignore[attr-defined]
    if not _alike(observations, loaded.observation_space):
        return f"it sees {loaded.observation_space}, and this env shows {observations}: begin from a run of such an env"
    if actions != loaded.action_space:
        return f"its actions are {loaded.action_space}, and this env takes {actions}: begin from a run of such an env"
    return misfit(parts.models(), dict(loaded.weights.tensors()))  # type: ignore[attr-defined]


def _alike(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether observations of both have the same parts, shapes and kinds of numbers; their bounds may differ."""
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, spaces.Tuple) and isinstance(other, spaces.Tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape and one.dtype == other.dtype
    return one == other


def _language_misfit(config: LanguageConfig, model: Path) -> str:
    """Why the model cannot do the new run's task: its tokenizer lacks what the task needs."""
    task = config.build_task()
    codec = TextCodec(model, chat=task.chat)
    texts = [row.prompt for row in task.rows("train")[:_MAX_PROMPTS]]
    if hasattr(task, "alphabet"):
        texts.append(task.alphabet())
    unknown = sorted({c for c in set("".join(texts)) if not codec.decode(codec.encode(c)) and not c.isspace()})
    if unknown:
        return f"its tokenizer does not know {', '.join(map(repr, unknown[:8]))} of the task {config.task_name}"
    return ""
