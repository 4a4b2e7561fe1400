"""What a result depends on, and what it must not depend on: runtime, number of actors, interruption."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rollcall.cluster.books.consumption import LOG_NAME, read_log
from tests.runs import Bench, Run

LAG_0 = ("max_policy_lag=0", "total_learner_steps=24")
EACH_STEP = ("checkpoint.every_steps=1", "checkpoint.keep=30")


def final(run: Run) -> str:
    run.wait()
    assert run.process.returncode == 0, run.errors
    summary = run.summary
    assert summary["status"] == "completed"
    return str(summary["weights_hash"])


def audited(bench: Bench, name: str = "run") -> None:
    code, text = bench.audit(name)
    assert code == 0, text


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In one process, and nobody interrupts it."""
    with closing(Bench(tmp_path_factory.mktemp("serial"))) as bench:
        run = bench.train(*LAG_0, *EACH_STEP, "runtime=serial")
        assert len(final(run)) == 32
    return run


@pytest.fixture
def another_cluster_was_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `ray start` leaves on a machine, for whoever comes next."""
    with tempfile.TemporaryDirectory(prefix="rc") as folder:  # sockets have short names
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.long
@pytest.mark.usefixtures("another_cluster_was_here")
@pytest.mark.parametrize("num_actors", [1, 2, 4])
def test_a_run_on_ray_ends_with_the_weights_of_a_serial_one_whatever_the_number_of_actors(
    bench: Bench, serial: Run, num_actors: int
) -> None:
    assert final(bench.train(*LAG_0, f"actors.num={num_actors}", "eval.episodes=2")) == serial.summary["weights_hash"]
    audited(bench)


def test_another_seed_ends_with_other_weights_and_no_evaluation_is_made_unasked(bench: Bench, serial: Run) -> None:
    run = bench.train(*LAG_0, "runtime=serial", "seed=1", "eval.every_steps=2")
    assert final(run) != serial.summary["weights_hash"]
    assert run.summary["final_eval"] is None  # and none was scheduled on the way


def test_a_serial_run_whose_process_is_killed_resumes_to_the_weights_of_an_uninterrupted_one(
    bench: Bench, serial: Run
) -> None:
    run = bench.train(*LAG_0, "runtime=serial", "checkpoint.every_steps=2")
    run.wait_for_step(3)
    run.process.kill()
    run.wait()
    assert not (run.directory / "summary.json").exists(), "it was over before it was killed"
    assert final(bench.start("resume", "run")) == serial.summary["weights_hash"]
    audited(bench)


@pytest.mark.long
def test_at_lag_4_no_step_learns_from_older_weights_and_every_ticket_ends_once(bench: Bench) -> None:
    run = bench.train("max_policy_lag=4", "total_learner_steps=24", "actors.num=2")
    final(run)
    assert 0 < run.summary["policy_lag"]["max"] <= 4
    lines = read_log(run.directory / "logs" / LOG_NAME).lines
    assert all(consumed.step - consumed.min_version <= 4 for _, consumed in lines)
    books = run.summary["ledger"]
    assert books["in_flight"] == 0 and books["committed"] == 24 * 4
    assert books["issued"] == books["committed"] + books["dropped"] + books["rolled_back"]
    audited(bench)  # which holds every ticket's end against the log


@pytest.mark.prove
def test_a_stopped_ray_run_resumes_to_the_weights_of_an_uninterrupted_one(bench: Bench) -> None:
    settings = ("max_policy_lag=0", "total_learner_steps=60", "actors.num=2")
    whole = final(bench.train(*settings, "runtime=serial", "actors.num=1", name="whole"))
    run = bench.train(*settings)
    run.wait_for_step(5)
    run.process.terminate()
    run.wait()
    assert run.process.returncode == 130, run.errors
    assert run.summary["status"] == "stopped"
    assert 5 < run.summary["learner_steps"] < 60
    assert final(bench.start("resume", "run")) == whole
    audited(bench)


@pytest.mark.long
def test_two_learner_processes_give_the_update_of_one(bench: Bench, serial: Run) -> None:
    run = bench.train(*LAG_0, *EACH_STEP, "learner.num_processes=2")
    final(run)
    one, two = (
        load_file(directory / "checkpoints" / "step-00000001" / "weights.safetensors")
        for directory in (serial.directory, run.directory)
    )
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, rtol=0, err_msg=name)
