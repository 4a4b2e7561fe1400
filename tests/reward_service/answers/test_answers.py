"""docs/answers.md, sentence by sentence: its tables are the cases. And hostile texts, which must be cheap to read."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.actors.tasks.gsm8k import judge_number
from rollcall.reward_service.answers.exact_numbers import MAX_DIGITS
from rollcall.reward_service.answers.final_answer import AnswerPart, final_number, gold_number, last_box
from rollcall.reward_service.scorer import Failure, Score
from rollcall.reward_service.scorers.maths import found_in, make_worker
from rollcall.reward_service.scorers.maths_config import MathsConfig
from rollcall.reward_service.scorers.rules import same_number
from rollcall.reward_service.scorers.rules_config import NumberConfig
from tests import ROOT
from tests.needs import require

PAGE = (ROOT / "docs" / "answers.md").read_text()
# A cell in backticks; a bar cannot stand in one.
NUMBERS = re.findall(r"^\| `([^|]*)` \| ([-0-9.]+|none) \|$", PAGE, re.MULTILINE)
FORMULAS = re.findall(r"^\| `([^|]*)` \| `([^|]*)` \| ([01]) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("text", "number"), NUMBERS, ids=[text for text, _ in NUMBERS])
def test_the_page_on_answers_says_what_is_read(text: str, number: str) -> None:
    found = final_number(text.replace(" ⏎ ", "\n").replace("⍽", "\u00a0"))
    assert found == (None if number == "none" else Decimal(number))


def test_every_line_of_the_pages_tables_is_tested() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) == len(NUMBERS) + len(FORMULAS) > 110


def test_a_number_is_the_same_in_all_its_forms() -> None:
    forms = ["1234.5", "1,234.5", "1\u00a0234.5", "1\u2009234.5", "1\u202f234.5", "1_234.5", "1~234.5", r"1\,234.5"]
    forms += ["1{,}234.5", r"1,\!234.5", "１２３４.５", "𝟏𝟐𝟑𝟒.𝟓", "$1,234.50", "€1234.5", "1.2345e3", r"1234\frac12"]
    forms += ["2469/2", r"\frac{2469}{2}", "1234½", "1234 1/2", "1.2345 × 10³", r"1.2345 \times 10^{3}", "+1234.5"]
    for written in forms:
        for text in (written, f"It is {written}.", f"#### {written}", rf"\boxed{{{written}}}", f"**{written}**"):
            assert final_number(text) == Decimal("1234.5"), text
        for sign in ("-", "\u2212", "\u2013", "- ", "\u2212 "):
            if written[0] not in "+":
                assert final_number(rf"x = {sign}{written}") == Decimal("-1234.5"), (sign, written)


def test_an_answer_of_several_readings_is_wrong_whatever_the_right_answer_is() -> None:
    for text in (
        "5-7 eggs",
        "5 – 7",
        "3 or 4",
        "3,4",
        "5:7",
        "7/6/5",
        "2 out of 5",
        "|-5|",
        "5 squared",
        "2 + 3 million",
    ):
        assert final_number(text) is None, text
        assert not judge_number("5", text).parsed


def test_a_right_answer_of_one_number_may_be_written_in_ways_that_running_text_may_not() -> None:
    assert gold_number("11 5/6") == Decimal(71) / 6
    assert gold_number("1 234") == 1234
    assert gold_number("3 + 4 = 7. So 7 a day, 14 in 2 days: 14") == 14
    for unreadable in ("one", "5 or 6", r"\boxed{2\pi}", "", "3, 4"):
        assert gold_number(unreadable) is None
    assert judge_number("11 5/6", r"\boxed{\frac{71}{6}}").correct


def test_a_part_that_was_a_box_is_read_as_a_formula() -> None:
    config = NumberConfig.model_validate({"part": {"take": "boxed"}})
    for response, value in ((r"\boxed{5!}", 1.0), (r"\boxed{120x}", 0.0), (r"\boxed{1} and \boxed{120}", 0.0)):
        assert same_number(config, response, {"answer": "120"}) == Score(value, {"parsed": value}), response


def test_a_right_answer_without_one_reading_is_an_error_and_never_a_score() -> None:
    outcome = same_number(NumberConfig(), "5", {"answer": "5 or 6"})
    assert isinstance(outcome, Failure) and "holds no number: '5 or 6'" in outcome.message


HOSTILE = {
    "digits": "9" * 500,
    "tower": "10^10^10",
    "brackets": "(" * 100_000 + "5",
    "pairs": "(1+" * 50_000 + "1" + ")" * 50_000,
    "lists": "[(" * 50_000,
    "fractions": "\\frac" * 40_000,
    "roots": "\\sqrt" * 40_000 + "4",
    "powers": "2^" * 50_000 + "2",
    "signs": "\\boxed{" + "-" * 3_000 + "5}",
    "factorials": "\\boxed{9" + "!" * 3_000 + "}",
    "mixed": "1 1/" * 50_000,
    "multipliers": "5" + " million" * 50_000,
    "fonts": "\\text{" * 50_000,
    "vulgar": "1½/" * 30_000,
    "boxes": "\\boxed{5}," * 50_000,
    "nested boxes": "\\boxed{" * 30_000 + "5" + "}" * 30_000,
    "marks": "#### \n" * 50_000,
    "tags": "<answer>5" * 50_000,
    "a box of a megabyte": "\\boxed{" + "9" * 1_000_000 + "}",
    "a line of a megabyte": "#### " + "9" * 1_000_000,
    "spaces": " " * 1_000_000 + "5",
    "subscripts": "x_" * 50_000 + "5",
    "surrogates": "\x00\ud800" * 1_000 + "5",
    "lines": "\n1" * 200_000,
    "exponents": "1e9999 " * 10_000,
    "times": "\\times " * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_is_read_in_a_moment(text: str) -> None:
    begin = time.perf_counter()
    number = final_number(text)
    assert time.perf_counter() - begin < 5  # a tenth of a second; the machine may be busy
    assert number is None or number.is_finite()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_formula_is_found_in_a_moment(text: str) -> None:
    begin = time.perf_counter()
    for part in (AnswerPart(), AnswerPart(take="boxed")):
        found_in(text, part)
    assert time.perf_counter() - begin < 5


PIECES = [
    *"0123456789.,+-*/^!%$(){}[]|=:;_~'\n x",
    "\u2212",
    "–",
    "—",
    "½",
    "²",
    "₂",
    "√",
    "π",
    "×",
    "\u00a0",
    "\u2009",
    "７",
]
PIECES += ["\\frac", "\\sqrt", "\\boxed{", "\\text{", "\\times ", "\\pi", "\\begin{", "\\,", "{,}", "####", "<answer>"]
PIECES += [
    "</answer>",
    " million",
    " and ",
    " or ",
    " hours ",
    "e9",
    "10^",
    "\\overline{",
    "\\left(",
    "…",
    "**",
    "万",
    "Σ",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_no_text_upsets_the_reader(text: str) -> None:
    number = final_number(text)
    assert number is None or (number.is_finite() and abs(number.adjusted()) <= 2 * MAX_DIGITS)
    assert gold_number(text) is None or gold_number(text).is_finite()  # type: ignore[union-attr]
    assert last_box(text) is None or isinstance(last_box(text), str)


@settings(max_examples=100, deadline=None)
@given(st.fractions(-(10**9), 10**9, max_denominator=1000), st.sampled_from(["", "x = ", "It is "]))
def test_any_fraction_is_the_number_that_it_is(value: Any, before: str) -> None:
    written = f"{value.numerator}/{value.denominator}"
    expected = Decimal(value.numerator) / value.denominator
    assert final_number(before + written) == expected
    assert final_number(rf"\boxed{{{before}\frac{{{value.numerator}}}{{{value.denominator}}}}}") == expected


@pytest.mark.parametrize(("gold", "response", "score"), FORMULAS)
def test_the_page_on_answers_says_what_maths_scores(gold: str, response: str, score: str, maths: Any) -> None:
    outcome = maths({"response": response, "metadata": {"answer": gold}})
    assert outcome.get("value") == float(score), outcome


def test_formulas_of_small_numbers_are_compared_by_their_size(maths: Any) -> None:
    """Rounded to six decimals all of these would be 0."""
    for gold, other in (
        ("(3.3e-34, 1)", "(6.6e-34, 1)"),
        (r"10^{-20}\pi", r"2 \cdot 10^{-20}\pi"),
        ("3e-9 x", "4e-9 x"),
    ):
        assert maths({"response": f"${gold}$", "metadata": {"answer": gold}})["value"] == 1, gold
        assert maths({"response": f"${other}$", "metadata": {"answer": gold}})["value"] == 0, other
    assert maths({"response": "1e-7", "metadata": {"answer": "0"}})["value"] == 0


def test_a_right_matrix_in_a_box_is_right_also_where_the_part_is_the_box() -> None:
    worker = _maths_worker(part={"take": "boxed"})
    matrix = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
    assert worker({"response": rf"\boxed{{{matrix}}}", "metadata": {"answer": matrix}})["value"] == 1
    assert worker({"response": rf"\boxed{{{matrix.replace('4', '5')}}}", "metadata": {"answer": matrix}})["value"] == 0


@pytest.fixture(scope="module")
def maths() -> Any:
    return _maths_worker()


def _maths_worker(**config: Any) -> Any:
    require("math_verify")
    return make_worker(MathsConfig.model_validate(config).model_dump(mode="json"))
