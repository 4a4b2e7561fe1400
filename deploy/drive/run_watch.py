"""What others see of a run while it lasts: its metrics, the endpoint that serves them, the file by which Prometheus
finds it, and the probe that looks after what the run stands on. Must never change how a run goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rollcall.cluster.files import read_json
from rollcall.cluster.loop.run import RunState
from rollcall.cluster.loop.supervision import RAY_LOST, START_FAILED
from rollcall.cluster.metrics.discovery import Announcement, announce
from rollcall.cluster.metrics.probe import MetricsProbe
from rollcall.cluster.metrics.run_metrics import RunMetrics
from rollcall.cluster.store.store import Store
from rollcall.deploy.config.recipe.run_config import OnlineConfig
from rollcall.deploy.kinds.kind import POLICY_ID, MemberFactory
from rollcall.deploy.kinds.recipes import kind_of_config
from rollcall.deploy.report.recorders import Record
from rollcall.deploy.report.run_lines import iter_jsonl

_TELL_OF_RESTARTS = {"reward_service": "reward_service", RAY_LOST: "ray"}  # kind of event -> role


class RunWatch:
    """One driver's. `open`, then `probe`, then `training`; `close` whatever happened."""

    def __init__(self, config: OnlineConfig, run_directory: Path, factory: MemberFactory) -> None:
        self._config = config.metrics
        self.directory = run_directory.resolve()
        self._probe: MetricsProbe | None = None
        self._announcement: Announcement | None = None
        self._told_restarts = Counter[str]()  # of what is none of the workers
        self.port: int | None = None
        self.failed = False  # then its file stays: a target that is down is what an alert is for
        self.metrics = RunMetrics(
            run=self.directory.name, policy=POLICY_ID, env=factory.label, kind=kind_of_config(config).name
        )
        self.metrics.describe(
            version=_own_version(),
            recipe=str(read_json(run_directory / "run.json").get("recipe") or config.name),
            algorithm=config.algorithm_name,
            runtime=config.runtime,
        )

    def open(self) -> int | None:
        """Serves, and says where; returns the port, if there is one.

        Raises:
          BadInput: when it cannot be served where the settings say.
        """
        if self._config.enabled:
            self.port = self.metrics.serve(self._config)
            labels = {"run": self.directory.name, "role": "driver"}
            address = f"{self._config.host}:{self.port}"
            self._announcement = announce(self.directory.parent, self.directory.name, address, labels)
        return self.port

    def probe(self, store: Store) -> None:
        if self._config.enabled:
            self._probe = MetricsProbe(self.metrics, store, self.directory)

    def training(self, state: Callable[[], RunState], store: Store) -> None:
        """The run begins its first step, or goes on with another."""

        def seen() -> RunState:
            now = state()
            return replace(now, restarts={**now.restarts, **self._told_restarts, "redis": store.restarts})

        self.metrics.watch(seen)
        self.metrics.enter("training")

    def on_event(self, kind: str, text: str) -> None:
        if (role := _TELL_OF_RESTARTS.get(kind)) is not None:
            self._told_restarts[role] += 1
        if kind == START_FAILED:
            self.metrics.on_failed_start(text.partition(":")[0])
        self.metrics.on_event(kind, text)

    def rest(self) -> None:
        """The run is about to let go of what it stands on."""
        self.metrics.enter("ending")
        if self._probe is not None:
            self._probe.stop()

    def close(self) -> None:
        self.rest()
        self.metrics.close()
        if self._announcement is not None and not self.failed:
            self._announcement.withdraw()


class MetricsRecorder:
    """Feeds the /metrics endpoint, and remembers the evaluations for the summary."""

    def __init__(self, watch: RunWatch, evaluations: list[Mapping[str, Any]]) -> None:
        self.on_step: Callable[[Record], None] = watch.metrics.on_step
        self.on_event = watch.on_event
        self._metrics = watch.metrics
        self._directory = watch.directory
        self._evaluations = evaluations

    def on_start(self, info: Record) -> None:
        """Of a run that goes on, what is kept of its evaluations: the best may be among them."""
        for record in iter_jsonl(self._directory / "evals.jsonl"):
            if record.get("step", 0) <= info["start_step"]:
                self._metrics.on_eval(record)

    def on_eval(self, record: Record) -> None:
        self._metrics.on_eval(record)
        self._evaluations[1:] = [record]

    def close(self, summary: Record) -> None: ...


def _own_version() -> str:
    try:
        return version("rollcall-rl")
    except PackageNotFoundError:
        return "unknown"
