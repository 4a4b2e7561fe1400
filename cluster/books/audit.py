"""`rollcall audit RUN`: gathers what a run has left in Redis and in its directory, and holds one against the other.
Reads only: it must never change a run, alive or dead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rollcall.cluster.books import audit_rules, audit_witnesses
from rollcall.cluster.books.audit_evidence import Discrepancy, Evidence
from rollcall.cluster.books.audit_lines import LogStream
from rollcall.cluster.books.audit_sampled import sampled_discrepancies
from rollcall.cluster.books.audit_sealed import SealedAudit
from rollcall.cluster.books.consumption import LOG_NAME
from rollcall.cluster.books.consumption_line import LogReading
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.ledger_table import Attempt, Key, LedgerTable, StepEntry, read_table
from rollcall.cluster.books.sampled import SAMPLED_NAME
from rollcall.cluster.books.sealed import SealedIndex, read_index
from rollcall.cluster.books.settings_history import SEGMENTS, SettingsSpan, booked_spans
from rollcall.cluster.errors import BadInput, BooksDamaged, CheckpointDamaged
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.run_lock import driver_alive
from rollcall.cluster.store.store import Store, inspect_store

RULES = (
    audit_rules.tickets,
    audit_rules.attempts,
    audit_rules.counters,
    audit_rules.steps,
    audit_rules.lag,
    audit_witnesses.consumption,
    audit_witnesses.metrics,
    audit_witnesses.summary,
    audit_witnesses.checkpoints,
    audit_witnesses.segments,
)


def audit_run(run_directory: Path, redis: RedisConfig | None = None) -> list[Discrepancy]:
    """Everything that does not balance; empty when the books do. `str` of each is one line.

    `redis`: where the books are, if the run had a Redis of its own with a password; else it is found in the run
    directory, or in $ROLLCALL_REDIS_URL.

    Raises:
      BadInput: this is no run directory, or its Redis does not answer.
    """
    run_directory = Path(run_directory)
    config = _config(run_directory / "config.yaml")
    if config is None or not isinstance(config.get("max_policy_lag"), int):
        raise BadInput(f"{run_directory / 'config.yaml'}: missing, or without max_policy_lag: not a run directory")
    # The ledger first: of a run that goes on, everything else is then as new or newer.
    alive = driver_alive(run_directory)
    with inspect_store(redis or RedisConfig(), run_directory) as store:
        try:
            table, index = _read_books(store, run_directory)
        except ValueError as error:
            return [Discrepancy("ledger", f"its head cannot be read: {error}")]
        except BooksDamaged as error:
            return [Discrepancy("sealed books", str(error).removeprefix(f"{run_directory}/"))]
    unreadable: list[Discrepancy] = []
    attempts, steps = _ledger_entries(table, unreadable)
    summary = _summary(run_directory / "summary.json", unreadable)
    evidence = Evidence(
        attempts={key: attempt for key, attempt in attempts.items() if key[0] >= index.end},
        steps=steps,
        counters=table.counters,
        epochs=table.epochs,
        num_steps=table.step,
        tickets_per_step=table.tickets_per_step,
        log=LogReading((), (), False),
        max_policy_lag=config["max_policy_lag"],
        completed=not alive and summary is not None and summary.get("status") == "completed",
        alive=alive,
        metrics=_metrics(run_directory / "metrics.jsonl", unreadable),
        summary=summary,
        checkpoints=_positions(run_directory / "checkpoints", unreadable),
        segments=_segments(run_directory, unreadable),
        checkpoint_hashes=_hashes(run_directory / "checkpoints"),
    )
    log = LogStream(run_directory / "logs" / LOG_NAME)
    sealed = SealedAudit(run_directory, index, evidence, log)
    of_sealed = list(sealed.discrepancies({key: a for key, a in attempts.items() if key[0] < index.end}))
    facts, rest = sealed.facts(), log.rest()
    evidence = replace(
        evidence,
        sealed=facts,
        log=rest,
        log_whole=not log.damaged,
        steps={step: entry for step, entry in steps.items() if not facts.has_step(step)},
    )
    found = [discrepancy for rule in RULES for discrepancy in rule(evidence)]
    drawn = sampled_discrepancies(run_directory / "logs" / SAMPLED_NAME, evidence, index, attempts)
    return [*unreadable, *log.damaged, *of_sealed, *found, *drawn]


def _read_books(store: Store, run_directory: Path) -> tuple[LedgerTable, SealedIndex]:
    """Of one moment: nothing was sealed between what is in Redis and what is in segments."""
    index = read_index(run_directory)
    while True:
        table = read_table(store)
        again = read_index(run_directory)
        if again == index:
            return table, index
        index = again


def _ledger_entries(
    table: LedgerTable, unreadable: list[Discrepancy]
) -> tuple[dict[Key, Attempt], dict[int, StepEntry]]:
    attempts: dict[Key, Attempt] = {}
    for name, value in table.attempts.items():
        try:
            attempt = Attempt.parse(name, value)
            attempts[attempt.key] = attempt
        except ValueError:
            unreadable.append(Discrepancy("ledger", f"attempt {name} cannot be read: {value!r}"))
    steps: dict[int, StepEntry] = {}
    for name, value in table.steps.items():
        try:
            entry = StepEntry.parse(name, value)
            steps[entry.step] = entry
        except ValueError:
            unreadable.append(Discrepancy("ledger", f"step {name} cannot be read: {value!r}"))
    return attempts, steps


def _metrics(path: Path, unreadable: list[Discrepancy]) -> Iterator[Mapping[str, Any]]:
    """The lines of metrics.jsonl, as they are read. A last line without an end is that of a killed driver."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                unreadable.append(Discrepancy("metrics.jsonl", f"line {number} cannot be read"))


def _positions(folder: Path, unreadable: list[Discrepancy]) -> dict[str, LedgerPosition]:
    """The ledger positions of all checkpoints whose manifest stands."""
    positions: dict[str, LedgerPosition] = {}
    for manifest_path in sorted(folder.glob("step-*/manifest.json")):
        name = manifest_path.parent.name
        where = f"checkpoint {name}"
        try:
            manifest = json.loads(manifest_path.read_text())
            position = LedgerPosition.model_validate(manifest["ledger"])
            said = (manifest["step"], manifest["epoch"], name)
        except FileNotFoundError:
            continue  # a run that goes on has pruned it just now
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            unreadable.append(Discrepancy(where, f"its ledger position cannot be read: {place}: {first['msg']}"))
            continue
        except (ValueError, KeyError, TypeError):
            unreadable.append(Discrepancy(where, "its manifest cannot be read, or has no ledger, step and epoch"))
            continue
        if said != (position.step, position.epoch, f"step-{position.step:08d}"):
            unreadable.append(
                Discrepancy(
                    where,
                    f"the manifest is of step {said[0]}, epoch {said[1]}; its ledger position of step {position.step}, "
                    f"epoch {position.epoch}",
                )
            )
        positions[name] = position
    return positions


def _hashes(folder: Path) -> dict[str, str]:
    """The config hashes of all checkpoints whose manifest can be read."""
    hashes: dict[str, str] = {}
    for manifest_path in sorted(folder.glob("step-*/manifest.json")):
        try:
            hashes[manifest_path.parent.name] = str(json.loads(manifest_path.read_text())["config_hash"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # said by whoever reads its position
    return hashes


def _segments(run_directory: Path, unreadable: list[Discrepancy]) -> tuple[SettingsSpan, ...]:
    try:
        return booked_spans(run_directory)
    except CheckpointDamaged as error:
        unreadable.append(Discrepancy(SEGMENTS, str(error).partition(": ")[2]))
        return ()


def _summary(path: Path, unreadable: list[Discrepancy]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    unreadable.append(Discrepancy("summary.json", "cannot be read"))
    return None


def _config(path: Path) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


__all__ = ["Discrepancy", "audit_run"]
