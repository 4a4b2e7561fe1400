"""What a learner with kept experience says it was drawn from: as it is written, read, and held against the ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollcall.cluster.books.audit_evidence import Evidence
from rollcall.cluster.books.audit_sampled import sampled_discrepancies
from rollcall.cluster.books.consumption_line import LogReading
from rollcall.cluster.books.ledger_table import Attempt, Key
from rollcall.cluster.books.sampled import Misread, Sampled, SampledLog, read_sampled
from rollcall.cluster.books.sealed import SealedIndex


def _sampled(step: int, pairs: Mapping[int, int], epoch: int = 1) -> Sampled:
    tickets = np.array(sorted(pairs), np.int64)
    return Sampled(step, epoch, 64, tickets, np.array([pairs[ticket] for ticket in tickets.tolist()], np.int64))


@given(st.dictionaries(st.integers(0, 2**40), st.integers(1, 300), max_size=30))
def test_a_line_says_again_what_was_written(pairs: dict[int, int]) -> None:
    written = _sampled(3, pairs)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(written.line(""))
        file.flush()
        (item,) = read_sampled(Path(file.name))
    assert not isinstance(item, Misread)
    read = item[1]
    assert np.array_equal(read.tickets, written.tickets) and np.array_equal(read.attempts, written.attempts)


def test_a_line_of_neighbours_is_short() -> None:
    drawn = _sampled(0, dict.fromkeys(range(5000, 20_000), 1))
    scattered = _sampled(0, dict.fromkeys(np.random.default_rng(0).integers(0, 15_000, 256).tolist(), 1))
    assert len(drawn.line("")) < 300
    assert len(scattered.line("")) < 600


def test_a_log_goes_on_after_a_torn_line_and_shows_what_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "sampled.jsonl"
    log = SampledLog(path)
    log.append(_sampled(0, {0: 1}))
    log.append(_sampled(1, {0: 1, 1: 2}))
    with path.open("a") as file:
        file.write('{"step": 2, "ep')
    SampledLog(path).append(_sampled(2, {2: 1}))
    assert [item[1].step for item in read_sampled(path) if not isinstance(item, Misread)] == [0, 1, 2]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    assert [item.number for item in read_sampled(path) if isinstance(item, Misread)] == [2]
    path.write_text(lines[0] + lines[1].replace('"num_drawn": 64', '"num_drawn": 65') + lines[2])
    assert [item.number for item in read_sampled(path) if isinstance(item, Misread)] == [2]


def _attempt(ticket: int, step: int, state: str = "committed", epoch: int = 1) -> tuple[Key, Attempt]:
    return (ticket, 1), Attempt(ticket, 1, state, epoch, 0, step, "", True)  # type: ignore[arg-type]


def _evidence(*, num_steps: int, completed: bool = True, epochs: Mapping[int, int] | None = None) -> Evidence:
    return Evidence(
        attempts={},
        steps={},
        counters={},
        epochs=epochs or {1: 0},
        num_steps=num_steps,
        tickets_per_step=1,
        log=LogReading((), (), False),
        max_policy_lag=0,
        completed=completed,
        alive=False,
    )


def test_an_audit_names_what_was_drawn_from_before_it_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "sampled.jsonl"
    attempts = dict([_attempt(0, 0), _attempt(1, 1), _attempt(2, 2), _attempt(3, -1, "dropped")])
    log = SampledLog(path)
    for step in range(3):
        log.append(_sampled(step, dict.fromkeys(range(step + 1), 1)))

    def found(num_steps: int = 3, **more: object) -> list[str]:
        evidence = _evidence(num_steps=num_steps, **more)  # type: ignore[arg-type]
        return [str(item) for item in sampled_discrepancies(path, evidence, SealedIndex(), attempts)]

    assert found() == []
    assert found(4) == ["sampled.jsonl: ends before step 3, but 4 steps were committed"]
    log.append(_sampled(3, {0: 1, 3: 1, 4: 1}))
    assert found(3, completed=False) == [], "of a step that was killed before its commit"
    said = found(4)
    assert len(said) == 2 and all("step 3 ticket" in text for text in said)
    assert "ticket 3" in said[0] and "ticket 4" in said[1]
    # A later epoch went back to step 1: what was drawn from then on is done again.
    log.append(_sampled(1, {0: 1, 1: 1}, epoch=2))
    log.append(_sampled(2, {1: 1}, epoch=2))
    assert found(epochs={1: 0, 2: 1}) == []
    log.append(_sampled(2, {1: 1}, epoch=2))
    assert found(epochs={1: 0, 2: 1}) == ["sampled.jsonl line 7: step 2: stands where step 3 is due"]
