"""What a command is told by the Ray job it runs in, and where runs are kept: a job's working directory is a copy that
Ray deletes, and its stop is followed by SIGKILL. Knows Ray's environment variables; must never know Ray itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.settings import COMMAND_LINE

RUNS_VARIABLE = "ROLLCALL_RUNS"
_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job supervisor for the entrypoint
_COPIES = "working_dir_files"  # the folder into which Ray unpacks the working directories of jobs
_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_S = 3.0  # Ray's own, between `ray job stop`'s SIGTERM and its SIGKILL
LEAST_PATIENCE_S = 0.5
NAME_KEY = "rollcall_run"  # of a job's metadata: the name of its run


@dataclass(frozen=True)
class RayJob:
    """The job that this process is the driver of."""

    submission_id: str
    metadata: Mapping[str, str]
    has_working_dir: bool  # which Ray gives to every process of the job, on whatever node

    @property
    def run_name(self) -> str | None:
        """As `ray job submit --metadata-json` says it."""
        return self.metadata.get(NAME_KEY)


def current_job() -> RayJob | None:
    """None outside a Ray job."""
    try:
        config = json.loads(os.environ.get(_CONFIG_VARIABLE) or "null")
    except ValueError:
        return None
    if not isinstance(config, dict):
        return None
    metadata = {str(key): str(value) for key, value in (config.get("metadata") or {}).items()}
    runtime_env = config.get("runtime_env") or {}
    return RayJob(metadata.get("job_submission_id", "unknown"), metadata, bool(runtime_env.get("working_dir")))


def runs_root() -> Path:
    """Where run directories are: runs/, from where the user stands, or $ROLLCALL_RUNS."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


def stop_patience_s() -> float:
    """How long a stop may wait for the learner before the checkpoint has to be written. Without a job, for ever: a
    second signal ends the wait."""
    if current_job() is None:
        return float("inf")
    try:
        wait_s = float(os.environ.get(_STOP_VARIABLE) or STOP_WAIT_S)
    except ValueError:
        wait_s = STOP_WAIT_S
    return max(LEAST_PATIENCE_S, wait_s / 2)


def named_overrides(overrides: Sequence[str]) -> list[str]:
    """The command line's settings, with the run's name out of the job's metadata where only that has it.

    Raises:
      BadInput: when both name it, differently.
    """
    job = current_job()
    name = job.run_name if job is not None else None
    given = [value.strip() for key, _, value in (text.partition("=") for text in overrides) if key.strip() == "name"]
    if name is None:
        return list(overrides)
    if given and given[-1] != name:
        raise BadInput(
            f"name = {given[-1]!r} ({COMMAND_LINE}): the job's metadata has {NAME_KEY}={name}; give one of the two"
        )
    return [*overrides, *([] if given else [f"name={name}"])]


def check_runs_root() -> None:
    """Raises BadInput: in a job whose run would be written into what Ray deletes."""
    job, root = current_job(), runs_root().resolve()
    if job is not None and _COPIES in root.parts:
        raise BadInput(
            f"{root}: inside the job's working directory, a copy that Ray deletes after the job; set "
            f"${RUNS_VARIABLE} to storage that lasts and that all nodes share"
        )
