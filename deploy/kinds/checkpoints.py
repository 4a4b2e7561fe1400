"""The checkpoint of a run that is to be used: whole, and made under the run's settings."""

from __future__ import annotations

from pathlib import Path

from rollcall.cluster.books.settings_history import read_settings_history
from rollcall.cluster.checkpoint import Manifest, latest_checkpoint, verify
from rollcall.cluster.errors import CheckpointDamaged
from rollcall.deploy.kinds.kind import StoredRun


def checkpoint_of(run: StoredRun) -> tuple[Path, Manifest]:
    """The checkpoint that was named, or the run's latest whole one.

    Raises:
      CheckpointDamaged: when it must not be used: a file changed, or made under another config than its run's.
    """
    if run.checkpoint is None:
        checkpoint, manifest, _ = latest_checkpoint(run.directory)
    else:
        checkpoint, manifest = run.checkpoint, verify(run.checkpoint)
    if not read_settings_history(run.directory, config_hash=run.config_hash).made(manifest.config_hash):
        raise CheckpointDamaged(
            f"{checkpoint}: made under another config ({manifest.config_hash[:12]}) than its run's "
            f"config.yaml ({run.config_hash[:12]}): put back the file that the run wrote"
        )
    return checkpoint, manifest
