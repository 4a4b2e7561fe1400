"""A language run whose reward model learns in rounds: what the newest policy writes is judged while it trains, each
model is swapped in and booked, and a run that is killed in the middle of a round ends as one that was not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.consumption import LOG_NAME, read_log
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.preferences.files import PreferencePair, Ranking, read_preferences
from rollcall.reward_service.raters.rater import label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from tests.end_to_end.test_preferences import page_of
from tests.needs import require
from tests.runs import Bench, Run

require("vllm")

SETTINGS = (
    "policy.warm_start=null",
    "policy.tiny={hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}",
    "actors.prompts_per_batch=4",
    "actors.samples_per_prompt=4",
    "actors.sampling.max_tokens=6",
    "actors.engine.max_num_seqs=32",
    "preferences.true_reward=likes:short_words",
    "preferences.noise={error_rate: 0.2}",  # what is said of a comparison is said of it again
    "preferences.total_labels=24",
    "preferences.rounds=2",
    "preferences.epochs=2",
    "preferences.batch_size=8",
    "preferences.threads=1",
    "eval.num_rows=0",
    "metrics.enabled=false",
    "total_learner_steps=4",
    "max_policy_lag=0",
)
LIKES = "def short_words(prompt, response):\n    return float(response.count(' ')) - 0.1 * len(response)\n"


def short_words(prompt: Any, response: str) -> float:
    return response.count(" ") - 0.1 * len(response)


def train(bench: Bench, *overrides: str, name: str = "run") -> Run:
    (bench.folder / "likes.py").write_text(LIKES)
    return bench.start("train", "rlhf-reviews", *SETTINGS, *overrides, f"name={name}", name=name)


def finished(run: Run) -> dict[str, Any]:
    run.wait(timeout_s=280)
    assert run.process.returncode == 0, run.errors[-2000:]
    summary: dict[str, Any] = run.summary
    assert summary["status"] == "completed"
    return summary


def rounds(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.directory / "reward_models" / "rounds.jsonl").read_text().splitlines()]


def reward_versions(run: Run) -> list[str]:
    return [consumed.reward_version for _, consumed in read_log(run.directory / "logs" / LOG_NAME).lines]


def reward_models(run: Run) -> list[bytes]:
    """Weights, by round. (A model's version is also of where its labels lie.)"""
    return [path.read_bytes() for path in sorted(run.directory.glob("reward_models/labels-*/model/model.safetensors"))]


def asked(run: Run, labels: int) -> list[Any]:
    return read_preferences(run.directory / "reward_models" / f"labels-{labels:05d}.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run in one process that nobody interrupts."""
    with closing(Bench(tmp_path_factory.mktemp("undisturbed"))) as bench:
        run = train(bench, "runtime=serial")
        finished(run)
        assert bench.audit()[0] == 0
        yield run


@pytest.mark.long
def test_each_round_asks_about_the_newest_version_and_its_model_scores_what_comes_after(undisturbed: Run) -> None:
    first, second = rounds(undisturbed)
    assert [(r["labels"], r["new_labels"], r["policy_version"]) for r in (first, second)] == [(12, 12, 0), (24, 12, 2)]
    assert first["fresh"] is None and second["fresh"]["n"] <= 12
    versions = reward_versions(undisturbed)
    assert versions == [first["model_version"]] * 8 + [second["model_version"]] * 8  # 4 tickets a step, 2 steps each
    pairs = asked(undisturbed, 24)
    assert len({pair.details["comparison"] for pair in pairs}) == 24 and pairs[:12] == asked(undisturbed, 12)
    assert {pair.rater for pair in pairs} == {"synthetic"}
    config = (undisturbed.directory / "reward_models" / "labels-00024" / "config.yaml").read_text()
    assert "labels-00012/model" in config, "the second model goes on from the first one"


@pytest.mark.long
def test_a_run_that_is_killed_in_the_middle_of_a_round_ends_with_the_same_labels_and_weights(
    bench: Bench, undisturbed: Run
) -> None:
    run = train(bench, "runtime=serial", "checkpoint.every_steps=1")
    deadline = time.monotonic() + 240
    while not (run.directory / "reward_models" / "labels-00024.jsonl").exists():  # the second model is being made
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.process.kill()
    run.wait()
    assert not (run.directory / "summary.json").exists(), "it was over before it was killed"
    assert finished(bench.start("resume", "run"))["weights_hash"] == undisturbed.summary["weights_hash"]
    assert bench.audit()[0] == 0
    assert len(reward_models(run)) == 2 and reward_models(run) == reward_models(undisturbed)

    def said(of: Run) -> list[tuple[str, str, str]]:
        return [(str(pair.prompt), pair.chosen, pair.rejected) for pair in asked(of, 24)]

    assert said(run) == said(undisturbed)


@pytest.mark.long
def test_on_ray_a_trainer_in_a_process_of_its_own_makes_the_same_models(bench: Bench, undisturbed: Run) -> None:
    run = train(bench)
    assert finished(run)["weights_hash"] == undisturbed.summary["weights_hash"]
    assert len(reward_models(run)) == 2 and reward_models(run) == reward_models(undisturbed)
    assert bench.audit()[0] == 0


@pytest.mark.long
def test_two_people_rank_what_the_policy_writes_and_their_agreement_is_booked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN", "a token of ours")
    two = ("preferences.labels_per_comparison=2", "preferences.candidates=3", "preferences.noise={}")
    (bench.folder / "likes.py").write_text(LIKES)
    run = bench.start("train", "rlhf-reviews", *SETTINGS, *two, "runtime=serial", "name=run", "--people")
    people = [SyntheticRater(name, short_words, SyntheticRaterConfig()) for name in ("ada", "bea")]
    with LabelClient(page_of(run), "a token of ours") as queue:
        deadline = time.monotonic() + 200
        while run.process.poll() is None and queue.progress("ada").labels < 24:
            for person in people:
                label_all(person, queue)
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finished(run)
    found = asked(run, 24)
    assert any(isinstance(item, Ranking) for item in found)
    assert all(isinstance(item, Ranking | PreferencePair) for item in found)
    assert {item.rater for item in found} == {"ada", "bea"}
    assert [r["agreement"]["agreement"] for r in rounds(run)] == [1.0, 1.0]
    assert all(r["agreement"]["shared"] >= 6 for r in rounds(run))
    report = (Path(run.directory) / "report.html").read_text()
    assert "Rounds of labels" in report and "raters agree" in report
