"""One simulated run from its beginning to its end, through as many drivers as it takes: as deploy/drive/online.py
begins and resumes a run, and with the audit at the end."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import redis

from rollcall.cluster.books import audit
from rollcall.cluster.books.consumption import LOG_NAME, ConsumptionLog
from rollcall.cluster.books.ledger import Ledger, LedgerPosition, RestorePlan
from rollcall.cluster.books.ledger_table import Attempt, read_table
from rollcall.cluster.books.sealed import SealedBooks, read_index, segments_of
from rollcall.cluster.checkpoint import CheckpointWriter, latest_checkpoint, list_checkpoints
from rollcall.cluster.errors import BooksDamaged, LedgerConflict, StaleEpoch, StoreUnavailable
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.loop.supervision import FailureBudget, Watchdog
from rollcall.cluster.loop.task_source import PromptSource, ShardSource
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import open_store
from tests.simulation.memory_redis import MemoryRedis
from tests.simulation.network import DriverKilled, SimulatedStore
from tests.simulation.referee import Referee
from tests.simulation.schedule import Chances, Schedule, Shape
from tests.simulation.workers import SimulatedWorkers
from tests.simulation.world import Violation, World

DEADLINE_S = 30.0  # of a ticket
STALLED_S = 600.0  # simulated seconds without progress are a deadlock
MAX_DRIVERS = 200
PATIENCE = 400  # polls per ticket, before it is said that the loop goes round and round


@dataclass(frozen=True)
class Outcome:
    """What became of a schedule. `violation`: the promise that was broken; empty if none was."""

    schedule: Schedule
    violation: str = ""
    text: str = ""
    faults: tuple[str, ...] = ()
    steps: int = 0
    tickets: int = 0
    drivers: int = 0
    simulated_s: float = 0.0
    redis_calls: int = 0
    sealed: int = 0  # tickets that were in segments by the end
    counts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def private_redis() -> Iterator[redis.Redis]:
    """A real server for as many schedules as one likes."""
    with tempfile.TemporaryDirectory() as folder, open_store(RedisConfig(), Path(folder)) as store:
        yield store.client


def run(schedule: Schedule, client: redis.Redis | None = None) -> Outcome:
    """Runs a schedule. `client`: of a real server, which forgets everything first; without, Redis is simulated too."""
    client = client or cast(redis.Redis, MemoryRedis())
    client.flushall()
    logging.getLogger("rollcall").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="rollcall-simulated-") as folder:
        return _Run(schedule, client, Path(folder)).outcome()


class _Run:
    def __init__(self, schedule: Schedule, client: redis.Redis, directory: Path) -> None:
        self.schedule, self.shape, self.directory = schedule, schedule.shape, directory
        self.world, self.chances, self.referee = World(), Chances(schedule), Referee(schedule.shape)
        self.store = SimulatedStore(f"run-{schedule.seed}", client, self.world, self.chances)
        self.log = directory / "logs" / LOG_NAME
        self.stopping = False
        self.workers: SimulatedWorkers | None = None
        self.ledger: Ledger | None = None
        self.sealed = 0  # tickets, at the end
        self.polls = PATIENCE * (self.shape.steps * self.shape.batch + 100)
        _write_run_directory(directory, self.store.run_id, self.shape)

    def outcome(self) -> Outcome:
        violation, text = "", ""
        try:
            self._drive()
            self._check_the_end()
        except Violation as found:
            violation, text = found.kind, str(found)
        except Exception as error:
            violation, text = type(error).__name__, repr(error)
        return Outcome(
            self.schedule,
            violation,
            text,
            faults=tuple(self.chances.happened),
            steps=self.referee.step,
            tickets=self.referee.tickets,
            drivers=self.store.driver + 1,
            simulated_s=self.world.now,
            redis_calls=self.store.all_calls,
            sealed=self.sealed,
        )

    def _drive(self) -> None:
        for _ in range(MAX_DRIVERS):
            if self.store.driver == MAX_DRIVERS // 2:
                self.store.mortal = False
            try:
                if self._one_driver():
                    return
            except DriverKilled:
                pass
            except StoreUnavailable:
                pass
            self._take_over()
        raise Violation("no progress", f"{MAX_DRIVERS} drivers did not end the run")

    def _one_driver(self) -> bool:
        """Whether the run is finished."""
        old_ledger, old_workers = self.ledger, self.workers
        coordinator = self._coordinator()
        assert self.workers is not None
        if list_checkpoints(self.directory):
            _, manifest, _ = latest_checkpoint(self.directory)
            epoch, version = coordinator.resume(manifest), manifest.step
        else:
            epoch, version = coordinator.begin(), 0
        self.referee.on_begun(epoch, version)
        self._zombies(old_ledger, old_workers)
        _cut_metrics(self.directory, version)
        self.workers.start(epoch=epoch, version=version)
        coordinator.wait_for_workers()
        if not list_checkpoints(self.directory):
            coordinator.checkpoint_now()
        coordinator.run()
        if not coordinator.finished:
            return False
        workers = self.workers
        coordinator.wait_for_evals(1e9, lambda: bool(workers.evals_pending))
        return True

    def _take_over(self) -> None:
        """The driver is gone, and all its workers with it; another one begins."""
        self.world.everybody_dies()
        self.world.now += 5.0
        self.store.driver_gone()
        self.referee.forgot |= self.store.forgot
        self.stopping = False

    def _zombies(self, ledger: Ledger | None, workers: SimulatedWorkers | None) -> None:
        """Who lives on beside the successor: the books refuse its driver, and its learner's line says of which epoch it
        is."""
        here = self.store.driver
        unlogged = workers.learner.unlogged if workers is not None else None
        if unlogged is not None and self.chances.happens("zombie_learner", here):
            order, rollouts = unlogged
            ConsumptionLog(self.log).append(order.step, order.epoch, rollouts)
        if (
            ledger is not None
            and ledger.epoch
            and not self.store.forgot
            and self.chances.happens("zombie_driver", here)
        ):
            for write in (lambda: ledger.refuse_duplicate((0, 1)), lambda: ledger.commit(0, [(0, 1)])):
                try:
                    write()
                except StaleEpoch:
                    continue
                except LedgerConflict as error:
                    raise Violation("fence", f"a driver of epoch {ledger.epoch} was answered: {error}") from error
                raise Violation("fence", f"a driver of epoch {ledger.epoch} wrote after epoch {self.referee.epoch}")

    def _coordinator(self) -> Coordinator:
        shape, driver = self.shape, self.store.driver
        self.workers = SimulatedWorkers(self.world, self.chances, self.referee, shape, self.log, max_polls=self.polls)
        books = SealedBooks(self.directory, least=shape.seals, most=3 * shape.seals) if shape.seals else None
        self.ledger = _WatchedLedger(self.store, tickets_per_step=shape.batch, books=books)
        plan = RunPlan(
            run_id=self.store.run_id,
            run_seed=self.schedule.seed,
            policy_id="policy",
            config_hash="c",
            tickets_per_step=shape.batch,
            max_policy_lag=shape.lag,
            on_stale="drop" if shape.drops_stale else "wait",
            total_learner_steps=shape.steps,
            total_env_steps=None,
            ticket_deadline_s=DEADLINE_S,
            checkpoint_every_steps=shape.checkpoint_every,
            eval_every_steps=shape.eval_every,
            prefetch_steps=1 if shape.lag else 0,
            consumption_log=self.log,
            exact_checkpoints=shape.exact,
            scored=shape.scored,
            stop_patience_s=20.0,
            drop_degenerate=shape.language,
        )
        coordinator = Coordinator(
            plan,
            tasks=PromptSource(range(50), run_seed=self.schedule.seed, samples_per_prompt=2)
            if shape.language
            else ShardSource(shape.actors, "fragment"),
            workers=self.workers,
            ledger=self.ledger,
            checkpoints=CheckpointWriter(self.directory, keep=shape.keep),
            observers=[_Recorder(self, driver)],
            watchdog=Watchdog(warning_s=STALLED_S, timeout_s=STALLED_S, clock=self.world.clock),
            failures=FailureBudget(max_failures=10**6, clock=self.world.clock),
            stop_requested=lambda: self.stopping,
            clock=self.world.clock,
        )
        self.store.waits_no_longer = coordinator.stops_while_store_is_away
        return coordinator

    def _check_the_end(self) -> None:
        self.store.mortal = False
        assert self.ledger is not None
        counts = self.ledger.counts()
        expected = self.shape.steps * self.shape.batch
        if not counts.balanced or counts.in_flight or counts.committed != expected:
            raise Violation("counts", f"{counts}, where {expected} were to be committed")
        self.referee.at_end({attempt.key: (attempt.state, attempt.final) for attempt in self._booked()})
        with patch.object(audit, "inspect_store", lambda *_: nullcontext(self.store)):
            found = audit.audit_run(self.directory)
        if found:
            raise Violation("audit", "; ".join(map(str, found[:3])))

    def _booked(self) -> Iterator[Attempt]:
        """Every attempt, sealed or in Redis."""
        index = read_index(self.directory)
        self.sealed = index.end
        for segment in segments_of(self.directory, index):
            if isinstance(segment, BooksDamaged):
                raise Violation("sealed", str(segment))
            yield from segment.attempts.attempts()
        yield from (Attempt.parse(name, value) for name, value in read_table(self.store).attempts.items())


class _WatchedLedger(Ledger):
    """Says when it restores."""

    def restore(self, position: LedgerPosition | None, *, above_epoch: int = 0) -> RestorePlan:
        assert isinstance(self._store, SimulatedStore)
        self._store.restoring = True
        try:
            return super().restore(position, above_epoch=above_epoch)
        finally:
            self._store.restoring = False


class _Recorder:
    """metrics.jsonl, as far as the audit reads it. Here a driver dies between commit and checkpoint, and stops."""

    def __init__(self, run: _Run, driver: int) -> None:
        self._run, self._driver = run, driver
        self._path = run.directory / "metrics.jsonl"

    def on_step(self, record: dict[str, Any]) -> None:
        here = (self._driver, int(record["step"]), int(record["epoch"]))
        with self._path.open("a") as file:
            file.write(json.dumps({name: record[name] for name in ("step", "epoch", "lag_max")}) + "\n")
        if self._run.chances.happens("stopped", *here):
            self._run.stopping = True
        self._may_die("metrics", *here)

    def on_eval(self, record: dict[str, Any]) -> None: ...

    def on_event(self, kind: str, text: str) -> None:
        if kind == "restored":
            _cut_metrics(self._run.directory, int(text.split()[1]))
        if kind == "checkpoint":
            self._may_die("checkpoint", self._driver, int(text.split()[1]), self._run.referee.epoch)

    def _may_die(self, *here: str | int) -> None:
        if self._run.store.mortal and self._run.chances.happens("driver_killed_told", *here):
            raise DriverKilled


def _cut_metrics(directory: Path, step: int) -> None:
    """As the recorders do when a run goes back to a step."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:step]))


def _write_run_directory(directory: Path, run_id: str, shape: Shape) -> None:
    (directory / "redis").mkdir(parents=True)
    (directory / "redis" / "run_id").write_text(run_id)
    (directory / "config.yaml").write_text(f"max_policy_lag: {shape.lag}\n")
