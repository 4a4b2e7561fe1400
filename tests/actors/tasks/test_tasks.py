"""Arithmetic against Python's own, the split of problems, and files of problems with everything that can be wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rollcall.actors.tasks import arithmetic, calculator, gsm8k, jsonl
from rollcall.actors.tasks.arithmetic import Arithmetic, ArithmeticConfig, draw_problems, evaluate
from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.errors import BadInput


def make_arithmetic(**settings: Any) -> Arithmetic:
    return Arithmetic(ArithmeticConfig(**settings))


@pytest.mark.parametrize("module", [arithmetic, calculator, gsm8k, jsonl])
def test_a_module_names_its_task_and_every_setting_is_described(module: Any) -> None:
    config = module.TASK.Config
    assert config.model_fields["name"].default == module.__name__.rpartition(".")[2]
    assert all(field.description for field in config.model_fields.values())
    assert config.model_config["extra"] == "forbid"
    assert config.model_config["frozen"]


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(2, 6))
def test_answers_are_what_python_makes_of_the_problem(data: st.DataObject, num_operands: int) -> None:
    operands = data.draw(st.lists(st.integers(0, 999), min_size=num_operands, max_size=num_operands))
    operators = data.draw(st.lists(st.sampled_from("+-*"), min_size=num_operands - 1, max_size=num_operands - 1))
    text = str(operands[0]) + "".join(f"{sign}{number}" for sign, number in zip(operators, operands[1:], strict=True))
    assert evaluate(operands, operators) == eval(text)


def test_prompts_and_answers_agree_and_consist_of_the_alphabet() -> None:
    task = make_arithmetic(digits=3, operations=("+", "-", "*"), num_operands=3, num_train_rows=300)
    rows = [*task.rows("train"), *task.rows("eval")]
    for row in rows:
        assert str(eval(row.prompt.removesuffix("="))) == row.answer
    assert set("".join(row.prompt + row.answer for row in rows)) == set(task.alphabet())
    assert all(sign in "".join(row.prompt for row in rows) for sign in "+-*")


def test_the_whole_space_is_learnt_from_but_for_what_is_held_out() -> None:
    task = make_arithmetic()
    train, held_out = ({row.prompt for row in task.rows(split)} for split in ("train", "eval"))
    assert len(held_out) == len(task.rows("eval")) == 500
    assert train | held_out == {f"{a}+{b}=" for a in range(100) for b in range(100)}
    assert not train & held_out


@pytest.mark.parametrize("settings", [{"digits": 3}, {"digits": 9, "num_operands": 8}])
def test_a_large_space_is_sampled_without_repetition(settings: dict[str, int]) -> None:
    task = make_arithmetic(**settings)
    prompts = [row.prompt for split in ("train", "eval") for row in task.rows(split)]
    assert len(prompts) == len(set(prompts)) == 20_500


def test_problems_are_those_of_the_seed_and_stay_held_out_however_many_are_learnt_from() -> None:
    few, many, other = (make_arithmetic(digits=3, **s) for s in ({"num_train_rows": 100}, {}, {"seed": 1}))
    assert make_arithmetic(digits=3).rows("train") == many.rows("train")
    assert few.rows("eval") == many.rows("eval")
    assert len(few.rows("train")) == 100
    assert {row.prompt for row in other.rows("eval")} != {row.prompt for row in many.rows("eval")}


def test_every_problem_is_as_likely_to_be_drawn_as_any_other() -> None:
    # 4,000 draws of 3 and 2 of 10 problems: a count is binomial with standard deviation below 29; the bound is five.
    trains, evals = [0] * 10, [0] * 10
    for seed in range(4_000):
        train, held_out = draw_problems(10, num_train=3, num_eval=2, seed=seed, where="test")
        assert len({*train, *held_out}) == 5
        for i in train:
            trains[i] += 1
        for i in held_out:
            evals[i] += 1
    assert all(abs(count - 1_200) < 145 for count in trains)
    assert all(abs(count - 800) < 127 for count in evals)


def test_more_problems_than_there_are_is_one_clear_line() -> None:
    with pytest.raises(BadInput, match=r"num_eval_rows is 500, and there are only 100 problems.* raise digits"):
        make_arithmetic(digits=1).rows("train")
    with pytest.raises(BadInput, match=r"num_train_rows \+ num_eval_rows is 101"):
        make_arithmetic(digits=1, num_train_rows=100, num_eval_rows=1).rows("eval")
    task = make_arithmetic(digits=1, num_train_rows=99, num_eval_rows=1)
    assert len(task.rows("train")) == 99


def test_an_operator_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="name each once"):
        ArithmeticConfig(operations=("+", "+"))


@pytest.mark.parametrize(
    ("completion", "correct", "parsed"),
    [
        ("46", True, True),
        (" 46\n", True, True),
        ("47", False, True),
        ("-46", False, True),
        ("046", False, True),
        ("", False, False),
        ("4 6", False, False),
        ("46.0", False, False),
        ("=46", False, False),
        ("٤٦", False, False),
    ],
)
def test_arithmetic_wants_the_integer_itself(completion: str, correct: bool, parsed: bool) -> None:
    judgement = make_arithmetic().judge(Row("12+34=", "46", "arithmetic 0"), completion)
    assert (judgement.correct, judgement.parsed, judgement.reward) == (correct, parsed, float(correct))


@pytest.mark.parametrize("operations", [("+",), ("-",), ("+", "-", "*")])
def test_demonstrations_of_arithmetic_are_judged_correct(operations: tuple[str, ...]) -> None:
    task = make_arithmetic(operations=operations, num_train_rows=200)
    for row in task.rows("train"):
        prompt, answer = task.demonstration(row)
        assert (prompt.text, prompt.by_model, answer.by_model) == (row.prompt, False, True)
        assert task.judge(row, answer.text).reward == 1.0


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def make_jsonl(path: Path, **settings: Any) -> Jsonl:
    return Jsonl(JsonlConfig(path=path, **settings))


def test_rows_of_a_file_keep_their_line_and_their_other_columns(tmp_path: Path) -> None:
    lines = ({"prompt": "2+2?", "answer": "4", "level": 3}, "", {"prompt": "a\u2028b", "answer": 5})
    path = write(tmp_path / "problems.jsonl", *lines)
    task = make_jsonl(path)
    assert task.rows("train") == [
        Row("2+2?", "4", f"{path}:1", {"level": 3, "answer": "4"}),
        Row("a\u2028b", "5", f"{path}:3", {"answer": 5}),
    ]
    assert task.rows("eval") == []


def test_other_columns_and_a_system_prompt_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "problems.jsonl", {"q": "2+2?", "a": "4"})
    task = make_jsonl(path, prompt_column="q", answer_column="a", system_prompt="Be brief.", chat=True)
    (row,) = task.rows("train")
    assert row.prompt == "2+2?" and task.chat
    assert row.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"})


def test_held_out_rows_are_the_seeds_and_apart_from_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "problems.jsonl", *({"prompt": str(i), "answer": "x"} for i in range(20)))

    def split(seed: int) -> tuple[list[str], list[str]]:
        task = make_jsonl(path, num_eval_rows=5, seed=seed)
        return [row.prompt for row in task.rows("train")], [row.prompt for row in task.rows("eval")]

    train, held_out = split(0)
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted(train + held_out, key=int) == [str(i) for i in range(20)]
    assert split(0) == (train, held_out)
    assert split(1) != (train, held_out)


def test_equal_prompts_are_never_both_learnt_from_and_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "p.jsonl", *({"prompt": str(i % 6), "answer": str(i)} for i in range(30)))
    for seed in range(5):
        task = make_jsonl(path, num_eval_rows=2, seed=seed)
        train, held_out = task.rows("train"), task.rows("eval")
        assert len(held_out) == 2 == len({row.prompt for row in held_out})
        assert len(train) == 20 and not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert "8 rows have the prompt of a held-out row, and are left out" in caplog.text
    with pytest.raises(BadInput, match="num_eval_rows is 6, and the file has 6 different prompts"):
        make_jsonl(path, num_eval_rows=6).rows("train")


def test_prompts_that_two_files_share_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "train.jsonl", *({"prompt": str(i), "answer": "x"} for i in range(5)))
    eval_path = write(tmp_path / "eval.jsonl", *({"prompt": str(i), "answer": "x"} for i in range(3, 8)))
    make_jsonl(path, eval_path=eval_path).rows("train")
    assert "share 2 prompts: what is learnt from them is evaluated on them" in caplog.text


@pytest.mark.parametrize(
    ("written", "text", "value"),
    [
        ("5", "5", 5),
        ("5.0", "5.0", 5.0),
        ("1e22", "1e22", 1e22),
        ("1234567.10", "1234567.10", 1234567.1),
        ('"5"', "5", "5"),
    ],
)
def test_an_answer_is_its_number_as_written_and_stays_a_number_among_the_columns(
    tmp_path: Path, written: str, text: str, value: Any
) -> None:
    path = write(tmp_path / "p.jsonl", f'{{"prompt": "a", "gold": {written}, "answer": "a column of its own"}}')
    (row,) = make_jsonl(path, answer_column="gold").rows("train")
    assert row.answer == text
    assert row.columns == {"gold": value, "answer": "a column of its own"}
    assert type(row.columns["gold"]) is type(value)
    (row,) = make_jsonl(
        write(tmp_path / "q.jsonl", f'{{"prompt": "a", "gold": {written}}}'), answer_column="gold"
    ).rows("train")
    assert row.columns == {"gold": value, "answer": value}


def test_an_eval_file_is_taken_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", {"prompt": "a", "answer": "b"})
    eval_path = write(tmp_path / "eval.jsonl", {"prompt": "c", "answer": "d"})
    task = make_jsonl(path, eval_path=eval_path)
    assert [row.prompt for row in task.rows("train")] == ["a"]
    assert [row.prompt for row in task.rows("eval")] == ["c"]
    with pytest.raises(ValidationError, match="give one of them"):
        make_jsonl(path, eval_path=eval_path, num_eval_rows=3)


GOOD = {"prompt": "a", "answer": "b"}


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([], {}, "p.jsonl: no rows"),
        ([GOOD, "{broken"], {}, r"p.jsonl:2: not JSON"),
        ([GOOD, "[1]"], {}, r"p.jsonl:2: a JSON list, not an object"),
        ([GOOD, "[" * 100_000], {}, r"p.jsonl:2: not JSON"),
        ([GOOD, {"prompt": "a", "reply": "b"}], {}, r"p.jsonl:2: there is no column 'answer'.* 'prompt', 'reply'"),
        ([GOOD], {"prompt_column": "question"}, r"p.jsonl:1: there is no column 'question'"),
        ([GOOD, {"prompt": " ", "answer": "b"}], {}, r"p.jsonl:2: the prompt \(column 'prompt'\) is empty"),
        ([{"prompt": 3, "answer": "b"}], {}, r"p.jsonl:1: the prompt .* is neither text nor a list of messages"),
        (
            [{"prompt": [{"role": "user", "content": "a"}], "answer": "b"}],
            {},
            r"p.jsonl:1: the prompt is a list of chat messages: set task.chat=true",
        ),
        (['{"prompt": "\\ud83d", "answer": "b"}'], {}, "p.jsonl:1: half a character"),
        (['{"prompt": "a", "answer": "\\ud83d b"}'], {}, "p.jsonl:1: half a character"),
        (['{"prompt": "a", "answer": NaN}'], {}, "p.jsonl:1: NaN is no number of JSON's"),
        ([{"prompt": "a", "answer": None}], {}, r"p.jsonl:1: the answer .* neither text nor a number"),
        ([GOOD, {"prompt": "a", "answer": ""}], {"judge": "contains"}, r"p.jsonl:2: the answer .* is empty"),
        ([GOOD], {"judge": "number"}, r"p.jsonl:1: the answer 'b' cannot be read as one number"),
        ([GOOD], {"num_eval_rows": 1}, r"p.jsonl: num_eval_rows is 1, and the file has 1 different prompts"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_that_says_where(
    tmp_path: Path, lines: list[Any], settings: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "p.jsonl", *lines)
    with pytest.raises(BadInput, match=message) as caught:
        make_jsonl(path, **settings).rows("train")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent\.jsonl: cannot be read: there is no such file"):
        make_jsonl(tmp_path / "absent.jsonl").rows("train")
    with pytest.raises(BadInput, match="directory"):
        make_jsonl(tmp_path).rows("train")
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xe9", "answer": "b"}')
    with pytest.raises(BadInput, match=r"latin\.jsonl:2: not UTF-8: save the file as UTF-8"):
        make_jsonl(tmp_path / "latin.jsonl").rows("train")


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert make_jsonl(path).rows("train") == [Row("a", "b", f"{path}:1", {"answer": "b"})]


@pytest.mark.parametrize(
    ("judge", "answer", "completion", "correct", "parsed"),
    [
        ("exact", "blue", " blue\n", True, True),
        ("exact", "blue", "Blue", False, True),
        ("exact", "blue", "it is blue", False, True),
        ("exact", "blue", "  ", False, False),
        ("contains", "blue", "it is blue.", True, True),
        ("contains", "blue", "red", False, True),
        ("contains", "blue", "", False, False),
        ("number", "1,000", "that makes 1000.00", True, True),
        ("number", "1,000", "that makes 100", False, True),
        ("number", "1,000", "that makes a thousand", False, False),
    ],
)
def test_judges_of_files_judge_as_they_say(
    tmp_path: Path, judge: str, answer: str, completion: str, correct: bool, parsed: bool
) -> None:
    task = make_jsonl(write(tmp_path / "p.jsonl", {"prompt": "a", "answer": answer}), judge=judge)
    (row,) = task.rows("train")
    judgement = task.judge(row, completion)
    assert (judgement.correct, judgement.parsed, judgement.reward) == (correct, parsed, float(correct))
    assert task.judge(row, task.demonstration(row)[-1].text).correct


def test_drawing_problems_leaves_the_global_random_state_alone() -> None:
    before = random.getstate()
    make_arithmetic(seed=3).rows("train")
    assert random.getstate() == before
