"""A whole run whose actors are no processes of its own: one in Node, two in Python of which one is killed. They learn
CartPole together, and the books balance."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from rollcall.cluster.books.consumption import LOG_NAME, read_log
from tests import ROOT
from tests.needs import needs
from tests.runs import Bench, Run
from tests.waiting import eventually

OUTSIDE = ("runtime=serial", "learner.compile=off", "actors.num=0", "actors.outside.lease_s=2")


def url_of(run: Run) -> str:
    path: Path = run.directory / "outside.url"
    eventually(lambda: path.exists() or run.process.poll() is not None, 60, "the gateway's address")
    return path.read_text().strip()


def python_actor(bench: Bench, run: Run, name: str) -> Run:
    token = str(run.directory / "outside.token")
    return bench.start("actor", url_of(run), "--token-file", token, "--name", name)


def balanced(bench: Bench, run: Run) -> None:
    assert run.process.returncode == 0, run.errors
    code, text = bench.audit()
    assert code == 0, text
    ledger = run.summary["ledger"]
    assert ledger["in_flight"] == 0
    assert ledger["issued"] == ledger["committed"] + ledger["dropped"] + ledger["rolled_back"]


@pytest.mark.long
@needs("node")
def test_a_node_and_two_python_actors_learn_cartpole_while_one_of_them_is_killed(bench: Bench) -> None:
    run = bench.start(
        *("train", "cartpole-ppo", "name=run", *OUTSIDE, "total_env_steps=60000", "eval.every_steps=1000"),
        *("actors.outside.num_shards=4", "metrics.enabled=false"),
    )
    url = url_of(run)
    victim, other = (python_actor(bench, run, name) for name in ("victim", "other"))
    run.wait_for_step(1)
    node = subprocess.Popen(
        [str(shutil.which("node")), str(ROOT / "examples" / "outside_actor.mjs"), url, run.directory / "outside.token"]
    )
    try:
        run.wait_for_step(4)
        victim.process.send_signal(signal.SIGKILL)
        run.wait()
        other.wait(60)
        assert node.wait(60) == 0, "the run is over, and it was told"
    finally:
        node.kill()
        node.wait()
    balanced(bench, run)
    assert other.process.returncode == 0, other.errors
    lines = read_log(run.directory / "logs" / LOG_NAME).lines
    assert len({(consumed.ticket_id, consumed.attempt) for _, consumed in lines}) == len(lines) == 30 * 4
    assert run.summary["final_eval"]["mean"] > 150, "a random policy stands for 22 steps"
    assert run.summary["ledger"]["dropped_by_reason"].get("actor_died", 0) <= 2 * 4
    said = (run.directory / "logs" / "driver.log").read_text()
    assert all(f"({name}) has joined" in said for name in ("victim", "other", "node"))


@pytest.mark.long
def test_who_is_interrupted_leaves_and_who_stays_goes_on_with_the_next_driver(bench: Bench) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"actors.outside.listen=127.0.0.1:{free.getsockname()[1]}"
    run = bench.train(*OUTSIDE, listen, "actors.outside.num_shards=4", "total_learner_steps=150")
    stays, leaves = (python_actor(bench, run, name) for name in ("stays", "leaves"))
    run.wait_for_step(30)
    leaves.process.send_signal(signal.SIGINT)
    assert "left; " in leaves.wait(30).output and leaves.process.returncode == 130
    run.wait_for_step(len(run.steps()) + 5)
    run.process.kill()
    run.wait()
    again = bench.start("resume", "run").wait()
    assert stays.wait(60).process.returncode == 0, stays.errors
    assert "does not answer" in stays.output and stays.output.count("joined run as") == 2
    balanced(bench, again)


@pytest.mark.long
def test_one_outside_and_one_of_rays_own_learn_together(bench: Bench) -> None:
    """Each has two of the four shards."""
    run = bench.train("actors.num=1", "actors.outside.num_shards=2", "total_learner_steps=12")
    outside = python_actor(bench, run, "outside")
    run.wait()
    outside.wait(60)
    balanced(bench, run)
    assert outside.process.returncode == 0, outside.errors
    assert "(outside) has joined" in (run.directory / "logs" / "driver.log").read_text()
    lines = [consumed for _, consumed in read_log(run.directory / "logs" / LOG_NAME).lines]
    assert len(lines) == 12 * 4 == len({consumed.ticket_id for consumed in lines})
    assert outside.output.count("joined run as") == 1


@pytest.mark.parametrize("setting", ["actors.num=1", "actors.outside.num_shards=5", "actors.outside.listen=here"])
def test_settings_that_contradict_each_other_are_refused_in_a_line(bench: Bench, setting: str) -> None:
    run = bench.train(*OUTSIDE, "actors.outside.num_shards=4", setting).wait()
    assert run.process.returncode == 2 and run.errors.count("\n") == 1, run.errors
    assert setting.partition("=")[0] in run.errors
