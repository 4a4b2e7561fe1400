"""What a result depends on, and what it must not depend on: runtime, number of actors, interruption."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

LAG_0 = ("max_policy_lag=0", "total_learner_steps=6")


def final(run: Any) -> str:
    run.wait()
    assert run.process.returncode == 0, run.errors
    summary = run.summary
    assert summary["status"] == "completed"
    return str(summary["weights_hash"])


@pytest.fixture
def another_cluster_was_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `ray start` leaves on a machine, for whoever comes next."""
    with tempfile.TemporaryDirectory(prefix="rc") as folder:  # sockets have short names
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.usefixtures("another_cluster_was_here")
@pytest.mark.parametrize("counts", [(2,), pytest.param((1, 4), marks=pytest.mark.prove)])
def test_serial_and_ray_end_with_the_same_weights_whatever_the_number_of_actors(
    bench: Any, counts: tuple[int, ...]
) -> None:
    reference = final(bench.train(*LAG_0, "runtime=serial", name="serial"))
    assert len(reference) == 32
    for num_actors in counts:
        run = bench.train(*LAG_0, f"actors.num={num_actors}", "eval.episodes=2", name=f"ray-{num_actors}")
        assert final(run) == reference, f"{num_actors} actors"
        assert bench.audit(f"ray-{num_actors}")[0] == 0
    other = bench.train(*LAG_0, "runtime=serial", "seed=1", "eval.episodes=0", "eval.every_steps=2", name="other")
    assert final(other) != reference
    assert other.summary["final_eval"] is None  # and none was scheduled on the way


@pytest.mark.prove
def test_a_stopped_ray_run_resumes_to_the_weights_of_an_uninterrupted_one(bench: Any) -> None:
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
    code, text = bench.audit()
    assert code == 0, text


@pytest.mark.prove
def test_two_learner_processes_give_the_update_of_one(bench: Any) -> None:
    settings = ("max_policy_lag=0", "total_learner_steps=1")
    final(bench.train(*settings, "runtime=serial", name="one"))
    final(bench.train(*settings, "learner.num_processes=2", name="two"))
    one, two = (
        load_file(bench.folder / "runs" / name / "checkpoints" / "step-00000001" / "weights.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, rtol=0, err_msg=name)
