"""One redis-server for the tests of the books, and a small run that drives the ledger and the consumption log in the
order in which the coordinator and the learner do: produce, consume, log, commit, write metrics, checkpoint."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.consumption import LOG_NAME, ROTATE_BYTES, ConsumptionLog, newest_epoch
from rollcall.cluster.books.ledger import Ledger, LedgerPosition
from rollcall.cluster.books.ledger_table import ledger_keys
from rollcall.cluster.books.sealed import SealedBooks
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store, open_store

_numbers = itertools.count()


@pytest.fixture(scope="session")
def redis_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store on a private server of the session."""
    with open_store(RedisConfig(), tmp_path_factory.mktemp("books")) as store:
        yield store


@pytest.fixture
def store(redis_store: Store) -> Store:
    """A store with no keys yet, on the session's server."""
    return Store(f"test-{next(_numbers)}", RedisConfig(), redis_store.client)


@dataclass(frozen=True)
class Consumable:
    header: Header
    min_policy_version: int
    reward_model_version: str = ""

    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


class SimulatedRun:
    """A run without actors or learner: what they would do is drawn from a seed. Leaves a run directory to audit."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        *,
        seed: int = 0,
        batch: int = 3,
        lag: int = 1,
        total: int = 8,
        keep: int | None = None,
        rotate_bytes: int = ROTATE_BYTES,
    ) -> None:
        """`keep`: so many checkpoints are kept, and what they all cover is sealed, three tickets at a time or more."""
        self.directory, self.store, self.batch, self.lag, self.total = directory, store, batch, lag, total
        self.random = random.Random(seed)
        self.keep, self.rotate_bytes = keep, rotate_bytes
        self.ledger = self.new_ledger()
        self.faults = True
        self.leased: list[tuple[int, int]] = []
        self.ready: list[tuple[int, tuple[int, int]]] = []
        self.reissue: deque[tuple[int, int]] = deque()
        self.next_ticket_id = 0
        self._reset(LedgerPosition.start(batch))
        (directory / "redis").mkdir(parents=True)
        (directory / "redis" / "run_id").write_text(store.run_id)
        address: dict[str, Any] = store.client.get_connection_kwargs()
        (directory / "redis" / "url").write_text(f"unix://:{address['password']}@{address['path']}")
        (directory / "config.yaml").write_text(f"max_policy_lag: {lag}\n")

    def new_ledger(self) -> Ledger:
        books = None if self.keep is None else SealedBooks(self.directory, least=3, most=8)
        return Ledger(self.store, tickets_per_step=self.batch, books=books)

    def new_log(self) -> ConsumptionLog:
        return ConsumptionLog(self.log_path, rotate_bytes=self.rotate_bytes)

    @property
    def log_path(self) -> Path:
        return self.directory / "logs" / LOG_NAME

    def begin(self) -> SimulatedRun:
        self.ledger.open_epoch()
        self.log = self.new_log()
        return self

    def run_to(self, step: int) -> SimulatedRun:
        while self.step < step:
            self.tick()
        return self

    def finish(self) -> SimulatedRun:
        self.run_to(self.total)
        self.write_summary("completed")
        return self

    def tick(self) -> None:
        """One thing happens."""
        live = self.step * self.batch + len(self.leased) + len(self.ready)
        if live < min(self.step + self.lag + 1, self.total) * self.batch and self.random.random() < 0.5:
            key = self.reissue.popleft() if self.reissue else (self.next_ticket_id, 1)
            self.next_ticket_id = max(self.next_ticket_id, key[0] + 1)
            self.ledger.issue([key])
            self.leased.append(key)
        elif self.leased and self.random.random() < 0.7:
            key = self.leased.pop(self.random.randrange(len(self.leased)))
            if self.faults and self.random.random() < 0.15:
                self._drop(key, "actor_died", final=self.random.random() < 0.3)
            else:
                self.ledger.produced([(key, self.step)])
                self.ready.append((self.step, key))
        elif self.faults and self.ready and self.random.random() < 0.1:
            self.ledger.refuse_duplicate(self.ready[0][1])
        else:
            self._learn()

    def _learn(self) -> None:
        for version, key in [entry for entry in self.ready if self.step - entry[0] > self.lag]:
            self.ready.remove((version, key))
            self._drop(key, "stale", final=False)
        if len(self.ready) < self.batch:
            return
        self.ready.sort()
        batch, self.ready = self.ready[: self.batch], self.ready[self.batch :]
        self.log.append(self.step, self.ledger.epoch, [Consumable(Header(*key, 1), version) for version, key in batch])
        if self.faults and self.random.random() < 0.05:
            self.resume()  # the learner died with a batch in its hands
            return
        self.ledger.commit(self.step, [key for _, key in batch], skipped=self.random.random() < 0.1)
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "epoch": self.ledger.epoch}) + "\n")
        self.step += 1
        if self.step % 3 == 0:
            self.checkpoint()

    def _drop(self, key: tuple[int, int], reason: str, *, final: bool) -> None:
        self.ledger.drop([(key, reason, final)])
        if not final:
            self.reissue.append((key[0], key[1] + 1))

    def checkpoint(self) -> LedgerPosition:
        position = self.ledger.snapshot(step=self.step, next_ticket_id=self.next_ticket_id)
        folder = self.directory / "checkpoints" / f"step-{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {"step": self.step, "epoch": self.ledger.epoch, "ledger": position.model_dump(mode="json")}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if self.keep is not None:
            for old in self.kept()[: -self.keep]:
                shutil.rmtree(old)
            self.ledger.seal(self.position_of(self.kept()[0]).low_water)
        return position

    def kept(self) -> list[Path]:
        return sorted(self.directory.glob("checkpoints/step-*"))

    @staticmethod
    def position_of(checkpoint: Path) -> LedgerPosition:
        return LedgerPosition.model_validate(json.loads((checkpoint / "manifest.json").read_text())["ledger"])

    def newest_position(self) -> LedgerPosition | None:
        return self.position_of(self.kept()[-1]) if self.kept() else None

    def resume(self, position: LedgerPosition | None = None) -> SimulatedRun:
        """As a new driver does after a kill: a new ledger, from the newest checkpoint."""
        self.ledger = self.new_ledger()
        position = position or self.newest_position()
        plan = self.ledger.restore(position, above_epoch=newest_epoch(self.log_path))
        self._reset(position or LedgerPosition.start(self.batch))
        self.reissue, self.next_ticket_id = deque(plan.reissue), plan.next_ticket_id
        self.log = self.new_log()
        return self

    def _reset(self, position: LedgerPosition) -> None:
        self.step: int = position.step
        self.next_ticket_id = position.next_ticket_id
        self.leased, self.ready, self.reissue = [], [], deque()

    def write_summary(self, status: str) -> None:
        counts = self.ledger.counts().model_dump()
        summary = {"status": status, "learner_steps": self.step, "ledger": counts}
        (self.directory / "summary.json").write_text(json.dumps(summary))

    # What Redis holds, as a whole: to make it forget.

    def dump(self) -> dict[str, dict[Any, Any]]:
        return {key: self.store.client.hgetall(key) for key in ledger_keys(self.store)}

    def put_back(self, dump: dict[str, dict[Any, Any]]) -> None:
        for key in ledger_keys(self.store):
            self.store.client.delete(key)
            if dump.get(key):
                self.store.client.hset(key, mapping=dump[key])


@pytest.fixture
def simulated_run() -> type[SimulatedRun]:
    return SimulatedRun
