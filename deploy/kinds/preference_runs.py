"""Runs on preferences that were made: their checkpoints evaluated again, and their policies exported. Reads checkpoints
whose hashes hold and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollcall.cluster.checkpoint import Manifest, latest_checkpoint, load_weights, verify
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.deploy.config.preference_config import DirectRunConfig, PreferenceRunConfig
from rollcall.deploy.config.preference_config import load_preference_config as load_config
from rollcall.deploy.drive.offline import Job
from rollcall.deploy.drive.runs import driver_log, find_checkpoint
from rollcall.deploy.kinds.export import check_free, model_source, save_policy
from rollcall.deploy.kinds.preference_run import POLICY, DirectJob
from rollcall.deploy.kinds.reward_train import RewardJob
from rollcall.deploy.rundir.earlier_runs import read_run


def evaluate(target: str | Path) -> dict[str, Any]:
    """The held-out comparisons again, by a run's latest whole checkpoint or by the named one; of a reward model, by the
    one that would be kept there.

    Raises:
      BadInput, CheckpointDamaged: as `rollcall eval` of other runs.
    """
    config, directory, checkpoint, manifest = _found(target)
    with driver_log(directory):
        job: Job = DirectJob(config, directory) if isinstance(config, DirectRunConfig) else RewardJob(config, directory)
        job.learner.restore(checkpoint)
        job.restore(checkpoint)
        kept = job.keep() if isinstance(job, RewardJob) else {}
        return {"checkpoint": str(checkpoint), "policy_version": manifest.step, **kept, **job.evaluate(manifest.step)}


def export(target: str | Path, goal: Path | None) -> Path:
    """As export.export_policy, of a direct method's run."""
    config, directory, checkpoint, manifest = _found(target)
    if not isinstance(config, DirectRunConfig):
        raise BadInput(f"{directory}: a reward model's run has no policy: its model is {directory / 'model'}")
    goal = directory / POLICY if goal is None else goal
    beginning = next((directory / name for name in ("warm_start", "start") if (directory / name).is_dir()), None)
    source = beginning or model_source(Path(config.policy.model))
    if goal.resolve() == source.resolve():
        raise BadInput(f"{goal}: the model that the run began with: export to another directory")
    check_free(goal)
    weights = load_weights(checkpoint)
    marker: dict[str, object] = {"config_hash": manifest.config_hash, "policy_version": weights.version}
    save_policy(weights, source, goal, marker=marker | {"policy_id": weights.policy_id, "weights": weights.checksum})
    return goal


def _found(target: str | Path) -> tuple[PreferenceRunConfig, Path, Path, Manifest]:
    directory, checkpoint = find_checkpoint(target)
    settings, config_hash = read_run(directory)
    config = load_config(settings)
    if checkpoint is None:
        checkpoint, manifest, _ = latest_checkpoint(directory)
    else:
        manifest = verify(checkpoint)
    if manifest.config_hash != config_hash:
        raise CheckpointDamaged(f"{checkpoint}: made under another config than {directory / 'config.yaml'}")
    return config, directory, checkpoint, manifest
