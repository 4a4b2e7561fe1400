"""Language runs through the command line with the real vLLM: what the control half promises holds here too."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rollcall.cluster.checkpoint import latest_checkpoint, load_weights
from tests.needs import require
from tests.runs import Bench, Run
from tests.strangers import listens, what_a_stranger_can_do

require("vllm")

# Small, and every part of it real: 4 prompts x 2 samples of at most 6 tokens, 0.03M parameters, untrained.
TINY = (
    "policy.warm_start=null",
    "policy.tiny={hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}",
    "actors.prompts_per_batch=4",
    "actors.samples_per_prompt=2",
    "actors.sampling.max_tokens=6",
    "actors.engine.enforce_eager=true",
    "task.name=own_task:LongAnswers",
    "task.num_train_rows=20",
    "eval.episodes=0",
    "metrics.enabled=false",
)


def train(bench: Bench, *overrides: str, name: str = "run") -> Any:
    for module in ("own_task.py", "gpu_stand_in.py", "damaged_weights.py"):
        shutil.copy(Path(__file__).parent / module, bench.folder)
    return bench.start("train", "arithmetic-grpo", *TINY, *overrides, f"name={name}", name=name)


def finished(run: Run) -> dict[str, Any]:
    run.wait(timeout_s=280)
    assert run.process.returncode == 0, run.errors[-2000:]
    assert run.summary["status"] == "completed"
    summary: dict[str, Any] = run.summary
    return summary


def consumed(run: Run) -> list[dict[str, Any]]:
    lines = (run.directory / "logs" / "consumption.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_exported(run: Run, *, version: int) -> None:
    assert run.summary["policy"] == f"runs/{run.directory.name}/policy"
    weights = load_weights(latest_checkpoint(run.directory)[0])
    assert weights.version == version
    exported = load_file(run.directory / "policy" / "model.safetensors")
    published = {name.removeprefix("policy.model."): array for name, array in weights.tensors()}
    assert exported.keys() == published.keys()
    assert all(np.array_equal(exported[name], array) for name, array in published.items())


def audited(bench: Bench, name: str = "run") -> None:
    code, text = bench.audit(name)
    assert code == 0, text


LAG_0 = ("max_policy_lag=0", "total_learner_steps=6")


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run in one process that nobody interrupts."""
    with closing(Bench(tmp_path_factory.mktemp("serial"))) as bench:
        run = train(bench, *LAG_0, "runtime=serial")
        finished(run)
        audited(bench)
        yield run


@pytest.mark.long
def test_at_lag_zero_one_engine_on_ray_equals_the_serial_run_bit_for_bit(bench: Bench, serial: Run) -> None:
    assert all(record["grad_norm"] > 0 for record in serial.steps())
    assert_exported(serial, version=6)
    on_ray = train(bench, *LAG_0)
    on_ray.wait_for_step(1)
    assert {*listens(on_ray.process.pid).values()} == {"127.0.0.1"}, "vLLM's own listeners are among them"
    if os.geteuid() == 0:  # only root can become another user
        assert what_a_stranger_can_do(on_ray.process.pid, on_ray.directory) == []
    assert finished(on_ray)["weights_hash"] == serial.summary["weights_hash"]
    audited(bench)


@pytest.mark.long
def test_a_serial_run_whose_process_is_killed_resumes_to_the_weights_of_an_uninterrupted_one(
    bench: Bench, serial: Run
) -> None:
    run = train(bench, *LAG_0, "runtime=serial", "checkpoint.every_steps=1")
    run.wait_for_step(1)
    assert {*listens(run.process.pid).values()} == {"127.0.0.1"}
    run.process.kill()
    run.wait()
    assert not (run.directory / "summary.json").exists(), "it was over before it was killed"
    assert finished(bench.start("resume", "run"))["weights_hash"] == serial.summary["weights_hash"]
    audited(bench)


@pytest.mark.long
def test_a_run_whose_engine_has_other_weights_than_its_learner_stops_in_one_line_before_it_learns(bench: Bench) -> None:
    run = train(bench, "task.name=damaged_weights:Damaged", "max_policy_lag=0", "total_learner_steps=4")
    run.wait(timeout_s=280)
    assert run.process.returncode == 1
    (line,) = [line for line in run.errors.splitlines() if line.startswith("rollcall: error")]
    assert "engine and learner disagree at policy version 0" in line and "Qwen3ForCausalLM" in line
    assert run.summary["status"] == "failed" and run.summary["ledger"]["committed"] == 0
    assert run.summary["restarts"] == 0  # the next engine would say the same


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_weights_sent_to_vllms_own_engine_for_ipc_lead_where_the_object_stores_do(bench: Bench) -> None:
    """Without a GPU: see gpu_stand_in.py for what stands in."""
    settings = ("max_policy_lag=0", "total_learner_steps=4")
    reference = finished(train(bench, *settings, name="stored"))["weights_hash"]
    ipc = ("task.name=gpu_stand_in:OnStandIns", "actors.engine.weight_transfer=ipc", "if_too_large=warn")
    assert finished(train(bench, *settings, *ipc, name="sent"))["weights_hash"] == reference
    audited(bench, "sent")

    killed = train(bench, "total_learner_steps=40", "checkpoint.every_steps=5", *ipc, name="killed")
    killed.wait_for_step(6, timeout_s=200)
    killed.kill("LMActorProcess")
    killed.wait_for_step(12, timeout_s=200)
    killed.kill("LearnerProcess")
    assert finished(killed)["ledger"]["committed"] == 40 * 4
    audited(bench, "killed")


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_two_learner_processes_in_pieces_train_adapters_and_the_engine_samples_from_the_merged_weights(
    bench: Bench,
) -> None:
    require("peft")
    run = train(
        bench,
        "learner={num_processes: 2, sharding: fsdp, learning_rate: 1e-2}",
        "policy.warm_start={steps: 100, batch_size: 32, learning_rate: 1e-2}",
        "policy.lora.rank=4",
        "algorithm.kl_coef=0.05",
        "task.digits=1",
        "task.num_eval_rows=20",
        "max_policy_lag=0",
        "total_learner_steps=6",
        "checkpoint.every_steps=3",
    )
    finished(run)
    assert any(row["grad_norm"] > 0 for row in run.steps()[:-1])  # after which the engine has other weights
    assert max(row["mismatch"] for row in run.steps()) < 1e-4  # of its log-probabilities and the learner's, at lag 0
    audited(bench)


@pytest.mark.prove
def test_no_token_is_older_than_the_lag_allows_and_no_prompt_is_left_out(bench: Bench) -> None:
    run = train(bench, "max_policy_lag=4", "total_learner_steps=15")
    summary = finished(run)
    assert_lag_is_bounded(run, 4)
    assert summary["ledger"]["dropped"] == 0
    assert len({line["ticket_id"] for line in consumed(run)}) == 15 * 4
    audited(bench)


@pytest.mark.long
def test_pairs_of_on_line_dpo_are_tickets_that_end_once_and_no_older_than_the_lag_allows(bench: Bench) -> None:
    run = train(
        bench, "algorithm=online_dpo", "max_policy_lag=2", "total_learner_steps=8", "learner.learning_rate=1e-2"
    )
    summary = finished(run)
    assert_lag_is_bounded(run, 2)
    assert summary["ledger"]["dropped"] == 0
    assert len({line["ticket_id"] for line in consumed(run)}) == 8 * 4
    steps = run.steps()
    assert all(0 < record["pairs"] <= 4 for record in steps)
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5), "where policy and reference are one"
    assert steps[-1]["kl_reference"] > steps[0]["kl_reference"]
    audited(bench)


def assert_lag_is_bounded(run: Run, lag: int) -> None:
    assert 0 < run.summary["policy_lag"]["max"] <= lag
    assert all(record["lag_max"] <= lag for record in run.steps())
    assert all(line["step"] - line["min_version"] <= lag for line in consumed(run))


@pytest.mark.long
@pytest.mark.parametrize(
    ("victim", "restarts"),
    [
        ("LMActorProcess", 1),
        pytest.param("ParameterServerProcess", 2, marks=pytest.mark.prove),  # which takes the actor along
    ],
)
def test_an_actor_killed_while_it_generates_or_left_without_weights_loses_no_prompt(
    bench: Bench, victim: str, restarts: int
) -> None:
    run = train(bench, "total_learner_steps=40", "actors.sampling.max_tokens=20", "actors.engine.max_model_len=32")
    run.wait_for_step(5, timeout_s=200)
    run.kill(victim)
    summary = finished(run)
    assert summary["restarts"] == restarts
    books = summary["ledger"]
    assert books["committed"] == 40 * 4 and books["in_flight"] == 0
    assert set(books["dropped_by_reason"]) == {"actor_died"}
    assert_lag_is_bounded(run, 1)
    tickets = Counter(line["ticket_id"] for line in consumed(run))
    assert sorted(tickets) == list(range(40 * 4)) and set(tickets.values()) == {1}
    audited(bench)


@pytest.mark.prove
def test_a_killed_driver_resumes_with_no_prompt_skipped_and_none_twice(bench: Bench) -> None:
    run = train(bench, "total_learner_steps=30", "checkpoint.every_steps=4")
    run.wait_for_step(9, timeout_s=200)
    run.process.kill()
    run.wait()
    resumed = bench.start("resume", "run")
    summary = finished(resumed)
    books = summary["ledger"]
    assert books["committed"] == 30 * 4 and books["in_flight"] == 0
    audited(bench)
    newest = {line["step"]: line["epoch"] for line in consumed(resumed)}  # what stands of each step after the restore
    stands = [line["ticket_id"] for line in consumed(resumed) if line["epoch"] == newest[line["step"]]]
    assert sorted(stands) == list(range(30 * 4))
