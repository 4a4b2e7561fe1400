"""A checkpoint of a run on preferences: what it says of the held-out comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rollcall.cluster.checkpoint import load_weights
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.settings import COMMAND_LINE
from rollcall.deploy.kinds.checkpoints import checkpoint_of
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.kind import EvalOptions, OfflineRun, StoredRun
from rollcall.deploy.rundir.files import driver_log


@dataclass(frozen=True)
class LoadedOnPreferences:
    """A checkpoint, and the run that made it."""

    run: StoredRun
    checkpoint: Path
    version: int
    made: OfflineRun
    kept: Callable[[], Mapping[str, Any]]  # makes the model the one that the run would keep there

    @classmethod
    def of(cls, run: StoredRun, made: OfflineRun, kept: Callable[[], Mapping[str, Any]] = dict) -> Self:
        """Of the run's latest whole checkpoint, or of the one that is named. Raises CheckpointDamaged."""
        checkpoint, manifest = checkpoint_of(run)
        return cls(run, checkpoint, manifest.step, made, kept)

    @property
    def weights(self) -> Weights:
        return load_weights(self.checkpoint)

    def evaluate(self, options: EvalOptions) -> dict[str, Any]:
        """The held-out comparisons again."""
        for name, value in (("episodes", options.episodes), ("video", options.video), ("record", options.record)):
            if value is not None:
                raise BadInput(
                    f"--{name} ({COMMAND_LINE}): a run on preferences has no episodes: it is judged on all pairs"
                )
        made = self.made
        with driver_log(self.run.directory):
            for _ in made.preparations():
                raise BadInput(f"{self.run.directory}: the model that the run began with is not there any more")
            made.learner.restore(self.checkpoint)
            made.restore(self.checkpoint)
            found = {**self.kept(), **(made.evaluate(self.version) or {})}
        return {"checkpoint": str(self.checkpoint), "policy_version": self.version, **found}

    def export(self, options: ExportOptions) -> Exported:
        where = self.run.directory / "model"
        raise BadInput(f"{self.run.directory}: a reward model's run has no policy: its model is {where}")

    def write_beginning(self, directory: Path, origin: Mapping[str, Any]) -> None:
        raise BadInput(elsewhere(self.run.directory))


def elsewhere(run_directory: Path) -> str:
    return f"{run_directory}: a run on preferences: what it learnt is a directory in it, policy or model"
