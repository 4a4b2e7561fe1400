"""The final number of a solution, found in what people and models write; and the data set against itself."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from rollcall.actors.tasks.gsm8k import GSM8K, GSM8KConfig
from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.errors import BadInput
from rollcall.reward_service.answers.final_answer import final_number
from tests.needs import GSM8K as DATA
from tests.needs import needs


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("####18.", "18"),
        ("#### 1,234", "1234"),
        ("#### 1,234.", "1234"),
        ("#### $1,234,567.50", "1234567.50"),
        ("#### 18.00", "18"),
        ("#### 50%", "50"),
        ("#### -7", "-7"),
        ("#### -$7", "-7"),
        ("#### $-7", "-7"),
        ("#### \u22127", "-7"),
        ("#### .5", "0.5"),
        ("####\n 18 eggs, of 20", "18"),
        ("#### 3\nno: #### 4\n", "4"),
        ("\\boxed{3} and then #### 4", "4"),
        ("#### none, but \\boxed{12}", "12"),
        ("12 eggs make \\boxed{3}, which is \\boxed{\\$1{,}400} for 2 days", "1400"),
        ("so \\boxed{x = 18\\text{ cm}^2}, in 3 days", "18"),
        ("an open \\boxed{17", "17"),
        ("a closed \\boxed{5} and an open \\boxed{17", "5"),
        ("\\boxed{\\text{cost} = {7}} }", "7"),
        ("She makes 9 * 2 = $18 every day.", "18"),
        ("(16)-3", "13"),
        ("it falls to -3.", "-3"),
        ("**1,000** dollars", "1000"),
        ("1.5.", "1.5"),
    ],
)
def test_the_final_number_is_found(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "####", "none", "#### many", "\\boxed{}", "$,.-%", "٣"])
def test_without_a_number_there_is_none(text: str) -> None:
    assert final_number(text) is None


def test_a_long_text_is_searched_in_time_proportional_to_its_length() -> None:
    # Each would take hours if it were quadratic with a large constant, or worse.
    for text in ("1" * 200_000, "1,111" * 40_000, "\\boxed{" * 50_000, "-$" * 100_000, "####" * 50_000):
        final_number(text)


@pytest.mark.parametrize(
    ("completion", "correct", "parsed"),
    [
        ("She earns 1,234 dollars.\n#### 1234", True, True),
        ("#### 1,234", True, True),
        ("#### $1,234.00", True, True),
        ("So the answer is \\boxed{1{,}234}.", True, True),
        ("The answer is 1234", True, True),
        ("#### 1235\nNot 1234, I think", False, True),
        ("1234, or rather #### -1234", False, True),
        ("#### 12.34", False, True),
        ("1234 is what 1000 and 234 make", False, True),
        ("I do not know.", False, False),
    ],
)
def test_ten_completions_are_judged_as_they_should_be(completion: str, correct: bool, parsed: bool) -> None:
    task = GSM8K(GSM8KConfig(directory=Path()))
    judgement = task.judge(Row("How many?", "1,234", "test.jsonl:1"), completion)
    assert (judgement.correct, judgement.parsed, judgement.reward) == (correct, parsed, float(correct))


def write_split(directory: Path, answer: str) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (directory / name).write_text(json.dumps({"question": "How many?", "answer": answer}) + "\n")


def test_a_row_is_the_question_with_the_instruction_and_its_number(tmp_path: Path) -> None:
    write_split(tmp_path, "1,200 + 34.\n#### 1,234")
    config = GSM8KConfig(directory=tmp_path, instruction="Answer after ####.")
    task = GSM8K(config)
    (row,) = task.rows("eval")
    assert (row.prompt, row.answer) == ("How many?\nAnswer after ####.", "1,234")
    assert row.source == f"{tmp_path / 'test.jsonl'}:1"
    prompt, solution = task.demonstration(row)
    assert (prompt.text, prompt.by_model) == (row.prompt, False)
    assert (solution.text, solution.by_model) == ("1,200 + 34.\n#### 1,234", True)
    (plain,) = GSM8K(config.model_copy(update={"chat": False})).rows("train")
    assert plain.prompt == "How many?\nAnswer after ####.\n"


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"train.jsonl: there is no such file: get .* task.directory"):
        GSM8K(GSM8KConfig(directory=tmp_path)).rows("train")
    write_split(tmp_path, "1,200 + 34 is 1,234")
    with pytest.raises(BadInput, match=r"test.jsonl:1: the answer does not end with #### and a number"):
        GSM8K(GSM8KConfig(directory=tmp_path)).rows("eval")


@needs("gsm8k")
def test_every_reference_solution_is_judged_correct_against_itself() -> None:
    task = GSM8K(GSM8KConfig(directory=DATA))
    rows = task.rows("eval")
    assert len(rows) == 1_319
    assert len(task.rows("train")) == 7_473
    for row in [*rows, *task.rows("train")]:
        solution = task.demonstration(row)[-1].text
        assert task.judge(row, solution).reward == 1.0, row.source
        assert final_number(row.answer) == Decimal(solution.rpartition("####")[2].strip().replace(",", ""))


@needs("gsm8k")
def test_a_reference_solution_is_wrong_for_another_number() -> None:
    task = GSM8K(GSM8KConfig(directory=DATA))
    rows = task.rows("eval")
    for row, other in pairwise(rows):
        same = Decimal(row.answer.replace(",", "")) == Decimal(other.answer.replace(",", ""))
        assert task.judge(row, other.columns["solution"]).correct == same
