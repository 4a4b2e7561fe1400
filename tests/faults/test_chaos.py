"""Chaos in short: a few seeded kills of whoever is there; and what judges the long form (benchmarks/prove_chaos.py),
which is its own reading of the books, its seams, its table."""

from __future__ import annotations

import importlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos.books import Entry, Ledger, Line, Reading, judge
from benchmarks.chaos.kinds import CYCLE, FAULTS, KINDS
from benchmarks.chaos.on_path import sitecustomize
from benchmarks.chaos.processes import TITLES
from benchmarks.chaos.progress import Progress
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.round import Result, Round, undisturbed
from benchmarks.chaos.table import summed_up, table

SHORT = ("total_learner_steps=60",)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_FOLDER", str(tmp_path))


def assert_as_promised(result: Result, least_kills: int) -> None:
    assert result.faults == []
    assert result.kills >= least_kills
    assert result.audit == 0 and result.books is not None
    assert (result.books["lost"], result.books["doubled"], result.books["damaged"]) == (0, 0, 0)


@pytest.mark.long
def test_a_run_in_one_process_that_is_killed_at_random_ends_with_the_weights_of_an_undisturbed_one() -> None:
    name = "control in one process"
    reference = undisturbed(name, SHORT)
    result = Round(name, "short.0", kills=4, settings=SHORT).carry_out(reference)
    assert_as_promised(result, 3)
    assert result.hash_equal and result.status == "completed"
    assert result.books is not None and result.books["committed"] == 60 * 4
    assert (
        result.books["sealed_tickets"] > 0
    )  # the small books of a run under chaos are sealed, and read, as large ones


@pytest.mark.long
def test_a_run_on_ray_with_a_reward_service_loses_and_doubles_nothing_whoever_is_killed() -> None:
    result = Round("scored", "short.1", kills=6).carry_out(None)
    assert_as_promised(result, 6)
    assert len({strike.what for strike in result.strikes}) >= 3
    assert all(strike.recovered_s is None or strike.recovered_s < 60 for strike in result.strikes)


# The judge.

HONEST = Ledger(
    step=2,
    tickets_per_step=2,
    attempts={
        (0, 1): Entry("committed", 0, True),
        (1, 1): Entry("dropped", -1, False),
        (1, 2): Entry("committed", 0, True),
        (2, 1): Entry("rolled_back", -1, False),
        (2, 2): Entry("committed", 1, True),
        (3, 1): Entry("committed", 1, True),
    },
    epochs={1: 0, 2: 1},
    counters={"issued": 6, "committed": 4, "dropped": 1, "rolled_back": 1},
)
LEARNT = [Line(0, 1, 0, 1), Line(0, 1, 1, 2), Line(1, 1, 2, 1), Line(1, 2, 2, 2), Line(1, 2, 3, 1)]


def judged(lines: list[Line], ledger: Ledger) -> Reading:
    reading = Reading()
    judge(lines, ledger, reading, completed=True)
    return reading


def test_books_that_agree_are_right_and_what_a_restore_has_undone_counts_for_nothing() -> None:
    reading = judged(LEARNT, HONEST)
    assert reading.right, reading
    assert reading.counts["undone_lines"] == 1 and reading.counts["committed"] == 4


def test_a_ticket_that_is_booked_and_was_never_learnt_from_is_lost() -> None:
    assert any("never learnt from" in text for text in judged(LEARNT[:-1], HONEST).lost)


def test_a_ticket_that_was_learnt_from_and_is_not_booked_is_lost() -> None:
    attempts = HONEST.attempts | {(3, 1): Entry("dropped", -1, True)}
    assert any("was learnt from at step 1" in text for text in judged(LEARNT, replace(HONEST, attempts=attempts)).lost)


def test_a_ticket_that_two_batches_have_is_doubled() -> None:
    attempts = HONEST.attempts | {(1, 3): Entry("committed", 1, True)}
    reading = judged([*LEARNT, Line(1, 2, 1, 3)], replace(HONEST, attempts=attempts))
    assert {"ticket 1 was learnt from 2 times", "ticket 1 is booked 2 times"} <= set(reading.doubled)


def test_a_ticket_that_is_in_no_book_or_never_ended_is_lost() -> None:
    without = {key: entry for key, entry in HONEST.attempts.items() if key[0] != 1}
    assert "ticket 1 is in no book" in judged(LEARNT, replace(HONEST, attempts=without)).lost
    unended = HONEST.attempts | {(1, 2): Entry("dropped", -1, False)}
    assert any("never ended" in text for text in judged(LEARNT, replace(HONEST, attempts=unended)).lost)


def test_counters_that_are_not_what_the_attempts_amount_to_are_damage() -> None:
    assert judged(LEARNT, replace(HONEST, counters=HONEST.counters | {"issued": 7})).damaged


# What strikes.


def test_every_seam_is_a_method_that_there_is_and_every_strike_hits_something_known() -> None:
    seams = {seam for methods in sitecustomize.SEAMS.values() for *_, seam in methods} | {"rename", "replace"}
    for module, methods in sitecustomize.SEAMS.items():
        for class_name, method, _ in methods:
            assert callable(getattr(getattr(importlib.import_module(module), class_name), method))
    known = {*TITLES, "driver"}
    for kind in KINDS.values():
        for strike in kind.strikes:
            prefix, _, rest = strike.partition(":")
            assert prefix in FAULTS or prefix in known or (prefix == "stop" and rest in known) or rest in seams, strike
    assert CYCLE.keys() == KINDS.keys()


def test_progress_counts_from_where_a_restore_went_back_to(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"

    def write(steps: range) -> None:
        metrics.write_text("".join(f'{{"step": {step}}}\n' for step in steps) + '{"step": 9')

    progress = Progress(metrics)
    assert progress.step == -1
    write(range(50))
    progress.mark()
    assert not progress.is_on_by(1)
    write(range(40))
    assert progress.step == 39 and not progress.is_on_by(1)
    write(range(43))
    assert progress.is_on_by(3) and not progress.is_on_by(4)


@pytest.fixture
def echo() -> Iterator[int]:
    """A port where the first thing said is said back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.sendall(connection.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def said_back(port: int, during: Callable[[], None] = lambda: None) -> bytes:
    """Nothing of a connection that is cut, or from which nothing comes."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(b"hello")
        line.settimeout(0.4)
        with suppress(TimeoutError):
            return line.recv(100)
        during()
        line.settimeout(5)
        return b"late " + line.recv(100)
    return b""


def test_a_network_passes_holds_slows_and_cuts(echo: int) -> None:
    proxy = Proxy(echo)
    try:
        assert said_back(proxy.port) == b"hello"
        proxy.holds = True
        assert said_back(proxy.port, lambda: setattr(proxy, "holds", False)) == b"late hello"
        proxy.delay_s = 0.5
        assert said_back(proxy.port) == b"late hello"
        proxy.delay_s, proxy.refuses = 0.0, True
        assert said_back(proxy.port) in (b"", b"late ")
    finally:
        proxy.close()


def test_rounds_are_summed_up_by_whom_they_struck() -> None:
    books = {"lost": 0, "doubled": 1, "damaged": 0, "committed": 8, "attempts": 9, "epochs": 2}
    strikes = [
        {"what": "redis", "how": "kill", "at_step": 3, "recovered_s": 1.0},
        {"what": "redis", "how": "seam:commit.after", "at_step": 5, "recovered_s": 3.0},
        {"what": "redis", "how": "stop", "at_step": 7, "recovered_s": 0.5},
        {"what": "learner", "how": "kill", "at_step": 9, "recovered_s": None},
    ]
    done = {
        **Result("control", "0.0", hangs=1, audit=0, hash_equal=True, wall_s=36.0).as_json(),
        **{"strikes": strikes, "books": books, "faults": ["doubled"]},
    }
    sums = summed_up([done, done])
    assert (sums["kills"], sums["stops"], sums["hangs"], sums["doubled"], sums["broken_rounds"]) == (6, 2, 2, 2, 2)
    assert sums["by_kind"]["redis"] == {"times": 4, "n": 4, "mean_s": 2.0, "median_s": 2.0, "worst_s": 3.0}
    assert sums["audits"] == {"right": 2} and sums["hashes"] == {"equal": 2} and sums["lane_hours"] == 0.02
    assert "| learner | 2 | - | - | - |" in table(sums) and "| redis (stop) | 2 | 0.5 s" in table(sums)
