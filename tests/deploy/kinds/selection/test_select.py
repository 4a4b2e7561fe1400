"""`rollcall select`: what is kept, the file that has every prompt once, the data sets, and the whole command on a real
engine, killed and given again."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.config.recipe.selection_config import KeepConfig
from rollcall.deploy.kinds.selection.completions import Answered, AnsweredFile, Completion
from rollcall.deploy.kinds.selection.data_sets import Tally, best_of_curve, write_data_sets
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.reward_service.preferences.files import PreferencePair, read_preferences
from rollcall.reward_service.protocol import Message
from tests.needs import needs
from tests.runs import Bench

RECIPE = """\
total_learner_steps: 2
runtime: serial
task: {name: arithmetic, digits: 1, num_eval_rows: 20}
policy:
  model: tiny
  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}
  warm_start: {steps: 150, batch_size: 32, learning_rate: 1e-2, threads: 1}
algorithm: grpo
actors:
  samples_per_prompt: 4
  prompts_per_batch: 4
  sampling: {max_tokens: 4}
  engine: {max_model_len: 16, max_num_seqs: 16, enforce_eager: true}
eval: {num_rows: 0}
metrics: {enabled: false}
"""
SLOW = """\
import time

def score(response, answer):
    time.sleep(0.1)
    return float(response == answer)
"""


def answered(
    *texts_and_scores: tuple[str, float], row: int = 0, cut: Sequence[int] = (), prompt: str = "1+1="
) -> Answered:
    completions = [
        Completion(text, score, len(text) + 1, "length" if i in cut else "stop")
        for i, (text, score) in enumerate(texts_and_scores)
    ]
    return Answered(row, f"rows {row}", prompt, tuple(completions), "task", -1)


@given(
    given_=st.lists(st.tuples(st.sampled_from(["", " ", "a", "b", "c", "d"]), st.integers(0, 3)), max_size=8),
    cut=st.sets(st.integers(0, 7)),
    best=st.none() | st.integers(1, 4),
    least=st.none() | st.integers(0, 3),
)
def test_what_is_kept_is_whole_told_once_good_enough_and_the_best(
    given_: list[tuple[str, int]], cut: set[int], best: int | None, least: int | None
) -> None:
    if best is None and least is None:
        return
    item = answered(*((text, float(score)) for text, score in given_), cut=sorted(cut))
    kept = item.kept(KeepConfig(best=best, at_least=least))
    # Literally: one after the other, whoever is the best of what is left.
    left = [i for i, (text, score) in enumerate(given_) if text.strip() and i not in cut]
    left = [i for i in left if given_[i][0] not in {given_[j][0] for j in left if j < i}]
    left = [i for i in left if least is None or given_[i][1] >= least]
    expected: list[int] = []
    while left and (best is None or len(expected) < best):
        expected.append(max(left, key=lambda i: (given_[i][1], -i)))
        left.remove(expected[-1])
    assert kept == expected


def test_a_pair_is_the_best_and_the_worst_and_of_equals_there_is_none() -> None:
    rule = KeepConfig(best=1, at_least=None)
    assert answered(("a", 0.5), ("b", 2.0), ("c", -1.0)).pair(rule) == (1, 2)
    assert answered(("a", 1.0), ("b", 1.0)).pair(rule) is None
    assert answered(("a", 1.0), ("a", 1.0), ("b", 0.0), cut=[2]).pair(rule) is None, "what was cut teaches nothing"
    assert answered(("a", 0.5), ("b", 0.0)).pair(KeepConfig(best=None, at_least=1.0)) is None


def test_the_best_of_bad_answers_is_no_good_answer() -> None:
    """KTO's labels need a threshold: without one there are none."""
    item = answered(("a", 0.5), ("b", 1.0))
    assert item.labelled(KeepConfig(best=1, at_least=None)) == []
    assert item.labelled(KeepConfig(best=1, at_least=0.75)) == [(0, False), (1, True)]


def test_a_rule_that_keeps_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="everything would be kept"):
        KeepConfig(best=None, at_least=None)


def test_a_half_written_line_is_taken_away_and_each_prompt_stands_once(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    file = AnsweredFile(path)
    items = [answered(("naïve\n\u2028", 1.0), row=row) for row in (7, 2, 5)]
    for item in items:
        file.add(item)
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    again = AnsweredFile(path)
    assert again.rows == {7, 2}
    again.add(items[2])
    assert [item.row for item in again.read()] == [2, 5, 7], "in the rows' order, whenever each was answered"
    assert list(again.read([5])) == [items[2]]
    again.close()
    assert path.read_bytes() == whole
    path.write_bytes(whole + whole.splitlines(keepends=True)[0])
    with pytest.raises(BadInput, match=r"completions\.jsonl:4: row 7 has a line already; remove the line"):
        AnsweredFile(path)
    path.write_bytes(b'{"row": 1}\n' + whole)
    with pytest.raises(BadInput, match=r"completions\.jsonl:1: "):
        AnsweredFile(path)


def test_the_data_sets_are_read_by_tasks_and_preference_runs_as_they_are(tmp_path: Path) -> None:
    items = [
        answered(("2", 1.0), ("3", 0.0), ("4", 0.0), row=0, prompt="1+1="),
        answered(("5", 0.0), row=1, prompt="1+3="),
        answered(("6", 1.0), ("6", 1.0), row=2, prompt="3+3="),
    ]
    rule = KeepConfig(best=1, at_least=1.0)
    counts = write_data_sets(
        tmp_path,
        lambda: items,
        rule,
        asked=lambda prompt: (Message(role="user", content=prompt),),
        origin={"policy": "abc"},
    )
    assert counts == {"sft.jsonl": 2, "pairs.jsonl": 1, "labelled.jsonl": 5}
    rows = Jsonl(JsonlConfig(path=tmp_path / "sft.jsonl")).rows("train")
    assert [(row.prompt, row.answer) for row in rows] == [("1+1=", "2"), ("3+3=", "6")]
    assert rows[0].columns["score"] == 1.0 and rows[0].columns["policy"] == "abc" and rows[0].columns["of"] == 3
    (pair,) = read_preferences(tmp_path / "pairs.jsonl")
    assert isinstance(pair, PreferencePair) and (pair.chosen, pair.rejected, pair.margin) == ("2", "3", None)
    assert pair.prompt == (Message(role="user", content="1+1="),) and pair.details["scores"] == [1.0, 0.0]
    labelled = read_jsonl(tmp_path / "labelled.jsonl")
    assert [(line["completion"], line["label"]) for line in labelled] == [
        ("2", True), ("3", False), ("4", False), ("5", False), ("6", True)
    ]  # fmt: skip
    before = (tmp_path / "pairs.jsonl").read_bytes()
    write_data_sets(
        tmp_path,
        lambda: items,
        KeepConfig(best=1),
        asked=lambda p: (Message(role="user", content=p),),
        origin={"policy": "abc"},
    )
    assert (tmp_path / "pairs.jsonl").read_bytes() == before and not (tmp_path / "labelled.jsonl").exists()


def test_the_numbers_of_a_selection() -> None:
    tally = Tally()
    for item in (answered(("a", 1.0), ("b", 0.0), cut=[1]), answered(("c", 0.0), ("d", 0.0))):
        tally.add(item, KeepConfig(best=1, at_least=0.5))
    found = tally.as_dict()
    assert (found["prompts"], found["completions"], found["generated_tokens"], found["cut"]) == (2, 4, 8, 1)
    assert (found["kept"], found["kept_mean_score"], found["prompts_without"]) == (1, 1.0, 1)
    assert found["mean_score"] == 0.25
    curve = best_of_curve([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    assert [point["n"] for point in curve] == [1, 2, 3]
    # Of two of (0, 1, 0): 1 in two of three subsets; of (0, 0, 3): 3 in two of three.
    assert [point["expected_best"] for point in curve] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert best_of_curve([]) == []


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@needs("vllm")
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["select"], "required: RUN_OR_RECIPE, DIRECTORY"),
        (["select", "sums.yaml", "out"], "its model is made by its runs: name one of them"),
        (["select", "cartpole-ppo", "out"], "no recipe with a task for a language model"),
        (["select", "nothing", "out"], "no run 'nothing'"),
        (["select", "sums.yaml", "out", "--samples", "0"], "--samples = 0"),
        (["select", "sums.yaml", "out", "--at-least", "nan"], "--at-least (command line)"),
        (
            ["select", "sums.yaml", "out", "--best", "2", "policy.model=x"],
            "settings (key=value) stand before the options",
        ),
        (["select", "sums.yaml", "out", "policy.model=/nowhere"], "/nowhere: there is no such directory"),
        (["select", "sums.yaml", "taken", "policy.model=model"], "something else is there, and no selection"),
        (["select", "model", "out"], "a model's directory, which has no task"),
        (["select", "calculator.yaml", "out", "policy.model=model"], "a conversation of several turns"),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line(
    work: Path, model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    shutil.copytree(model, "model")
    Path("taken").mkdir()
    Path("taken", "mine.txt").touch()
    Path("calculator.yaml").write_text(RECIPE.replace("name: arithmetic", "name: calculator").replace("16", "64"))
    assert main.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the recipe, imitated a little: right more often than by chance, and not always."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "sums.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main.main(["sft", "sums.yaml"]) == 0
    return folder / "runs" / "sums" / "warm_start"


@pytest.mark.long
@needs("vllm")
def test_a_selection_that_is_killed_goes_on_with_each_prompt_once_and_its_data_sets_are_trained_on(
    bench: Bench, model: Path
) -> None:
    for name, text in (("sums.yaml", RECIPE), ("slow.py", SLOW)):
        (bench.folder / name).write_text(text)
    select = (
        "select",
        "sums.yaml",
        "out",
        f"policy.model={model}",
        "reward=slow:score",
        "--at-least",
        "1",
        "--best",
        "1",
    )
    path = bench.folder / "out" / "completions.jsonl"
    first = bench.start(*select)
    deadline = time.monotonic() + 200
    while not path.exists() or len(path.read_bytes().splitlines()) < 10:
        assert first.process.poll() is None, first.process.communicate()
        assert time.monotonic() < deadline, "nothing was answered"
        time.sleep(0.05)
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    known = path.read_bytes()
    whole = known[: known.rfind(b"\n") + 1]
    second = bench.start(*select).wait()
    assert second.process.returncode == 0, second.errors[-2000:]
    assert "of 80 prompts are answered already" in second.output and "mean score" in second.output
    assert path.read_bytes().startswith(whole), "what stood is not touched"
    lines = read_jsonl(path)
    assert Counter(line["row"] for line in lines) == Counter(range(80))
    # The same again without the kill, as far as float arithmetic in other batches lets it be.
    other = bench.start("select", "sums.yaml", "other", f"policy.model={model}").wait()
    assert other.process.returncode == 0, other.errors[-2000:]
    texts = [texts_of(lines), texts_of(read_jsonl(bench.folder / "other" / "completions.jsonl"))]
    assert sum(texts[0][row] == texts[1][row] for row in range(80)) >= 78
    assert all(
        c["score"] == float(c["text"] == line_answer(line["prompt"])) for line in lines for c in line["completions"]
    )

    summary = json.loads((bench.folder / "out" / "summary.json").read_text())
    right = sum(any(c["score"] == 1 for c in line["completions"]) for line in lines)
    assert summary["files"]["sft.jsonl"] == right and summary["missing"] == 0 and len(summary["scorers"]) == 1
    assert summary["best_of"][-1]["expected_best"] == pytest.approx(right / 80)

    tuned = bench.start(
        "sft", "sums.yaml", "task={name: jsonl, path: out/sft.jsonl}", f"policy.model={model}",
        "policy.warm_start.steps=3", "name=tuned", name="tuned",
    ).wait()  # fmt: skip
    assert tuned.process.returncode == 0, tuned.errors[-2000:]
    direct = bench.start(
        "train", "synthetic-dpo", "data={train: out/pairs.jsonl}", f"policy.model={model}", "policy.warm_start=null",
        "total_learner_steps=2", "kl_prompts=0", "name=direct", name="direct",
    ).wait()  # fmt: skip
    assert direct.process.returncode == 0, direct.errors[-2000:]


def line_answer(prompt: str) -> str:
    left, right = prompt.removesuffix("=").split("+")
    return str(int(left) + int(right))


def texts_of(lines: list[dict[str, Any]]) -> dict[int, list[str]]:
    return {line["row"]: [completion["text"] for completion in line["completions"]] for line in lines}
