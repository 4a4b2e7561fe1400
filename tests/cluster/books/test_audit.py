"""The audit finds nothing in balanced books, and names what is wrong in books that were tampered with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.consumption import ConsumptionLog, read_log
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store, inspect_store, open_store

Run = Any  # the SimulatedRun of conftest.py
SEED = 13  # its run has drops, duplicates, a learner's death, and a skipped step


@pytest.fixture
def finished(tmp_path: Path, store: Store, simulated_run: Run) -> Run:
    return simulated_run(tmp_path / "run", store, seed=SEED).begin().finish()


class Books:
    """A finished run as a forger sees it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.client = run.store.client

    def key(self, name: str) -> str:
        return str(self.run.store.key("ledger", name))

    def committed(self, step: int, nth: int = 0) -> str:
        """The nth attempt of a step's batch, as its name in the ledger."""
        return str(self.client.hget(self.key("steps"), str(step)).split("|")[2].split(",")[nth])

    def ended_as(self, state: str) -> str:
        attempts = self.client.hgetall(self.key("attempts"))
        return str(next(name for name in sorted(attempts) if attempts[name].startswith(state)))

    def entry(self, name: str) -> list[str]:
        return list(self.client.hget(self.key("attempts"), name).split("|"))

    def set(self, name: str, index: int, value: str) -> None:
        entry = self.entry(name)
        entry[index] = value
        self.client.hset(self.key("attempts"), name, "|".join(entry))

    def log(self, change: Callable[[list[str]], list[str]]) -> None:
        lines = self.run.log_path.read_text().splitlines(keepends=True)
        self.run.log_path.write_text("".join(change(lines)))

    def line_of(self, name: str) -> int:
        """The index of the line of a committed attempt."""
        ticket, attempt = name.split(":")
        lines = read_log(self.run.log_path).lines
        return next(n - 1 for n, line in lines if (line.ticket_id, line.attempt) == (int(ticket), int(attempt)))

    def forge_log(self, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Changes the log and makes all checksums fit again."""
        records = [json.loads(line) for line in self.run.log_path.read_text().splitlines()]
        change(records)
        self.run.log_path.unlink()
        log = ConsumptionLog(self.run.log_path)
        for record in records:
            log.append(record["step"], record["epoch"], [Forged(record)])

    def rewrite(self, path: str, change: Callable[[Any], None]) -> None:
        file = self.run.directory / path
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


class Forged:
    def __init__(self, record: dict[str, Any]) -> None:
        self.header = Header(record["ticket_id"], record["attempt"], 0)
        self.min_policy_version, self._digest = record["min_version"], record["digest"]
        self.reward_model_version = record.get("reward_version", "")

    def digest(self) -> str:
        return str(self._digest)


def named(name: str) -> str:
    ticket, attempt = name.split(":")
    return f"ticket {ticket} attempt {attempt}"


# Each tampers with the books and returns a pattern that one of the audit's lines must match.


def entry_removed(books: Books) -> str:
    name = books.committed(2)
    books.client.hdel(books.key("attempts"), name)
    return f"^ledger: step 2 {named(name)}: in the step's batch, but there is no such attempt$"


def entry_doubled(books: Books) -> str:
    name = books.committed(2)
    again = f"{name.split(':')[0]}:{int(name.split(':')[1]) + 1}"
    books.client.hset(books.key("attempts"), again, "|".join(books.entry(name)))
    return f"^ledger: step 2 {named(again)}: committed, but so was attempt {name.split(':')[1]}, at step 2$"


def entry_moved_to_another_step(books: Books) -> str:
    name = books.committed(2)
    books.set(name, 3, "3")
    return f"^ledger: step 2 {named(name)}: in the step's batch, but it is committed at step 3"


def entry_moved_with_its_batches(books: Books) -> str:
    """Two attempts of two steps change places, everywhere in the ledger: only the log knows."""
    here, there = books.committed(4), books.committed(5)
    for name, step, other in ((here, "5", there), (there, "4", here)):
        books.set(name, 3, step)
        text = books.client.hget(books.key("steps"), step)
        keys = sorted((name if key == other else key for key in text.split("|")[2].split(",")), key=_as_numbers)
        books.client.hset(books.key("steps"), step, "|".join([*text.split("|")[:2], ",".join(keys)]))
    return rf"^consumption log line \d+: step 4 {named(here)}: consumed here, but committed at step 5$"


def state_changed(books: Books) -> str:
    name = books.committed(2)
    entry = books.entry(name)
    books.client.hset(books.key("attempts"), name, f"dropped|{entry[1]}|{entry[2]}|stale|1")
    return rf"^consumption log line \d+: step 2 {named(name)}: consumed, but in the ledger it is dropped \(stale"


def state_changed_to_rolled_back(books: Books) -> str:
    name = books.committed(7)
    entry = books.entry(name)
    books.client.hset(books.key("attempts"), name, f"rolled_back|{entry[1]}|{entry[2]}|7|0")
    return f"^ledger: step 7 {named(name)}: rolled back, but no later epoch went back to before the step$"


def left_in_flight(books: Books) -> str:
    name = books.committed(7)
    entry = books.entry(name)
    books.client.hset(books.key("attempts"), name, f"produced|{entry[1]}|{entry[2]}||")
    return f"^ledger: {named(name)}: is produced, though the run is completed$"


def entry_made_unreadable(books: Books) -> str:
    name = books.committed(1)
    books.set(name, 2, "one")
    return f"^ledger: attempt {name} cannot be read: "


def ticket_removed(books: Books) -> str:
    ticket = books.committed(3).split(":")[0]
    for attempt in range(1, 9):
        books.client.hdel(books.key("attempts"), f"{ticket}:{attempt}")
    return f"^ledger: ticket {ticket}: not in the ledger, though later ones are$"


def dropped_attempt_removed(books: Books) -> str:
    """With the counters put right: the attempt after it shows that it was there, or the checkpoints do."""
    name = books.ended_as("dropped")
    reason = books.entry(name)[3]
    books.client.hdel(books.key("attempts"), name)
    for counter in ("issued", "dropped", f"dropped:{reason}"):
        books.client.hincrby(books.key("counters"), counter, -1)
    return f"^checkpoint step-00000006: {named(name)}: dropped .* there, but the ledger has no such attempt$"


def counter_changed(books: Books) -> str:
    real = int(books.client.hget(books.key("counters"), "committed"))
    books.client.hincrby(books.key("counters"), "committed", -1)
    books.client.hincrby(books.key("counters"), "dropped", 1)
    return f"^ledger: counter committed is {real - 1}, a recount gives {real}$"


def issued_counter_changed(books: Books) -> str:
    books.client.hincrby(books.key("counters"), "issued", 3)
    return r"^ledger: its counters do not balance: issued \d+ is not committed \d+ \+ dropped"


def duplicates_counter_changed(books: Books) -> str:
    real = int(books.client.hincrby(books.key("counters"), "duplicates_refused", 5)) - 5
    return f"^summary.json: ledger.duplicates_refused is {real}, the ledger has {real + 5}$"


def version_changed_in_ledger(books: Books) -> str:
    name = books.committed(6)
    books.set(name, 2, "2")
    return f"^ledger: step 6 {named(name)}: made with version 2: a lag of 4, outside 0..1 "


def epoch_changed_in_ledger(books: Books) -> str:
    name = books.committed(7)
    epoch = int(books.entry(name)[1])
    books.set(name, 1, str(epoch + 1))
    return f"^ledger: step 7 {named(name)}: is of epoch {epoch + 1}, which was never opened, as 1 attempts are$"


def step_removed(books: Books) -> str:
    books.client.hdel(books.key("steps"), "4")
    return "^ledger: step 4: missing, though 8 steps were committed$"


def last_step_removed_with_its_attempts(books: Books) -> str:
    for nth in range(3):
        books.client.hdel(books.key("attempts"), books.committed(7, nth))
    books.client.hdel(books.key("steps"), "7")
    books.client.hset(books.key("head"), "step", "7")
    return "^metrics.jsonl: ends before step 8, but 7 steps were committed$"


def attempt_taken_out_of_a_batch(books: Books) -> str:
    text = books.client.hget(books.key("steps"), "3")
    books.client.hset(books.key("steps"), "3", text.rpartition(",")[0])
    return "^ledger: step 3: has 2 attempts and not 3$"


def log_line_removed(books: Books) -> str:
    name = books.committed(5)
    at = books.line_of(name)
    books.log(lambda lines: lines[:at] + lines[at + 1 :])
    return (
        f"^ledger: step 5 {named(name)}: committed, but the consumption log has 0 lines of it at this step and not 1$"
    )


def log_line_doubled(books: Books) -> str:
    name = books.committed(5)
    at = books.line_of(name)
    books.log(lambda lines: lines[: at + 1] + lines[at:])
    return f"^consumption log line {at + 2}: step 5 {named(name)}: stands in the log before$"


def log_digest_changed(books: Books) -> str:
    name = books.committed(5)
    at = books.line_of(name)
    digest = json.loads(books.run.log_path.read_text().splitlines()[at])["digest"]
    books.log(lambda lines: [line.replace(digest, digest[::-1]) for line in lines])
    return f"^consumption log line {at + 1}: step 5 {named(name)}: its content was changed: the checksum does not fit$"


def log_version_changed_with_all_checksums(books: Books) -> str:
    name = books.committed(5)
    at = books.line_of(name)

    def change(records: list[dict[str, Any]]) -> None:
        records[at]["min_version"] -= 3

    books.forge_log(change)
    return f"^consumption log line {at + 1}: step 5 {named(name)}: made with version -?\\d: a lag of [34], outside 0..1"


def log_attempt_changed_with_all_checksums(books: Books) -> str:
    name = books.committed(5)
    ticket, at = name.split(":")[0], books.line_of(name)

    def change(records: list[dict[str, Any]]) -> None:
        records[at]["attempt"] = 7

    books.forge_log(change)
    return f"^consumption log line {at + 1}: step 5 ticket {ticket} attempt 7: consumed, but the ledger has no"


def log_cut_at_the_end(books: Books) -> str:
    name = books.committed(7, 2)
    books.log(lambda lines: [*lines[:-1], lines[-1][:50]])
    return f"^ledger: step 7 {named(name)}: committed, but the consumption log has 0 lines"


def metrics_line_removed(books: Books) -> str:
    path = books.run.directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["step"] != 4))
    return "^metrics.jsonl: step 5: stands where step 4 is due$"


def summary_changed(books: Books) -> str:
    def change(summary: Any) -> None:
        summary["ledger"]["rolled_back"] += 1

    books.rewrite("summary.json", change)
    return r"^summary.json: ledger.rolled_back is \d+, the ledger has \d+$"


def checkpoint_moved_to_another_step(books: Books) -> str:
    def change(manifest: Any) -> None:
        manifest["step"] = manifest["ledger"]["step"] = 5

    books.rewrite("checkpoints/step-00000006/manifest.json", change)
    return "^checkpoint step-00000006: the manifest is of step 5, epoch"


def checkpoint_ticket_changed(books: Books) -> str:
    def change(manifest: Any) -> None:
        rows = manifest["ledger"]["sealed"]["committed"]
        rows[0][4] += 1  # the attempt that was committed

    books.rewrite("checkpoints/step-00000006/manifest.json", change)
    return r"^checkpoint step-00000006: step \d ticket \d+ attempt \d: committed at step \d .* there, but the ledger "


def checkpoint_low_water_changed(books: Books) -> str:
    def change(manifest: Any) -> None:
        manifest["ledger"]["low_water"] += 1

    books.rewrite("checkpoints/step-00000006/manifest.json", change)
    return r"^checkpoint step-00000006: low_water is \d+, its open tickets make it \d+$"


def checkpoint_next_ticket_raised(books: Books) -> str:
    def change(manifest: Any) -> None:
        manifest["ledger"]["next_ticket_id"] += 10**12

    books.rewrite("checkpoints/step-00000006/manifest.json", change)
    return r"^checkpoint step-00000006: ticket \d+ to \d+: neither done with nor open, below next_ticket_id \d+$"


def checkpoint_counts_changed(books: Books) -> str:
    def change(manifest: Any) -> None:
        manifest["ledger"]["counts"]["issued"] += 1

    books.rewrite("checkpoints/step-00000006/manifest.json", change)
    return r"^checkpoint step-00000006: its counts are \(issued=\d+ .*\), its attempts amount to \("


def checkpoint_position_removed(books: Books) -> str:
    def change(manifest: Any) -> None:
        del manifest["ledger"]

    books.rewrite("checkpoints/step-00000006/manifest.json", change)
    return "^checkpoint step-00000006: its manifest cannot be read, or has no ledger, step and epoch$"


def epoch_removed(books: Books) -> str:
    books.client.hdel(books.key("epochs"), "1")
    return r"^ledger: (step \d+ )?ticket \d+ attempt \d+: is of epoch 1, which was never opened, as"


def _as_numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(":"))


TAMPERINGS = (
    entry_removed,
    entry_doubled,
    entry_moved_to_another_step,
    entry_moved_with_its_batches,
    state_changed,
    state_changed_to_rolled_back,
    left_in_flight,
    entry_made_unreadable,
    ticket_removed,
    dropped_attempt_removed,
    counter_changed,
    issued_counter_changed,
    duplicates_counter_changed,
    version_changed_in_ledger,
    epoch_changed_in_ledger,
    step_removed,
    last_step_removed_with_its_attempts,
    attempt_taken_out_of_a_batch,
    log_line_removed,
    log_line_doubled,
    log_digest_changed,
    log_version_changed_with_all_checksums,
    log_attempt_changed_with_all_checksums,
    log_cut_at_the_end,
    metrics_line_removed,
    summary_changed,
    checkpoint_moved_to_another_step,
    checkpoint_ticket_changed,
    checkpoint_low_water_changed,
    checkpoint_next_ticket_raised,
    checkpoint_counts_changed,
    checkpoint_position_removed,
    epoch_removed,
)


def test_a_finished_run_with_faults_balances(finished: Run) -> None:
    counts = finished.ledger.counts()
    assert min(counts.dropped, counts.rolled_back, counts.duplicates_refused, counts.skipped_steps) > 0
    assert audit_run(finished.directory) == []


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_each_tampering_is_named(finished: Run, tamper: Callable[[Books], str]) -> None:
    pattern = tamper(Books(finished))
    found = [str(discrepancy) for discrepancy in audit_run(finished.directory)]
    assert any(re.search(pattern, line) for line in found), f"{pattern}\nnot among\n" + "\n".join(found)
    assert not any("\n" in line for line in found)
    assert len(found) < 30, "one tampering must not bury its own name"


def test_a_run_that_was_killed_balances_with_tickets_in_flight(
    tmp_path: Path, store: Store, simulated_run: Run
) -> None:
    """Also between the log and the commit of a step, and with a torn last line."""
    run = simulated_run(tmp_path / "run", store, seed=2).begin().run_to(4)
    while len(run.ready) < run.batch:
        run.tick()
    run.ready.sort()
    run.log.append(run.step, run.ledger.epoch, [_forged(entry) for entry in run.ready[: run.batch]])
    with run.log_path.open("a") as file:
        file.write('{"step": 4, "epo')
    assert run.ledger.counts().in_flight > 0
    assert audit_run(run.directory) == []


def _forged(entry: tuple[int, tuple[int, int]]) -> Forged:
    version, (ticket, attempt) = entry
    return Forged({"ticket_id": ticket, "attempt": attempt, "min_version": version, "digest": "0" * 32})


def test_what_was_consumed_beyond_the_committed_steps_is_wrong_once_the_run_is_completed(finished: Run) -> None:
    finished.log.append(8, finished.ledger.epoch, [_forged((8, (0, 1)))])
    found = [str(discrepancy) for discrepancy in audit_run(finished.directory)]
    assert any(re.search(r"step 8 ticket 0 attempt 1: consumed", line) for line in found)


def test_the_audit_of_a_run_directory_with_its_own_redis_leaves_no_trace(tmp_path: Path, simulated_run: Run) -> None:
    directory = tmp_path / "run"
    with open_store(RedisConfig(), tmp_path / "books") as store:
        run = simulated_run(directory, store, seed=4).begin()
        run.run_to(5)
        (directory / "redis" / "url").unlink()
        alive = {path: path.read_bytes() for path in (tmp_path / "books").rglob("*.json")}
        assert alive
    # The books move in with the run, as open_store keeps them.
    run_id = (directory / "redis" / "run_id").read_text()
    (directory / "redis" / "run_id").unlink()
    (directory / "redis").rmdir()
    (tmp_path / "books" / "redis").rename(directory / "redis")
    (directory / "redis" / "run_id").write_text(run_id)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    assert audit_run(directory) == []
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    with inspect_store(RedisConfig(), directory) as copy:
        copy.client.hincrby(copy.key("ledger", "counters"), "issued", 1)
    assert audit_run(directory) == []


def test_the_audit_of_a_run_that_is_alive_takes_what_is_newer_than_the_ledger_for_no_discrepancy(
    tmp_path: Path, simulated_run: Run
) -> None:
    with open_store(RedisConfig(), tmp_path) as store:
        (tmp_path / "config.yaml").write_text("max_policy_lag: 1\n")
        ledger = Ledger(store, tickets_per_step=1)
        ledger.open_epoch()
        ledger.issue([(0, 1), (1, 1)])
        ledger.produced([((0, 1), 0)])
        log = ConsumptionLog(tmp_path / "logs" / "consumption.jsonl")
        log.append(0, 1, [_forged((0, (0, 1)))])
        ledger.commit(0, [(0, 1)])
        log.append(1, 1, [_forged((0, (1, 1)))])
        (tmp_path / "metrics.jsonl").write_text('{"step": 0, "epoch": 1}\n{"step": 1, "epoch": 1}\n{"step"')
        assert audit_run(tmp_path) == []
    found = [str(discrepancy) for discrepancy in audit_run(tmp_path)]
    assert [line.partition(": ")[2] for line in found] == [
        "step 1 ticket 1 attempt 1: consumed, but in the ledger it is leased in epoch 1",
        "ends before step 2, but 1 steps were committed",
    ]


@pytest.mark.parametrize("text", [None, "max_policy_lag: much\n", "a: [\n", "text"])
def test_a_directory_without_a_runs_config_is_bad_input(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"config\.yaml: missing, or without max_policy_lag"):
        audit_run(tmp_path)
