"""The books of a long run: so many tickets through the real ledger on a private Redis, the real log of the learner and
real checkpoints, without models; taken up from kept checkpoints on the way. `python -m benchmarks.prove_books --tickets
20000000`; prints one JSON object, and fails where a target is missed. A million tickets take some two minutes.

In place of weights there is a digest of all that was consumed, in order: it must end as in a run without a resume."""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rollcall.cluster.books.consumption import LOG_NAME, ConsumptionLog, newest_epoch
from rollcall.cluster.books.ledger import Key, Ledger
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.sealed import SealedBooks, read_index
from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, list_checkpoints, read_manifest
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.loop.run_checkpoints import RunCheckpoints
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store, open_store

FAULTS = 0.01  # of attempts, dropped and made again
REDIS = RedisConfig(start_timeout_s=300.0, operation_timeout_s=60.0)  # also on a machine that has much else to do
REDIS_BYTES, RESTORE_S, AUDIT_S, AUDIT_BYTES = 200 << 20, 5.0, 60.0, 500 << 20  # the targets


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the consumption log asks of a trajectory."""

    header: Header
    min_policy_version: int
    reward_model_version: str = ""

    def digest(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.header.ticket_id.to_bytes(8, "little"))


class LongRun:
    """What coordinator, actors and learner do to the books, in their order, a learner step at a time."""

    def __init__(self, directory: Path, *, tickets: int, batch: int, seed: int) -> None:
        self.directory, self.tickets, self.batch = directory, tickets, batch
        self.random = random.Random(seed)
        self.redis_bytes = 0
        self.restores_s: list[float] = []
        (directory / "config.yaml").write_text("max_policy_lag: 0\n")

    def plan(self, store: Store) -> RunPlan:
        steps = self.tickets // self.batch
        return RunPlan(
            run_id=store.run_id,
            run_seed=0,
            policy_id="none",
            config_hash="none",
            tickets_per_step=self.batch,
            max_policy_lag=0,
            on_stale="drop",
            total_learner_steps=steps,
            total_env_steps=None,
            ticket_deadline_s=60.0,
            checkpoint_every_steps=max(1, steps // 10),
            eval_every_steps=None,
            prefetch_steps=0,
            consumption_log=self.directory / "logs" / LOG_NAME,
            exact_checkpoints=False,
        )

    def open(self, store: Store, manifest: Manifest | None) -> int:
        """As a driver opens its books; `manifest`: of the checkpoint that it goes on from. Returns its step."""
        self.store, plan = store, self.plan(store)
        self.ledger = Ledger(store, tickets_per_step=self.batch, books=SealedBooks(self.directory))
        self.checkpoints = RunCheckpoints(plan, CheckpointWriter(self.directory, keep=3), self.ledger)
        self.counters, self.consumed = Counters(), ""
        if manifest is None:
            self.ledger.open_epoch()
        else:
            began = time.perf_counter()
            position = LedgerPosition.model_validate(manifest.ledger)
            again = self.ledger.restore(position, above_epoch=newest_epoch(plan.consumption_log))
            self.restores_s.append(time.perf_counter() - began)
            self.counters.next_ticket_id = again.next_ticket_id
            self.again = list(again.reissue)
            self.consumed = str(manifest.driver["work"]["consumed"])
            self.checkpoints.back_at(manifest.step)
        self.log = ConsumptionLog(plan.consumption_log)
        if manifest is None:
            self.again = []
            self.checkpoint(0)
        return 0 if manifest is None else manifest.step

    def steps(self, first: int, end: int) -> None:
        with (self.directory / "metrics.jsonl").open("a") as metrics:
            for step in range(first, end):
                batch = self.produce(step)
                self.log.append(step, self.ledger.epoch, [Rollout(Header(*key, 1), step) for key in batch])
                self.consumed = folded(self.consumed, [ticket for ticket, _ in batch])
                self.ledger.commit(step, batch)
                metrics.write(f'{{"step": {step}, "epoch": {self.ledger.epoch}}}\n')
                if self.checkpoints.is_due(step + 1):
                    metrics.flush()
                    self.checkpoint(step + 1)

    def produce(self, step: int) -> list[Key]:
        """A batch, in ticket order; some of it at a second or third attempt."""
        keys, self.again = self.again[: self.batch], self.again[self.batch :]
        missing = self.batch - len(keys)
        keys += [(self.counters.next_ticket_id + i, 1) for i in range(missing)]
        self.counters.next_ticket_id += missing
        done: list[Key] = []
        while keys:
            self.ledger.issue(keys)
            lost = [key for key in keys if self.random.random() < FAULTS]
            self.ledger.drop([(key, "actor_died", False) for key in lost])
            through = sorted({*keys} - {*lost})
            self.ledger.produced([(key, step) for key in through])
            done += through
            keys = [(ticket, attempt + 1) for ticket, attempt in lost]
        return sorted(done)

    def checkpoint(self, step: int) -> None:
        directory = self.checkpoints.directory(step)
        (directory / "weights.json").write_text("{}")
        self.checkpoints.make(directory)
        tasks: dict[str, Any] = {"consumed": self.consumed}
        self.checkpoints.write(step, epoch=self.ledger.epoch, counters=self.counters, tasks=tasks, shard_states=None)
        self.look()

    def look(self) -> None:
        used: Mapping[str, Any] = self.store.client.info("memory")
        self.redis_bytes = max(self.redis_bytes, int(used["used_memory_peak"]))

    def begin_a_step(self, step: int) -> None:
        """And die in it: some tickets are leased, some produced, and the learner has told of a batch."""
        batch = self.produce(step)
        self.log.append(step, self.ledger.epoch, [Rollout(Header(*key, 1), step) for key in batch])


def folded(consumed: str, tickets: list[int]) -> str:
    """In place of a learner step."""
    return xxhash.xxh3_128_hexdigest(f"{consumed}{tickets}".encode())


def undisturbed(tickets: int, batch: int) -> str:
    """What a run without a fault ends with."""
    consumed = ""
    for step in range(tickets // batch):
        consumed = folded(consumed, list(range(step * batch, step * batch + batch)))
    return consumed


def drive(run: LongRun, resumes: int) -> dict[str, Any]:
    """From the first ticket to the last, with a new driver, and a new redis-server, after each kill."""
    total = run.tickets // run.batch
    stops = [*sorted(run.random.sample(range(1, total), resumes)), total]
    trained_s, opened_s = 0.0, []
    for number, stop in enumerate(stops):
        began = time.perf_counter()
        with open_store(REDIS, run.directory) as store:
            store.acquire_lock()
            opened_s.append(time.perf_counter() - began)
            step = run.open(store, chosen(run) if number else None)
            began = time.perf_counter()
            run.steps(step, stop)
            if stop < total:
                run.begin_a_step(stop)
            trained_s += time.perf_counter() - began
            print(f"{stop} of {total} steps", file=sys.stderr, flush=True)
    (run.directory / "summary.json").write_text(json.dumps({"status": "completed", "learner_steps": total}))
    with open_store(REDIS, run.directory) as store:  # once more, at the full length
        store.acquire_lock()
        run.open(store, read_manifest(list_checkpoints(run.directory)[-1]))
        run.look()
    return {"tickets_per_s": round(run.tickets / trained_s), "open_s": round(max(opened_s), 2)}


def chosen(run: LongRun) -> Manifest:
    """One of the kept checkpoints: not always the newest."""
    kept = list_checkpoints(run.directory)
    at = run.random.randrange(len(kept))
    for later in kept[at + 1 :]:
        shutil.rmtree(later)
    return read_manifest(kept[at])


def audited(directory: Path) -> dict[str, Any]:
    """In a process of its own, whose memory is all the audit's."""
    command = [sys.executable, "-m", "benchmarks.prove_books", "--audit", str(directory)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def audit(directory: Path) -> dict[str, Any]:
    from rollcall.cluster.books.audit import audit_run

    began = time.perf_counter()
    found = [str(discrepancy) for discrepancy in audit_run(directory)]
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)  # since its exec
    return {"audit_s": round(time.perf_counter() - began, 1), "audit_bytes": 1024 * int(peak), "found": found[:10]}


def disk(directory: Path, tickets: int) -> Iterator[tuple[str, float]]:
    """Bytes per ticket."""
    for name in ("books", "logs", "redis", "checkpoints"):
        size = sum(path.stat().st_size for path in (directory / name).rglob("*") if path.is_file())
        yield f"{name}_bytes_per_ticket", round(size / tickets, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tickets", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=250, help="tickets per learner step")
    parser.add_argument("--resumes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where the run lies; default: a temporary one, removed again")
    parser.add_argument("--audit", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.audit is not None:
        print(json.dumps(audit(args.audit)))
        return 0
    tickets = args.tickets - args.tickets % args.batch
    with tempfile.TemporaryDirectory(prefix="rollcall-books-") as aside:
        directory = args.directory or Path(aside) / "run"
        directory.mkdir(parents=True)
        run = LongRun(directory, tickets=tickets, batch=args.batch, seed=args.seed)
        result: dict[str, Any] = {"tickets": tickets, "resumes": args.resumes, **drive(run, args.resumes)}
        result |= {"redis_bytes": run.redis_bytes, "restore_s": round(max(run.restores_s), 2)}
        result |= {**audited(directory), **dict(disk(directory, tickets))}
        result["segments"] = len(read_index(directory).segments)
        result["driver_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        result["same_as_undisturbed"] = run.consumed == undisturbed(tickets, args.batch)
    result["kept"] = (
        result["redis_bytes"] < REDIS_BYTES
        and result["restore_s"] < RESTORE_S
        and result["audit_s"] < AUDIT_S
        and result["audit_bytes"] < AUDIT_BYTES
        and not result["found"]
        and result["same_as_undisturbed"]
    )
    print(json.dumps(result))
    return 0 if result["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
