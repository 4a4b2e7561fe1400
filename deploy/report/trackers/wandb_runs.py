"""Runs at Weights & Biases, online or kept in the run's directory. The only file that knows wandb."""

from __future__ import annotations

import netrc
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.recorders_config import WandbConfig
from rollcall.deploy.report.trackers.tracker import LEARNER_STEP, TrackedRun, said_by

_OPENING_S = 30.0  # at most, until a server has answered


class WandbRun:
    """A Tracker. The x-axis is `learner_step`, and may be any other number of a step, `rollout/env_steps` say. A run
    that is resumed goes on with the same id; steps that it does again are there twice."""

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None

    def open(self, run: TrackedRun) -> str:
        import wandb

        config = self._config
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, init_timeout=_OPENING_S
        )
        found = run.known_id or uuid.uuid4().hex[:12]
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=list(config.tags) or None,
                mode="offline" if self._offline() else "online",
                dir=str(run.directory),
                id=found,
                name=run.name,
                resume="allow",
                config=dict(run.settings),
                settings=settings,
            )
        except Exception as error:  # wandb's own, and those of its client
            raise BadInput(
                f"recorders.wandb: a run cannot be opened ({said_by(error)}): log in with wandb login, or set "
                "recorders.wandb.mode=offline"
            ) from None
        self._run.define_metric(LEARNER_STEP)
        self._run.define_metric("*", step_metric=LEARNER_STEP)
        return found

    def _offline(self) -> bool:
        """`auto`: WANDB_MODE says, or whether somebody is logged in."""
        if self._config.mode != "auto":
            return self._config.mode == "offline"
        if os.environ.get("WANDB_MODE"):
            return os.environ["WANDB_MODE"] != "online"
        return not _logged_in()

    def log(self, step: int, values: Mapping[str, float], *, unix_s: float) -> None:
        self._run.log({**values, LEARNER_STEP: step})

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        rows = [[step, str(s.get("prompt")), str(s.get("text")), s.get("reward")] for s in samples]
        table = wandb.Table(columns=[LEARNER_STEP, "prompt", "text", "reward"], data=rows)
        self._run.log({"samples": table, LEARNER_STEP: step})

    def close(self, status: str, summary: Mapping[str, float]) -> None:
        self._run.summary.update({f"summary/{name}": value for name, value in summary.items()})
        self._run.finish(exit_code=0 if status in ("completed", "stopped") else 1)


def _logged_in() -> bool:
    """As wandb finds a key, without asking for one: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(str(path)).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
