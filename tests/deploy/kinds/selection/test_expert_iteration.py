"""Expert iteration: rounds of which each begins with what its own policy made, in one process that may be killed."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rollcall.deploy.cli import main
from rollcall.deploy.kinds.selection.rounds import RoundSource
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.learners.data.demonstrations import Demonstration
from tests.needs import needs
from tests.runs import Bench, Run

RECIPE = """\
task: {name: arithmetic, digits: 1, num_eval_rows: 20}
policy:
  model: tiny
  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}
  warm_start: {steps: 150, batch_size: 32, learning_rate: 1e-2, threads: 1}
algorithm: {name: expert_iteration, rounds: 3, steps: 6, batch_size: 16}
keep: {best: null, at_least: 1}
actors:
  samples_per_prompt: 4
  prompts_per_batch: 30
  sampling: {max_tokens: 4}
  engine: {max_model_len: 16, max_num_seqs: 32, enforce_eager: true}
learner: {learning_rate: 1e-3, threads: 1}
checkpoint: {every_steps: 4}
eval: {num_rows: 20}
metrics: {enabled: false}
"""


@dataclass
class Rounds:
    rounds: int = 3
    steps: int = 4
    batch_size: int = 2
    restart: bool = False
    token_budget: int = 100


def demonstrations(number: int) -> list[Demonstration]:
    return [Demonstration(np.array([number, i], np.int32), np.array([False, True])) for i in range(5)]


def tokens(batch: Sequence[Demonstration] | None) -> list[list[int]] | None:
    return None if batch is None else [item.token_ids.tolist() for item in batch]


def test_each_round_is_collected_once_where_it_begins_and_a_resumed_one_goes_on_in_the_same_order() -> None:
    asked: list[tuple[int, int]] = []

    def collect(number: int, place: int) -> list[Demonstration]:
        asked.append((number, place))
        return demonstrations(number)

    source = RoundSource(collect, settings=Rounds(), seed=7)
    batches = [tokens(source.take(step)) for step in range(12)]
    assert asked == [(0, 0), (1, 0), (2, 0)]
    assert all(token[0] == step // 4 for step, batch in enumerate(batches) for token in batch or ())
    assert source.take(12) is None
    resumed = RoundSource(collect, settings=Rounds(), seed=7)
    assert [tokens(resumed.take(step)) for step in (6, 7, 8)] == batches[6:9]
    assert asked[3:] == [(1, 2), (2, 0)], "a round that was begun is known to be"


def test_a_stop_while_a_round_is_collected_ends_the_batches_and_the_round_is_asked_for_again() -> None:
    made: list[list[Demonstration] | None] = [None, demonstrations(0)]
    source = RoundSource(lambda number, place: made.pop(0), settings=Rounds(), seed=7)
    assert source.take(0) is None
    assert source.take(0) is not None and made == []


@needs("vllm")
@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("algorithm.rounds=0", "algorithm.rounds = 0"),
        ("algorithm.round=2", "did you mean algorithm.rounds?"),
        ("keep.at_least=null", "everything would be kept"),
        ("total_learner_steps=5", "the run's rounds say how long it is"),
        ("learner.num_processes=2", "one process, with its engine"),
        ("task={name: calculator, num_eval_rows: 0}", "a conversation of several turns"),
    ],
)
def test_settings_that_cannot_be_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, part: str
) -> None:
    (tmp_path / "rounds.yaml").write_text(
        RECIPE.replace("num_eval_rows: 20", "num_eval_rows: 0").replace("steps: 150", "steps: 1")
    )
    monkeypatch.chdir(tmp_path)
    assert main.main(["train", "rounds.yaml", override, "eval.num_rows=0"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rollcall: error")]
    assert len(lines) == 1 and part in lines[0], lines
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.long
@needs("vllm")
def test_a_run_that_is_killed_in_two_rounds_samples_no_prompt_twice_and_ends_in_the_same_bits(bench: Bench) -> None:
    (bench.folder / "rounds.yaml").write_text(RECIPE)
    whole = bench.start("train", "rounds.yaml", "name=whole", name="whole").wait(timeout_s=300)
    assert whole.process.returncode == 0, whole.errors[-2000:]
    summary = whole.summary
    assert summary["status"] == "completed" and summary["learner_steps"] == 18
    assert [made["round"] for made in summary["rounds"]] == [1, 2, 3]
    assert summary["generated_tokens"] == sum(made["generated_tokens"] for made in summary["rounds"]) > 0
    assert summary["first_eval"]["n"] == summary["final_eval"]["n"] == 20

    killed = bench.start("train", "rounds.yaml", "name=killed", name="killed")
    for number in ("1", "2"):
        path = killed.directory / "rounds" / number / "completions.jsonl"
        known = killed_once_it_stands(killed, path)
        killed = bench.start("resume", "killed", name="killed")
    resumed = killed.wait(timeout_s=300)
    assert resumed.process.returncode == 0, resumed.errors[-2000:]
    assert path.read_bytes().startswith(known)
    for made in (1, 2, 3):
        rows = [line["row"] for line in read_jsonl(killed.directory / "rounds" / str(made) / "completions.jsonl")]
        assert len(rows) == 30 and set(Counter(rows).values()) == {1}
    weights = [run.directory / "policy" / "model.safetensors" for run in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    code = bench.start("eval", "killed", "--json").wait(timeout_s=200)
    assert json.loads(code.output)["mean"] == summary["final_eval"]["mean"], "it is a run like any other"


def killed_once_it_stands(run: Run, path: Path) -> bytes:
    """The whole lines that a run has written by the time that it is killed."""
    deadline = time.monotonic() + 250
    while not path.exists() or not path.stat().st_size:
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline, "the round did not begin"
        time.sleep(0.01)
    run.process.send_signal(signal.SIGKILL)
    run.wait()
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
