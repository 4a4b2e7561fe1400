"""Ray jobs on a real cluster of two nodes under a token: submitted, refused, stopped, submitted again, a node killed.
One cluster for all of it; the longer proofs are benchmarks/prove_jobs.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from tests.two_nodes import TwoNodes

# The user's own environment: only the job's working directory has it.
ENV = """
import gymnasium as gym

def make():
    return gym.make("CartPole-v1")
"""
RECIPE = """\
name: control
max_policy_lag: 0
total_learner_steps: {steps}
env: own_env:make
algorithm: {{name: ppo, epochs: 2, num_minibatches: 2}}
actors: {{num: 2, num_envs: 8, num_shards: 4, unroll_length: 32}}
learner: {{compile: "off"}}
eval: {{episodes: 0}}
checkpoint: {{every_steps: 1000}}
metrics: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    (nodes.work / "own_env.py").write_text(ENV)
    (nodes.work / "control.yaml").write_text(RECIPE.format(steps=100))
    try:
        yield nodes
    finally:
        nodes.close()


def refused(done: Any, *words: str) -> None:
    """One clear line, and the exit code of bad input."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("rollcall: error:")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr


@pytest.mark.long
def test_a_job_trains_and_its_run_is_found(cluster: TwoNodes) -> None:
    submitted = cluster.submit("small", "train", "control.yaml", "name=small", "total_learner_steps=3", wait=True)
    assert submitted.returncode == 0, submitted.stdout[-3000:]
    assert cluster.info("small")["status"] == "SUCCEEDED"
    assert cluster.summary("small")["status"] == "completed"
    assert audit_run(cluster.runs / "small") == []


@pytest.mark.prove
def test_a_job_that_is_stopped_and_submitted_again_ends_with_the_weights_of_an_uninterrupted_run(
    cluster: TwoNodes,
) -> None:
    serial = cluster.rollcall("train", "control.yaml", "name=whole", "runtime=serial", "actors.num=1")
    assert serial.returncode == 0, serial.stderr
    submitted = cluster.submit("first", "train", "control.yaml", metadata={"rollcall_run": "control"})
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    cluster.wait_for_step("control", 10)
    began = time.monotonic()
    cluster.stop("first")
    assert cluster.wait("first", 20) == "STOPPED"
    assert time.monotonic() - began < 15
    stopped = cluster.summary("control")  # which a driver that was killed could not have written
    assert stopped["status"] == "stopped" and 10 < stopped["learner_steps"] < 100
    newest = sorted((cluster.runs / "control" / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{stopped['learner_steps']:08d}"

    again = cluster.submit("second", "train", "control.yaml", metadata={"rollcall_run": "control"}, wait=True)
    assert again.returncode == 0, again.stdout[-3000:]
    assert f"going on with the run from {newest.name}" in again.stdout
    assert cluster.info("second")["status"] == "SUCCEEDED"
    assert cluster.info("second")["metadata"]["rollcall_run"] == "control"
    assert cluster.summary("control")["weights_hash"] == cluster.summary("whole")["weights_hash"]
    assert audit_run(cluster.runs / "control") == []

    third = cluster.submit("third", "train", "control.yaml", "name=control", "seed=7", wait=True)
    assert third.returncode == 1 and "was begun with other settings" in third.stdout
    assert cluster.info("third")["driver_exit_code"] == 2


@pytest.mark.prove
def test_what_a_cluster_lacks_or_refuses_is_one_line(cluster: TwoNodes) -> None:
    train = ("train", "control.yaml", "env=CartPole-v1")
    wrong = cluster.rollcall(*train, RAY_AUTH_TOKEN="not-the-token")
    refused(wrong, "does not take our token")
    assert "not-the-token" not in wrong.stdout + wrong.stderr
    refused(cluster.rollcall(*train, RAY_AUTH_MODE="disabled"), "wants a token", "RAY_AUTH_MODE=token")
    refused(cluster.rollcall(*train, RAY_AUTH_TOKEN_PATH="", HOME="/nonexistent"), "RAY_AUTH_TOKEN_PATH")
    refused(cluster.rollcall(*train, RAY_ADDRESS="127.0.0.1:1"), "nobody listens there")
    mars = ("cluster.actors.label_selector={zone: mars}", "cluster.room_timeout_s=2")
    refused(cluster.rollcall(*train, *mars), "2 of 2 actors", "zone=mars", "no node has these labels")
    more = ("cluster.learner.num_gpus=1", "cluster.room_timeout_s=2")
    refused(cluster.rollcall(*train, *more), "1 of 1 learner processes", "no node has more than 0 GPU")
    assert [path.name for path in cluster.runs.iterdir() if path.name.startswith("control-")] == []
    assert cluster.job("list", RAY_AUTH_TOKEN="not-the-token").returncode != 0


@pytest.mark.prove
def test_a_worker_node_that_dies_in_mid_run_is_survived(cluster: TwoNodes) -> None:
    (cluster.work / "long.yaml").write_text(RECIPE.format(steps=400))
    # The learner on the head, the actors apart: one of them goes with its node, and finds room on the head.
    places = ("cluster.learner.label_selector={zone: '!b'}", "cluster.placement=SPREAD")
    shares = ("cluster.actors.num_cpus=0.25", "cluster.learner.num_cpus=0.25")
    submitted = cluster.submit("long", "train", "long.yaml", "name=long", "max_policy_lag=1", *places, *shares)
    assert submitted.returncode == 0, submitted.stdout
    cluster.wait_for_step("long", 10)
    cluster.kill_worker()
    died_at = len(cluster.steps("long"))
    assert cluster.wait("long") == "SUCCEEDED", cluster.logs("long")[-3000:]
    assert died_at < 380, "it was over before the node died"
    summary = cluster.summary("long")
    assert summary["restarts"] >= 1 and summary["ledger"]["committed"] == 400 * 4
    assert audit_run(cluster.runs / "long") == []


def test_the_token_is_nowhere_but_where_it_was_put(cluster: TwoNodes) -> None:
    for path in [*cluster.runs.rglob("*"), *cluster.folder.rglob("*.log"), *cluster.folder.rglob("*.out")]:
        if path.is_file() and not path.is_symlink():
            assert cluster.token.encode() not in path.read_bytes(), path
    for process in cluster.processes():
        assert cluster.token not in " ".join(process.cmdline())
