"""Composes a run from its config and sees it through: spaces, networks, books, workers, coordinator, summary.
Everything is put together here and nowhere else; no algorithm and no environment is known by name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.settings_history import SettingsHistory
from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, latest_checkpoint, read_state
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.files import write_aside
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.loop.supervision import FailureBudget, RestartBudget, Watchdog
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.store.store import Store, open_store
from rollcall.deploy.config.load import AnyConfig
from rollcall.deploy.drive.nested_runs import train_reward_model
from rollcall.deploy.drive.run_watch import RunWatch
from rollcall.deploy.kinds.parts import POLICY_ID, Parts, parts_of
from rollcall.deploy.report.recorders import Recorder, plain
from rollcall.deploy.rundir.jobs import stop_patience_s
from rollcall.deploy.runtimes.preference_gate import PreferenceGate
from rollcall.learners.loop.collective import Collective
from rollcall.reward_service.scorer import Taken

KEEP_VERSIONS = 2
FINAL_EVAL_TIMEOUT_S = 900.0


def train(
    config: AnyConfig,
    run_directory: Path,
    *,
    resume: bool,
    recorders: Sequence[Recorder],
    stop: threading.Event,
    segments: SettingsHistory | None = None,
) -> dict[str, Any]:
    """Runs to the end, or to a checkpoint once `stop` is set. Returns the summary, which is also summary.json.
    `segments`: of a run whose settings were changed, or written by another release.

    Raises:
      BadInput: before anything is begun, where the parts do not fit or cannot be had.
      RollcallError: when the run cannot go on; the summary says "failed" then.
    """
    segments = segments or SettingsHistory.single(config.config_hash)
    run = _Run(config, run_directory, recorders=recorders, stop=stop, segments=segments)
    return run.execute(resume=resume)


class _Run:
    """One driver's part of a run: from opening the books to writing the summary."""

    def __init__(
        self,
        config: AnyConfig,
        run_directory: Path,
        *,
        recorders: Sequence[Recorder],
        stop: threading.Event,
        segments: SettingsHistory,
    ) -> None:
        self.config = config
        self.segments = segments
        self.directory = run_directory
        self.stop = stop
        self.began = time.perf_counter()
        self.parts: Parts = parts_of(config, run_directory)
        self.watch = RunWatch(config, run_directory, self.parts)
        self.first_eval: Mapping[str, Any] | None = None  # of the policy before its first update
        self.last_eval: Mapping[str, Any] | None = None
        self.recorders = [*recorders, _MetricsRecorder(self.watch, self)]
        self.parts.check()  # what does not fit is said before anything is begun

    def execute(self, *, resume: bool) -> dict[str, Any]:
        config = self.config
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        start = self._starting_point() if resume else None
        workers: Any = None
        try:
            port = self.watch.open()
            with open_store(config.redis, self.directory) as store:
                store.acquire_lock()
                self.watch.probe(store)
                books = Ledger(store, tickets_per_step=config.tickets_per_step)
                self.parts.prepare(self.stop.is_set)
                with self._reward_service():
                    workers = self._workers()
                    return self._see_through(store, books, workers, start, port)
        finally:
            if workers is not None:
                workers.close()  # after the store: Ray's end ends every child of this process, and Redis is one
            self.watch.close()

    def _see_through(
        self, store: Store, books: Ledger, workers: Any, start: tuple[Path, Manifest] | None, port: int | None
    ) -> dict[str, Any]:
        """From the first ticket to the summary, which is written however it ends."""
        coordinator: Coordinator | None = None
        status, error = "failed", ""
        try:
            checkpoints = CheckpointWriter(self.directory, keep=self.config.checkpoint.keep)
            coordinator = self._coordinator(store, books, workers, checkpoints)
            store.waits_no_longer = coordinator.stops_while_store_is_away
            self._begin(coordinator, workers, start, port)
            self.watch.training(coordinator.state, store)
            coordinator.run()
            self.watch.metrics.enter("evaluating")
            status = "completed" if coordinator.finished else "stopped"
            self._evaluate(coordinator, workers)
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"
            self.watch.failed = not isinstance(problem, BadInput)
            raise
        finally:
            self.watch.rest()
            summary = self._summary(status, error, coordinator, books, workers)
            self._write_summary(summary)
        return summary

    # Beginning.

    def _starting_point(self) -> tuple[Path, Manifest]:
        checkpoint, manifest, warnings = latest_checkpoint(self.directory)
        for warning in warnings:
            self._tell("checkpoint_damaged", warning)
        if not self.segments.made(manifest.config_hash):
            raise BadInput(
                f"{checkpoint}: made under another config ({manifest.config_hash[:12]}, this one is "
                f"{self.segments.config_hash[:12]}): put back the config.yaml that the run wrote; settings are changed "
                "with rollcall resume RUN key=value"
            )
        return checkpoint, manifest

    @contextmanager
    def _reward_service(self) -> Iterator[None]:
        config = self.parts.reward_config
        if config is None:
            yield
            return
        from rollcall.deploy.drive.reward_launch import reward_endpoint
        from rollcall.reward_service.labelling.routes import PAGE_PATH
        from rollcall.reward_service.service.auth import TOKEN_VARIABLE

        labels = getattr(self.config, "preferences", None) is not None
        scored: Taken = "text" if self.parts.kind == "language" else "segment"
        watched = (self.config.supervision, self._tell)
        with reward_endpoint(config, self.directory, *watched, scored=scored, labels=labels) as endpoint:
            if self.parts.asks_people:
                self._tell("labels", f"label at {endpoint.url}{PAGE_PATH}, with the token of ${TOKEN_VARIABLE}")
            self.parts = self.parts.with_reward(endpoint)
            yield

    def _workers(self) -> Any:
        if self.config.runtime == "serial":
            return self._serial_workers()
        from rollcall.deploy.runtimes.on_ray.launch import ray_workers

        return ray_workers(
            self.config,
            self.parts,
            self.directory,
            self._tell,
            keep_versions=KEEP_VERSIONS,
            train_reward_model=train_reward_model,
            stop_requested=self.stop.is_set,
        )

    def _serial_workers(self) -> Any:
        from rollcall.deploy.runtimes.serial_runtime import SerialWorkers

        server = ParameterServer(keep=KEEP_VERSIONS)
        return SerialWorkers(
            actor=self.parts.actor(f"{self.parts.actor_prefix}-0", server),
            learner=self.parts.learner(Collective()),
            parameter_server=server,
            evaluator=self.parts.evaluator,
            episodes=self.parts.eval_episodes,
            scorer=self.parts.scorer() if self.parts.reward is not None else None,
            gate=self._gate(),
        )

    def _gate(self) -> PreferenceGate | None:
        """Of a serial run from preferences."""
        from rollcall.deploy.runtimes.serial_runtime import TrainerInTurn

        training = self.parts.preference_training
        if training is None:
            return None
        trainer = training.trainer(partial(train_reward_model, stop=self.stop))
        budget = RestartBudget("the preference trainer", max_restarts=0, window_s=1.0)
        patience_s = training.config.patience_s
        return PreferenceGate(TrainerInTurn(trainer), due=training.due, patience_s=patience_s, budget=budget)

    def _coordinator(self, store: Store, books: Ledger, workers: Any, checkpoints: CheckpointWriter) -> Coordinator:
        config = self.config
        # A serial run, and one at lag 0, has nothing in flight at a step boundary: env state can be part of it.
        at_rest = config.runtime == "serial" or config.max_policy_lag == 0
        plan = RunPlan(
            run_id=store.run_id,
            run_seed=config.seed,
            policy_id=POLICY_ID,
            config_hash=self.segments.config_hash,
            tickets_per_step=config.tickets_per_step,
            max_policy_lag=config.max_policy_lag if config.runtime == "ray" else 0,
            on_stale=config.actors.on_stale,
            total_learner_steps=config.learner_steps,
            total_env_steps=getattr(config, "total_env_steps", None),
            ticket_deadline_s=config.actors.ticket_deadline_s,
            checkpoint_every_steps=config.checkpoint_every_steps,
            eval_every_steps=config.eval.every_steps if self.parts.eval_episodes else None,
            prefetch_steps=1 if config.runtime == "ray" and config.max_policy_lag > 0 else 0,
            consumption_log=self.parts.consumption_log,
            exact_checkpoints=at_rest and self.parts.can_be_exact,
            scored=self.parts.reward is not None,
            stop_patience_s=stop_patience_s(),
            drop_degenerate=getattr(config, "drop_degenerate", False),
        )
        return Coordinator(
            plan,
            tasks=self.parts.work(),
            workers=workers,
            ledger=books,
            checkpoints=checkpoints,
            observers=self.recorders,
            watchdog=Watchdog(warning_s=config.supervision.stall_warning_s, timeout_s=self._stall_timeout_s),
            failures=FailureBudget(max_failures=config.supervision.max_failures),
            stop_requested=self.stop.is_set,
        )

    @property
    def _stall_timeout_s(self) -> float:
        """Whoever waits for a reward service, or for people, ends the run itself when its patience is over."""
        reward = self.parts.reward
        return max(self.config.supervision.stall_timeout_s, 0.0 if reward is None else 1.1 * reward.patience_s)

    def _begin(
        self, coordinator: Coordinator, workers: Any, start: tuple[Path, Manifest] | None, port: int | None
    ) -> None:
        if start is None:
            epoch, version, checkpoint, shard_state = coordinator.begin(), 0, None, None
        else:
            checkpoint, manifest = start
            epoch, version = coordinator.resume(manifest), manifest.step
            shard_state = read_state(checkpoint, "shards") if manifest.tier == "exact" else None
        workers.start(checkpoint, shard_state=shard_state)
        workers.publish_initial(epoch=epoch, version=version)
        coordinator.wait_for_workers()
        info = {
            "start_step": version,
            "epoch": epoch,
            "total_learner_steps": self.config.learner_steps,
            "total_env_steps": getattr(self.config, "total_env_steps", None),
            "kind": self.parts.kind,
            "metrics_url": f"http://{self.config.metrics.host}:{port}/metrics" if port else None,
        }
        for recorder in self.recorders:
            recorder.on_start(info)
        if start is None:
            coordinator.checkpoint_now()  # where a learner that dies early goes back to
            if self.parts.eval_episodes and getattr(self.config.eval, "at_start", False):
                workers.submit_eval(step=0, env_steps=0)

    # Ending.

    def _evaluate(self, coordinator: Coordinator, workers: Any) -> None:
        """Finishes evaluations under way, and after a completed run makes the final one."""
        if coordinator.finished and self.parts.eval_episodes > 0:
            workers.submit_eval(step=coordinator.step, env_steps=coordinator.counters.env_steps)
            coordinator.wait_for_evals(FINAL_EVAL_TIMEOUT_S, lambda: workers.evals_pending)

    def _summary(
        self, status: str, error: str, coordinator: Coordinator | None, books: Ledger, workers: Any
    ) -> dict[str, Any]:
        wall_s = time.perf_counter() - self.began
        summary: dict[str, Any] = {
            "status": status,
            "algorithm": self.config.algorithm_name,
            "seed": self.config.seed,
            "runtime": self.config.runtime,
            "wall_s": wall_s,
        }
        if error:
            summary["error"] = error
        if coordinator is None:
            return summary
        counters = coordinator.counters
        try:
            counts = books.counts().model_dump(exclude={"skipped_steps"})
        except RollcallError:  # whoever asks why finds it in `error`
            counts = None
        lag_mean = counters.lag_sum / counters.lag_count if counters.lag_count else 0.0
        final = self.last_eval if coordinator.finished else None
        if final is not None and final["step"] != coordinator.step:  # the final one failed
            final = None
        return summary | {
            "train_s": counters.train_s,
            "learner_steps": coordinator.step,
            "skipped_steps": counters.skipped_steps,
            **self._work_done(counters),
            "first_eval": _shown(self.first_eval),
            "final_eval": _shown(final),
            "policy_lag": {"max": counters.lag_max, "mean": lag_mean},
            "ledger": counts,
            "restarts": coordinator.restarts,
            "env_restarts": counters.env_restarts,
            "weights_hash": workers.weights_hash,
        }

    def _work_done(self, counters: Counters) -> dict[str, Any]:
        seconds = counters.train_s or float("inf")
        if self.parts.kind == "language":
            return {"generated_tokens": counters.tokens, "tokens_per_s": counters.tokens / seconds}
        return {"env_steps": counters.env_steps, "steps_per_s": counters.env_steps / seconds}

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        write_aside(self.directory / "summary.json", json.dumps(plain(summary), indent=1) + "\n")

    def _tell(self, kind: str, text: str) -> None:
        for recorder in self.recorders:
            recorder.on_event(kind, text)


def _shown(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    keys = ("mean", "std", "n", "unit", "unfinished")
    return None if evaluation is None else {key: evaluation[key] for key in keys if key in evaluation}


class _MetricsRecorder:
    """Feeds the /metrics endpoint, and remembers the newest evaluation for the summary."""

    def __init__(self, watch: RunWatch, run: _Run) -> None:
        self.on_step: Callable[[Any], None] = watch.metrics.on_step
        self.on_event = watch.on_event
        self._metrics = watch.metrics
        self._run = run

    def on_start(self, info: Any) -> None:
        pass

    def on_eval(self, record: Any) -> None:
        self._metrics.on_eval(record)
        self._run.last_eval = record
        if record["step"] == 0:
            self._run.first_eval = record

    def close(self, summary: Any) -> None:
        pass
