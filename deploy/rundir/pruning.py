"""What neither a resume nor an audit of a run needs is removed from Redis and the disk. The run must stand still."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from rollcall.cluster.books.consumption import ConsumptionLog
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.sealed import SealedBooks
from rollcall.cluster.checkpoint import latest_checkpoint, list_checkpoints
from rollcall.cluster.loop.run_checkpoints import covered_by_all
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store, open_store
from rollcall.deploy.rundir.files import consumption_log

REWRITE_TIMEOUT_S = 120.0


def prune_run(directory: Path, *, newest_only: bool = False, redis: RedisConfig | None = None) -> Iterator[str]:
    """Yields a line for each thing that was done. Killed at any point, it can be asked again.

    Raises:
      BadInput, StoreUnavailable: its Redis cannot be had.
      BooksDamaged: its segments are not as they were written.
      CheckpointDamaged: there is no checkpoint that could be gone on from.
      RunAlive: a driver runs it.
    """
    newest, manifest, _ = latest_checkpoint(directory)
    position = LedgerPosition.model_validate(manifest.ledger)
    with open_store(redis or RedisConfig(), directory) as store:
        store.acquire_lock()
        for path in [*directory.glob("checkpoints/.making-*"), *directory.glob("*.new"), *directory.glob("logs/*.new")]:
            _remove(path)
            yield f"removed {path.relative_to(directory)}: left half written"
        if newest_only:
            for path in list_checkpoints(directory):
                if path != newest:
                    _remove(path)
                    yield f"removed {path.relative_to(directory)}"
        yield from _seal(directory, store, position)
        log = consumption_log(directory)
        if log.exists() and (size := log.stat().st_size):
            ConsumptionLog(log).rotate()
            yield f"folded {size:,} bytes of {log.relative_to(directory.resolve())}"
        if store.private:
            before, after = _rewritten(store, directory / "redis")
            yield f"redis: {before:,} bytes on the disk, now {after:,}"


def _seal(directory: Path, store: Store, position: LedgerPosition) -> Iterator[str]:
    books = SealedBooks(directory)
    for name in books.clear():
        yield f"removed books/{name}: of a segment that was never finished"
    first, ledger = books.end, Ledger(store, tickets_per_step=position.tickets_per_step, books=books)
    if ledger.take_up(position):
        ledger.seal(covered_by_all(directory), whole=True)
    yield f"sealed {books.end - first:,} tickets; {books.end:,} of {position.next_ticket_id:,} are"


def _rewritten(store: Store, folder: Path) -> tuple[int, int]:
    """Sizes of what a private server has on the disk, before and after it has written it anew."""
    before = _size(folder)
    store.call(lambda client: client.bgrewriteaof())
    give_up = time.monotonic() + REWRITE_TIMEOUT_S
    while time.monotonic() < give_up:
        info = store.call(lambda client: client.info("persistence"))
        if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
            break
        time.sleep(0.05)
    return before, _size(folder)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
