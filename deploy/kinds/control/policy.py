"""A control run's checkpoint: its policy to act with from Python, to evaluate and to film. Needs no Ray, no Redis."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.recording import EpisodeRecorder, check_target, write_recorded
from rollcall.actors.control.video import record_video
from rollcall.actors.envs.action_masks import MASK_KEYS
from rollcall.actors.envs.contract import ContractError
from rollcall.actors.envs.environment import spaces_of
from rollcall.actors.envs.observations import ObservationReader, Space
from rollcall.actors.policy import Policy
from rollcall.cluster.checkpoint import load_weights, read_manifest, write_weights
from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.offline_config import OfflineConfig
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.checkpoints import checkpoint_of
from rollcall.deploy.kinds.control.onnx_export import export_onnx
from rollcall.deploy.kinds.exporting import ONNX_SUFFIX, Exported, ExportOptions
from rollcall.deploy.kinds.kind import EvalOptions, StoredRun
from rollcall.deploy.rundir.files import INIT_FROM, MARKER, POLICY
from rollcall.learners.models.policy import TorchPolicy


@dataclass(frozen=True)
class LoadedControl:
    """A checkpoint's policy and what it was trained for."""

    config: RunConfig | OfflineConfig
    run_directory: Path
    checkpoint: Path
    weights: Weights
    observation_space: Space
    action_space: Space

    @classmethod
    def of(cls, run: StoredRun) -> LoadedControl:
        """Of the run's latest whole checkpoint, or of the one that is named.

        Raises:
          BadInput: when its env cannot be made here.
          CheckpointDamaged: as checkpoint_of.
        """
        checkpoint, _ = checkpoint_of(run)
        observation_space, action_space = spaces_of(run.config.env)
        weights = load_weights(checkpoint)
        return cls(run.config, run.directory, checkpoint, weights, observation_space, action_space)

    def policy(self) -> TorchPolicy:
        """A new policy with the checkpoint's weights.

        Raises:
          CheckpointDamaged: when they do not fit the network of the run's config.
        """
        try:
            return TorchPolicy(self.observation_space, self.action_space, self.config.policy, weights=self.weights)
        except ValueError as error:
            raise CheckpointDamaged(f"{self.checkpoint}: not of this run's network: {error}") from None

    def evaluate(self, options: EvalOptions) -> dict[str, Any]:
        """Runs episodes, writes them down, and films one. Episode i has the same return whatever their number."""
        seed = self.config.eval.seed if options.seed is None else options.seed
        settings = self.config.eval
        settings = settings.model_copy(update={"greedy": settings.greedy and not options.stochastic})
        torch.set_num_threads(self.config.acting_threads)  # as the run's own evaluation: it is part of the result
        recorder = None
        if options.record is not None:
            check_target(options.record)
            recorder = EpisodeRecorder()
        evaluator = Evaluator(self.config.env, settings, self.policy)
        try:
            episodes = options.episodes or settings.episodes or type(settings)().episodes
            result = evaluator.evaluate(self.weights, episodes, seed, recorder)
        finally:
            evaluator.close()
        found = {
            "checkpoint": str(self.checkpoint),
            "policy_version": result.policy_version,
            "mode": "greedy" if settings.greedy else "stochastic",
            "seed": seed,
            **{"mean": result.mean, "std": result.std, "n": result.n, "unit": result.unit},
            "unfinished": result.unfinished,
            "returns": list(result.returns),
            "lengths": list(result.lengths),
        }
        if options.record is not None and recorder is not None:
            found |= self._record(options.record, recorder, greedy=settings.greedy)
        if options.video is not None:
            found["video"] = str(self._film(options.video, seed, greedy=settings.greedy))
        return found

    def _record(self, target: str, recorder: EpisodeRecorder, *, greedy: bool) -> dict[str, Any]:
        recorded = recorder.recorded(
            env=self.config.env.id,
            observation_space=self.observation_space,
            action_space=self.action_space,
            acted_by="greedy" if greedy else "sampled",
        )
        write_recorded(target, recorded)
        return {"recorded": target, "recorded_steps": recorded.num_steps}

    def _film(self, path: Path, seed: int, *, greedy: bool) -> Path:
        """One episode, the first of the evaluation with the same seed."""
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # without a display, SDL complains though nothing is shown
        record_video(self.config.env, self.policy(), path, seed=seed, greedy=greedy)
        return path

    def export(self, options: ExportOptions) -> Exported:
        options.refuse_for_control(self.run_directory)
        goal = options.onnx or self.run_directory / f"{POLICY}{ONNX_SUFFIX}"
        manifest = read_manifest(self.checkpoint)
        facts = {
            "run": self.run_directory.resolve().name,
            "env": self.config.env.id,
            "policy_version": self.weights.version,
            "weights": self.weights.checksum,
            "config_hash": manifest.config_hash,
            "action_space": str(self.action_space),
        }
        torch.set_num_threads(self.config.acting_threads)
        found = export_onnx(self.policy(), self.config.env, goal, seed=self.config.eval.seed, facts=facts)
        return Exported(goal, (found,))

    def write_beginning(self, directory: Path, origin: Mapping[str, Any], *, at: str = INIT_FROM) -> None:
        """`at`: the name of what is written in `directory`."""
        aside = directory / f".{at}.making"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write_weights(aside, self.weights)
        (aside / MARKER).write_text(json.dumps(origin, indent=1) + "\n")
        goal = directory / at
        shutil.rmtree(goal, ignore_errors=True)  # of a run that begins again before its first checkpoint
        aside.replace(goal)


def elsewhere(run_directory: Path) -> str:
    return f"{run_directory}: a control run: its policy is no language model; rollcall.load_policy loads it"


class Loaded(Protocol):
    """A checkpoint that can act: a network's, or a table's."""

    @property
    def config(self) -> Any: ...

    @property
    def weights(self) -> Weights: ...

    @property
    def observation_space(self) -> Space: ...

    @property
    def action_space(self) -> Space: ...

    def policy(self) -> Policy: ...


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
