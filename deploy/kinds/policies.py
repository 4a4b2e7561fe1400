"""Trained policies out of a run directory: to act with from Python, to evaluate, to film. Reads checkpoints whose
hashes hold and nothing else; must never need Ray or Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.video import record_video
from rollcall.actors.envs.action_masks import MASK_KEYS
from rollcall.actors.envs.contract import ContractError
from rollcall.actors.envs.environment import spaces_of
from rollcall.actors.envs.observations import ObservationReader, Space
from rollcall.cluster.books.settings_history import read_settings_history
from rollcall.cluster.checkpoint import latest_checkpoint, load_weights, verify
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.messages.records import Array, Weights
from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.load import AnyConfig, LanguageConfig, RunConfig, load_run
from rollcall.deploy.config.settings import learns_from_data
from rollcall.deploy.drive.runs import find_checkpoint, refuse_supervised
from rollcall.deploy.kinds.export import model_source
from rollcall.deploy.kinds.parts import parts_of
from rollcall.learners.models.policy import TorchPolicy

if TYPE_CHECKING:
    from rollcall.deploy.kinds.language_parts import LanguageParts


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's policy and what it was trained for."""

    config: RunConfig
    checkpoint: Path
    weights: Weights
    observation_space: Space
    action_space: Space

    def policy(self) -> TorchPolicy:
        """A new policy with the checkpoint's weights.

        Raises:
          CheckpointDamaged: when they do not fit the network of the run's config.
        """
        try:
            return TorchPolicy(self.observation_space, self.action_space, self.config.policy, weights=self.weights)
        except ValueError as error:
            raise CheckpointDamaged(f"{self.checkpoint}: not of this run's network: {error}") from None


@dataclass(frozen=True)
class LoadedLanguage:
    """A checkpoint's language model and what it was trained for."""

    config: LanguageConfig
    run_directory: Path
    checkpoint: Path
    weights: Weights

    @property
    def parts(self) -> LanguageParts:
        from rollcall.deploy.kinds.language_parts import LanguageParts  # transformers and vLLM are its, not everybody's

        parts = parts_of(self.config, self.run_directory)
        assert isinstance(parts, LanguageParts)
        return parts


def load(target: str | Path) -> Loaded:
    """The latest whole checkpoint of a run, or the one that is named.

    Raises:
      BadInput: when there is no such run or checkpoint, its env cannot be made here, or it is a language run's.
      CheckpointDamaged: when it must not be used: a file changed, or made under another config than its run's.
    """
    config, run_directory, checkpoint = _find(target)
    if isinstance(config, LanguageConfig):
        raise BadInput(
            f"{run_directory}: a language run: transformers loads its policy from {run_directory / 'policy'} "
            f"(rollcall export {run_directory} writes it)"
        )
    return _load_control(config, checkpoint())


def load_language(target: str | Path) -> LoadedLanguage:
    """As `load`, of a language run."""
    config, run_directory, checkpoint = _find(target)
    if not isinstance(config, LanguageConfig):
        raise BadInput(
            f"{run_directory}: a control run: its policy is no language model; rollcall.deploy.load_policy loads it"
        )
    return _load_language(config, run_directory, checkpoint())


def load_either(target: str | Path) -> Loaded | LoadedLanguage:
    """As `load`, of a run of either half."""
    config, run_directory, checkpoint = _find(target)
    if isinstance(config, LanguageConfig):
        return _load_language(config, run_directory, checkpoint())
    return _load_control(config, checkpoint())


def _find(target: str | Path) -> tuple[AnyConfig, Path, Callable[[], Path]]:
    """(settings, run directory, what finds its whole checkpoint) of RUN_OR_CHECKPOINT."""
    run_directory, checkpoint = find_checkpoint(target)
    refuse_supervised(run_directory)
    if learns_from_data(run_directory / "config.yaml"):
        raise BadInput(f"{run_directory}: a run on preferences: what it learnt is a directory in it, policy or model")
    config, config_hash = load_run(run_directory)
    return config, run_directory, partial(_verified, run_directory, checkpoint, config_hash)


def _verified(run_directory: Path, checkpoint: Path | None, config_hash: str) -> Path:
    """The checkpoint, or the run's latest whole one, if it was made under the run's settings, of now or before."""
    if checkpoint is None:
        checkpoint, manifest, _ = latest_checkpoint(run_directory)
    else:
        manifest = verify(checkpoint)
    if not read_settings_history(run_directory, config_hash=config_hash).made(manifest.config_hash):
        raise CheckpointDamaged(
            f"{checkpoint}: made under another config ({manifest.config_hash[:12]}) than its run's "
            f"config.yaml ({config_hash[:12]}): put back the file that the run wrote"
        )
    return checkpoint


def _load_control(config: RunConfig, checkpoint: Path) -> Loaded:
    observation_space, action_space = spaces_of(config.env)
    return Loaded(config, checkpoint, load_weights(checkpoint), observation_space, action_space)


def _load_language(config: LanguageConfig, run_directory: Path, checkpoint: Path) -> LoadedLanguage:
    return LoadedLanguage(config, run_directory, checkpoint, load_weights(checkpoint))


def evaluate(
    loaded: Loaded | LoadedLanguage, *, episodes: int | None, seed: int | None, stochastic: bool
) -> dict[str, Any]:
    """Runs episodes, or answers held-out rows; the same checkpoint, seed and number give the same result. A control
    run's episode i has the same return whatever their number; a language run's answer may tip, where two tokens are
    equally likely to the last bits, with what else the engine's batch holds.

    Raises:
      BadInput: when a language run's task has no held-out rows, or its model is gone.
    """
    config = loaded.config
    greedy = config.eval.greedy and not stochastic
    wanted = episodes or config.eval.episodes or type(config.eval)().episodes
    if isinstance(loaded, LoadedLanguage):
        result: Any = _evaluate_language(loaded, wanted, seed, greedy=greedy)
        measured = {"unit": result.unit, "unparsed": result.unparsed, "rewards": list(result.returns)}
    else:
        result = _evaluate_control(loaded, wanted, seed, greedy=greedy)
        measured = {"unit": result.unit, "unfinished": result.unfinished, "returns": list(result.returns)}
    return {
        "checkpoint": str(loaded.checkpoint),
        "policy_version": result.policy_version,
        "mode": "greedy" if greedy else "stochastic",
        "seed": config.eval.seed if seed is None else seed,
        "mean": result.mean,
        "std": result.std,
        "n": result.n,
        **measured,
        "lengths": list(result.lengths),
    }


def _evaluate_control(loaded: Loaded, episodes: int, seed: int | None, *, greedy: bool) -> EvalReport:
    settings = loaded.config.eval.model_copy(update={"greedy": greedy})
    torch.set_num_threads(loaded.config.actors.torch_threads)  # as the run's own evaluation: it is part of the result
    evaluator = Evaluator(loaded.config.env, settings, loaded.policy)
    try:
        return evaluator.evaluate(loaded.weights, episodes, seed)
    finally:
        evaluator.close()


def _evaluate_language(loaded: LoadedLanguage, rows: int, seed: int | None, *, greedy: bool) -> EvalReport:
    settings = loaded.config.eval.model_copy(update={"greedy": greedy})
    parts = replace(loaded.parts, config=loaded.config.model_copy(update={"eval": settings}))
    if not parts.task.rows("eval"):
        raise BadInput(f"{loaded.run_directory}: the task {parts.label} has no held-out rows to answer")
    model_source(parts.model_directory)
    evaluator = parts.evaluator()
    try:
        return evaluator.evaluate(loaded.weights, rows, seed)
    finally:
        evaluator.close()


def record(loaded: Loaded, path: Path, *, seed: int | None, stochastic: bool) -> Path:
    """Films one episode, the first of the evaluation with the same seed."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # without a display, SDL complains though nothing is shown
    settings = loaded.config.eval
    record_video(
        loaded.config.env,
        loaded.policy(),
        path,
        seed=settings.seed if seed is None else seed,
        greedy=settings.greedy and not stochastic,
    )
    return path


class LoadedPolicy:
    """A trained policy: numpy in, numpy out."""

    def __init__(self, loaded: Loaded, *, seed: int = 0) -> None:
        self.config = loaded.config
        self.observation_space = loaded.observation_space
        self.action_space = loaded.action_space
        self.version = loaded.weights.version
        self._policy = loaded.policy()
        self._reader = ObservationReader(loaded.observation_space, loaded.action_space)
        self._seed = seed
        self._calls = 0
        self._state: Array | None = None
        self._num_envs = 0

    def act(
        self,
        observations: Any,
        *,
        episode_starts: Array | bool | None = None,
        action_mask: Array | None = None,
        greedy: bool = True,
    ) -> Array:
        """Actions as the env takes them, for one observation as the env gives it, or for a batch of them [B, ...].

        A recurrent policy remembers from call to call: say where an episode starts, or call `reset`.

        Raises:
          ValueError: when an observation is not what the env's space says, or a mask is none or allows nothing.
        """
        if action_mask is None and isinstance(observations, Mapping):
            action_mask = next((observations[key] for key in MASK_KEYS if key in observations), None)
        try:
            named, single = self._reader.read_one_or_batch(observations)
            num_envs = len(next(iter(named.values())))
            mask = None
            if action_mask is not None:
                mask = self._reader.mask(action_mask)[None] if single else self._reader.mask(action_mask, num_envs)
        except ContractError as error:
            raise ValueError(f"act: {error}") from None
        starts = np.zeros(num_envs, bool)
        if num_envs != self._num_envs:
            self._state = self._policy.initial_recurrent_state(num_envs)
            self._num_envs = num_envs
            starts[:] = True
        if episode_starts is not None:
            given = np.asarray(episode_starts, bool)
            if given.shape not in ((), (num_envs,)):
                raise ValueError(
                    f"act: episode_starts has shape {given.shape}: give one bool, or one for each of {num_envs}"
                )
            starts = starts | given
        rollout = self._policy.rollout(
            num_steps=1,
            num_envs=num_envs,
            seed=derive_seed(self._seed, "act", self._calls),
            recurrent_state=self._state,
            greedy=greedy,
        )
        self._calls += 1
        actions = np.array(rollout.act(named, episode_starts=starts, action_mask=mask)[1])
        self._state = rollout.recurrent_state()
        return actions[0] if single else actions

    def reset(self) -> None:
        """Forgets what a recurrent policy remembers: every env begins a new episode."""
        self._num_envs = 0


def load_policy(path: str | Path, *, seed: int = 0) -> LoadedPolicy:
    """The policy of a run (its latest whole checkpoint) or of one checkpoint directory. `seed` is for greedy=False.

    Raises:
      BadInput, CheckpointDamaged: as `rollcall eval` would.
    """
    return LoadedPolicy(load(path), seed=seed)
