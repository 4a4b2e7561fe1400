"""What a tabular run has learnt, as a policy: to evaluate, to film and to act with from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.video import record_video
from rollcall.actors.envs.environment import spaces_of
from rollcall.actors.envs.observations import Space
from rollcall.cluster.checkpoint import load_weights
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.recipe.tabular_config import TabularRunConfig
from rollcall.deploy.config.settings import COMMAND_LINE
from rollcall.deploy.kinds.checkpoints import checkpoint_of
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.kind import EvalOptions, StoredRun
from rollcall.learners.tabular.learner import VALUES


class TablePolicy:
    """An actors.policy.Policy: of the actions that are allowed, the one with the largest value. It knows no other way
    to act: greedy or not, it is the same."""

    def __init__(self, observation_space: Any, action_space: Any, weights: Weights | None = None) -> None:
        self.version = -1
        self._first_state, self._first_action = int(observation_space.start), int(action_space.start)
        self._values: Array = np.zeros((0, 0))
        if weights is not None:
            self.load(weights)

    def load(self, weights: Weights) -> None:
        self._values = dict(weights.tensors())[VALUES].copy()
        self.version = weights.version

    def initial_recurrent_state(self, num_envs: int) -> Array | None:
        return None

    def rollout(
        self,
        *,
        num_steps: int,
        num_envs: int,
        seed: int,
        recurrent_state: Array | None,
        greedy: bool = False,
        first_env: int = 0,
    ) -> TableRollout:
        return TableRollout(self._values, self._first_state, self._first_action, num_envs)


class TableRollout:
    """An actors.policy.Rollout."""

    def __init__(self, values: Array, first_state: int, first_action: int, num_envs: int) -> None:
        self._values = values
        self._first_state, self._first_action = first_state, first_action
        self._num_envs = num_envs
        self._steps = 0

    def act(
        self, observations: Mapping[str, Array], *, episode_starts: Array, action_mask: Array | None = None
    ) -> tuple[Array, Array]:
        (states,) = observations.values()
        rows = self._values[np.asarray(states, np.int64) - self._first_state]
        if action_mask is not None:
            rows = np.where(action_mask, rows, -np.inf)
        self._steps += 1
        chosen = rows.argmax(-1)
        return chosen, chosen + self._first_action

    def behaviour_logprobs(self) -> Array:
        return np.zeros((self._steps, self._num_envs), np.float32)

    def recurrent_state(self) -> Array | None:
        return None


@dataclass(frozen=True)
class LoadedTable:
    """A checkpoint's table and what it was learnt for."""

    config: TabularRunConfig
    run_directory: Path
    checkpoint: Path
    weights: Weights
    observation_space: Space
    action_space: Space

    @classmethod
    def of(cls, run: StoredRun) -> LoadedTable:
        """Of the run's latest whole checkpoint, or of the one that is named.

        Raises:
          BadInput: when its env cannot be made here.
          CheckpointDamaged: as checkpoint_of.
        """
        checkpoint, _ = checkpoint_of(run)
        return cls(run.config, run.directory, checkpoint, load_weights(checkpoint), *spaces_of(run.config.env))

    def policy(self) -> TablePolicy:
        return TablePolicy(self.observation_space, self.action_space, self.weights)

    def evaluate(self, options: EvalOptions) -> dict[str, Any]:
        """Runs episodes on the same seeds as a run with a network does, and films one."""
        if options.stochastic:
            raise BadInput(f"--stochastic ({COMMAND_LINE}): a table is judged by its greedy policy: leave it out")
        settings = self.config.eval
        seed = settings.seed if options.seed is None else options.seed
        evaluator = Evaluator(self.config.env, settings, self.policy)
        try:
            result = evaluator.evaluate(self.weights, options.episodes or settings.episodes or 20, seed)
        finally:
            evaluator.close()
        found = {
            "checkpoint": str(self.checkpoint),
            "policy_version": result.policy_version,
            "mode": "greedy",
            "seed": seed,
            **{"mean": result.mean, "std": result.std, "n": result.n, "unit": result.unit},
            "unfinished": result.unfinished,
            "returns": list(result.returns),
            "lengths": list(result.lengths),
        }
        if options.video is not None:
            record_video(self.config.env, self.policy(), options.video, seed=seed)
            found["video"] = str(options.video)
        return found

    def export(self, options: ExportOptions) -> Exported:
        raise BadInput(elsewhere(self.run_directory))

    def write_beginning(self, directory: Path, origin: Mapping[str, Any]) -> None:
        raise BadInput(elsewhere(self.run_directory))


def elsewhere(run_directory: Path) -> str:
    return f"{run_directory}: a tabular run: its policy is a table; rollcall.load_policy loads it"
