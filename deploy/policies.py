"""Trained policies out of a run directory: to act with from Python, to evaluate, to film. Reads checkpoints whose
hashes hold and nothing else; must never need Ray or Redis."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.actors.envs import spaces_of
from rollcall.actors.evaluation import Evaluator
from rollcall.actors.observations import MASK_KEY, ObservationReader, Space
from rollcall.actors.video import record_video
from rollcall.cluster.checkpoint import latest_checkpoint, load_weights, verify
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.messages import Array, Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import RunConfig, load_config
from rollcall.deploy.runs import find_checkpoint
from rollcall.learners.policy import TorchPolicy


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


def load(target: str | Path) -> Loaded:
    """The latest whole checkpoint of a run, or the one that is named.

    Raises:
      BadInput: when there is no such run or checkpoint, or its env cannot be made here.
      CheckpointDamaged: when it must not be used: a file changed, or made under another config than its run's.
    """
    run_directory, checkpoint = find_checkpoint(target)
    config = load_config(run_directory / "config.yaml")
    if not isinstance(config, RunConfig):
        raise BadInput(f"{run_directory}: a language run; use rollcall eval, or load its policy/ with transformers")
    if checkpoint is None:
        checkpoint, manifest, _ = latest_checkpoint(run_directory)
    else:
        manifest = verify(checkpoint)
    if manifest.config_hash != config.config_hash:
        raise CheckpointDamaged(
            f"{checkpoint}: made under another config ({manifest.config_hash[:12]}) than its run's "
            f"config.yaml ({config.config_hash[:12]}): put back the file that the run wrote"
        )
    observation_space, action_space = spaces_of(config.env)
    return Loaded(config, checkpoint, load_weights(checkpoint), observation_space, action_space)


def evaluate(loaded: Loaded, *, episodes: int | None, seed: int | None, stochastic: bool) -> dict[str, Any]:
    """Runs whole episodes; the same checkpoint, seed and number give the same result."""
    greedy = loaded.config.eval.greedy and not stochastic
    settings = loaded.config.eval.model_copy(update={"greedy": greedy})
    episodes = episodes or settings.episodes or type(settings)().episodes
    evaluator = Evaluator(loaded.config.env, settings, loaded.policy)
    try:
        result = evaluator.evaluate(loaded.weights, episodes, seed)
    finally:
        evaluator.close()
    return {
        "checkpoint": str(loaded.checkpoint),
        "policy_version": result.policy_version,
        "mode": "greedy" if greedy else "stochastic",
        "seed": settings.seed if seed is None else seed,
        "mean": result.mean,
        "std": result.std,
        "n": result.n,
        "returns": list(result.returns),
        "lengths": list(result.lengths),
    }


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
        self._reader = ObservationReader(loaded.observation_space)
        self._ndim = {name: array.ndim for name, array in self._reader.zeros().items()}
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
          ValueError: when an observation has not the shape of the env's.
        """
        if action_mask is None and isinstance(observations, Mapping) and MASK_KEY in observations:
            action_mask = np.asarray(observations[MASK_KEY])
        named = self._reader.read(observations)
        extra = {array.ndim - self._ndim[name] for name, array in named.items()}
        if extra not in ({0}, {1}):
            shapes = {name: array.shape for name, array in named.items()}
            raise ValueError(f"observations have shapes {shapes}: give one of {self.observation_space}, or a batch")
        single = extra == {0}
        if single:
            named = {name: array[None] for name, array in named.items()}
            action_mask = None if action_mask is None else np.asarray(action_mask)[None]
        num_envs = len(next(iter(named.values())))
        starts = np.zeros(num_envs, bool)
        if num_envs != self._num_envs:
            self._state = self._policy.initial_recurrent_state(num_envs)
            self._num_envs = num_envs
            starts[:] = True
        if episode_starts is not None:
            starts = starts | np.asarray(episode_starts, bool)
        rollout = self._policy.rollout(
            num_steps=1,
            num_envs=num_envs,
            seed=derive_seed(self._seed, "act", self._calls),
            recurrent_state=self._state,
            greedy=greedy,
        )
        self._calls += 1
        mask = None if action_mask is None else np.asarray(action_mask, bool)
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
