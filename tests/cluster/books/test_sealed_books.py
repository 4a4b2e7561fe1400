"""Sealing: what every kept checkpoint covers is in segments and no longer in Redis, whenever a driver is killed; and
an audit says the same before and after, and names a segment that is damaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books import sealed, segment_file
from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.columns import AttemptColumns
from rollcall.cluster.books.history import History
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.ledger_table import Attempt, Key, read_table, recount
from rollcall.cluster.books.sealed import SealedBooks, read_index, segments_of
from rollcall.cluster.errors import BooksDamaged, LedgerConflict
from rollcall.cluster.store.store import Store
from tests.cluster.books.test_audit import Forged

Run = Any  # the SimulatedRun of conftest.py


class Killed(BaseException):
    """As SIGKILL would: nobody cleans up."""


def everything(run: Run) -> dict[Key, Attempt]:
    """Every attempt, from wherever it is."""
    found = {}
    for segment in segments_of(run.directory, read_index(run.directory)):
        assert not isinstance(segment, BooksDamaged)
        found.update({attempt.key: attempt for attempt in segment.attempts.attempts()})
    for item in read_table(run.store).attempts.items():
        attempt = Attempt.parse(*item)
        assert found.setdefault(attempt.key, attempt) == attempt
    return found


@pytest.mark.parametrize("seed", range(12))
def test_sealed_or_not_a_run_with_faults_has_the_same_books(
    seed: int, tmp_path: Path, redis_store: Store, simulated_run: Run
) -> None:
    runs = []
    for name, more in (("open", {}), ("sealed", {"keep": 1 + seed % 3, "rotate_bytes": 900})):
        store = Store(f"{tmp_path.name}-{name}-{seed}", redis_store._config, redis_store.client)
        run = simulated_run(tmp_path / name, store, seed=seed, total=24, **more).begin().finish()
        assert audit_run(run.directory) == []
        runs.append(run)
    before, after = runs
    assert read_index(after.directory).end > 0
    assert len(read_table(after.store).attempts) < len(read_table(before.store).attempts)
    assert everything(after) == everything(before)
    assert after.ledger.counts() == before.ledger.counts()
    assert after.ledger.counts() == recount(
        everything(after).values(),
        skipped_steps=after.ledger.counts().skipped_steps,
        duplicates_refused=after.ledger.counts().duplicates_refused,
    )


@pytest.mark.parametrize("seed", range(20))
def test_whatever_redis_forgets_a_sealed_run_ends_with_balanced_books(
    seed: int, tmp_path: Path, store: Store, simulated_run: Run
) -> None:
    """Killed up to three times, and taken up from any kept checkpoint; Redis as it was at some moment, or empty."""
    chance = random.Random(seed)
    run = simulated_run(tmp_path / "run", store, seed=seed, total=20, keep=chance.choice([1, 2, 3]), rotate_bytes=900)
    run.begin()
    for _ in range(chance.randrange(1, 4)):
        moments: list[dict[str, dict[str, str]]] = [{}]
        for _ in range(chance.randrange(150)):
            if run.step >= run.total:
                break
            run.tick()
            moments.append(run.dump())
        run.put_back(chance.choice([moments[0], moments[-1], *moments[-20:]]))
        kept = run.kept()
        if kept:
            chosen = chance.choice(kept)
            for later in kept[kept.index(chosen) + 1 :]:
                shutil.rmtree(later)
            run.resume(run.position_of(chosen))
        else:
            run.resume()
        assert audit_run(run.directory) == []
    run.finish()
    assert audit_run(run.directory) == []
    assert run.ledger.counts().committed == run.total * run.batch


SEAMS = {
    "before the segment is written": (segment_file, "write_segment", "before"),
    "before it is renamed": (Path, "replace", "before"),
    "after it is renamed": (segment_file, "sync_directory", "before"),
    "before the index": (SealedBooks, "_book", "before"),
    "after the index": (SealedBooks, "_book", "after"),
    "in the midst of trimming": (Ledger, "_write", "trim"),
}


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("redis_lost", [False, True])
def test_a_driver_that_is_killed_while_it_seals_leaves_whole_books(
    seam: str, redis_lost: bool, tmp_path: Path, store: Store, simulated_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = simulated_run(tmp_path / "run", store, seed=3, total=24, keep=2).begin().run_to(9)
    run.run_to(11)
    owner, name, when = SEAMS[seam]
    target = sealed if name in ("write_segment", "sync_directory") and owner is segment_file else owner
    if name == "sync_directory":
        target = segment_file
    original = getattr(target, name)

    def killing(*args: Any, **options: Any) -> Any:
        if name == "replace" and ".seg" not in str(args[0]):
            return original(*args, **options)
        if when == "trim" and args[1] != "trim_steps":
            return original(*args, **options)
        if when == "after":
            original(*args, **options)
        raise Killed

    monkeypatch.setattr(target, name, killing)
    with pytest.raises(Killed):
        run.run_to(24)
    monkeypatch.undo()
    assert audit_run(run.directory) == [], "as it was left"
    if redis_lost:
        run.put_back({})
    run.resume()
    assert audit_run(run.directory) == [], "as it was taken up"
    assert not list(run.directory.glob("books/*.new"))
    end = read_index(run.directory).end
    assert all(int(name.partition(":")[0]) >= end for name in read_table(store).attempts), "no ticket is in both"
    run.finish()
    assert audit_run(run.directory) == []


def test_every_kept_checkpoint_can_be_gone_back_to_and_no_older_one(
    tmp_path: Path, store: Store, simulated_run: Run
) -> None:
    run = simulated_run(tmp_path / "run", store, seed=7, total=40, keep=3).begin()
    run.faults = False
    run.run_to(9)
    old = run.newest_position()
    run.run_to(31)
    assert len(run.kept()) == 3
    for checkpoint in reversed(run.kept()):
        position = run.position_of(checkpoint)
        plan = run.new_ledger().restore(position)
        assert plan.step == position.step
        assert plan.next_ticket_id >= position.next_ticket_id
        assert plan.reissue[0][0] == position.low_water
    with pytest.raises(LedgerConflict, match=r"checkpoint of step 9 .* are sealed"):
        run.new_ledger().restore(old)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [flip_a_byte, cut, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("of", ["books/attempts-*.seg", "logs/consumption-*.seg"])
def test_a_damaged_segment_is_named_and_buries_nothing(
    of: str, damage: Callable[[Path], None], tmp_path: Path, store: Store, simulated_run: Run
) -> None:
    run = simulated_run(tmp_path / "run", store, seed=5, total=40, keep=1, rotate_bytes=900).begin().finish()
    segments = sorted(run.directory.glob(of))
    assert len(segments) > 2
    damage(segments[1])
    found = [str(discrepancy) for discrepancy in audit_run(run.directory)]
    if of.startswith("logs") and damage is Path.unlink:
        assert any("does not follow the line before it" in line for line in found), found
    else:
        assert segments[1].name in found[0], found
        assert len(found) < 4, found


def test_a_damaged_index_is_named(tmp_path: Path, store: Store, simulated_run: Run) -> None:
    run = simulated_run(tmp_path / "run", store, seed=5, total=20, keep=1).begin().finish()
    (run.directory / "books" / "index.json").write_text("{")
    assert [str(found).partition(": cannot")[0] for found in audit_run(run.directory)] == [
        "sealed books: books/index.json"
    ]
    with pytest.raises(BooksDamaged, match=r"index\.json: cannot be read"):
        SealedBooks(run.directory)


def test_what_is_wrong_with_a_sealed_ticket_is_said_as_of_any_other(
    tmp_path: Path, store: Store, simulated_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same forgery, of a run that is sealed and of one that is not: the same lines."""
    said = []
    for name, keep in (("open", None), ("sealed", 1)):
        own = Store(f"{store.run_id}-{name}", store._config, store.client)
        run = simulated_run(tmp_path / name, own, seed=13, total=30, keep=keep).begin().finish()
        text = run.log_path.read_text().splitlines(keepends=True)
        run.log_path.unlink()
        log = run.new_log()
        for line in text[:4] + text[5:]:  # a line less, with all checksums
            record = json.loads(line)
            log.append(record["step"], record["epoch"], [Forged(record)])
        said.append([str(found) for found in audit_run(run.directory)])
    assert said[0] == said[1]
    assert len(said[0]) == 1 and "the consumption log has 0 lines of it at this step and not 1" in said[0][0]


def test_history_as_columns_is_history_as_records() -> None:
    chance = random.Random(1)
    history, expected = History(), {}
    for part in range(3):
        attempts = []
        for ticket in range(part * 3000, part * 3000 + 3000):
            if chance.random() < 0.5:
                attempts.append(Attempt(ticket, 1, "dropped", 1, version=chance.randrange(-1, 9), reason="stale"))
                attempts.append(Attempt(ticket, 2, "rolled_back", 1, version=3, step=chance.randrange(99)))
            step = ticket // 4
            attempts.append(
                Attempt(ticket, 1 + len(attempts[-2:]), "committed", 2, version=step, step=step, final=True)
            )
        attempts = list({attempt.key: attempt for attempt in attempts}.values())
        history = history.extended(attempts)
        expected.update({attempt.key: attempt for attempt in attempts})
    for first in (0, 1, 2500, 7001):
        columns = history.from_ticket(first).columns(first=first)
        assert list(columns.attempts()) == sorted(
            (attempt for key, attempt in expected.items() if key[0] >= first), key=lambda attempt: attempt.key
        )
    whole = history.columns()
    assert whole.counts() == recount(expected.values(), skipped_steps=0, duplicates_refused=0)
    assert list(AttemptColumns.of(whole.attempts()).attempts()) == list(whole.attempts())
