"""Runs at MLflow, on a server or in a SQLite file. The only file that knows mlflow."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.passwords import without_passwords
from rollcall.deploy.config.recipe.recorders_config import MlflowConfig
from rollcall.deploy.report.trackers.tracker import TrackedRun, said_by

_DEFAULT_URI = "sqlite:///mlflow.db"
_BATCH, _VALUE_CHARACTERS = 100, 500  # of parameters: what every server takes
_STATUS = {"completed": "FINISHED", "stopped": "KILLED"}


class MlflowRun:
    """A Tracker. Steps are learner steps; env steps or tokens are a metric beside the others. Of a resumed run, steps
    that it does again are there twice, and settings stay those it began with: MLflow lets no parameter change."""

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._client: Any = None
        self._id = ""

    def open(self, run: TrackedRun) -> str:
        # Before its import: it would send what is done with it to its makers, and wait long for a server that is gone.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = self._config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT_URI
        try:
            with warnings.catch_warnings():  # of what it uses that its own store's library will drop
                warnings.simplefilter("ignore", DeprecationWarning)
                self._client = MlflowClient(tracking_uri=uri)
                self._id = run.known_id or self._created(run)
                self._client.update_run(self._id, status="RUNNING")
        except Exception as error:  # mlflow's own, SQLAlchemy's, and those of its client
            where = without_passwords(uri)
            raise BadInput(
                f"recorders.mlflow: no run can be opened at {where} ({said_by(error)}): fix tracking_uri"
            ) from None
        return self._id

    def _created(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(self._config.experiment)
        number = (
            self._client.create_experiment(self._config.experiment) if experiment is None else experiment.experiment_id
        )
        created = str(self._client.create_run(number, run_name=run.name, tags=dict(self._config.tags)).info.run_id)
        params = [Param(_name(key), str(value)[:_VALUE_CHARACTERS]) for key, value in run.settings.items()]
        for begin in range(0, len(params), _BATCH):
            self._client.log_batch(created, params=params[begin : begin + _BATCH])
        return created

    def log(self, step: int, values: Mapping[str, float], *, unix_s: float) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_name(key), value, int(unix_s * 1000), step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Texts are artifacts there, which need a store of their own: they stay in the run's samples.jsonl."""

    def close(self, status: str, summary: Mapping[str, float]) -> None:
        self._client.set_terminated(self._id, _STATUS.get(status, "FAILED"))


def _name(key: str) -> str:
    """What MLflow takes as a name."""
    return re.sub(r"[^\w\-. /:]", "_", key)[:250]
