"""Symbolic equality through the real algebra, and expressions that explode in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rollcall.reward_service.answers.final_answer import AnswerPart
from rollcall.reward_service.answers.formulas import as_latex
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.scorers.maths import build_maths_scorer
from rollcall.reward_service.scorers.maths_config import MathsConfig
from rollcall.reward_service.scorers.text_scorers import WorkerTextScorer
from rollcall.reward_service.workers.workers_config import WorkersConfig
from tests.needs import needs

pytestmark = needs("math_verify")


@pytest.fixture(scope="module")
def scorer() -> Iterator[WorkerTextScorer]:
    scorer = build_maths_scorer(MathsConfig(workers=WorkersConfig(num=1, timeout_s=20, memory_bytes=1 << 30)))
    yield scorer
    scorer.close()


def judged(scorer: WorkerTextScorer, pairs: list[tuple[Any, str]]) -> list[Outcome]:
    items = [ScoreItem(id=str(n), prompt="p", response=r, metadata={"answer": a}) for n, (a, r) in enumerate(pairs)]
    return scorer.score(items)


EQUAL = [
    ("x**2 + 2*x", "$x(x+2)$"),
    ("$x^2+2x$", "So it is \\boxed{x(x+2)}."),
    (r"\frac{\sqrt{3}}{2}", r"The answer is $\sqrt{3}/2$"),
    ("1/2", "0.5"),
    ("0.5", r"we get $\frac12$."),
    ("1234", "That is 1,234."),
    (r"\sin^2 x + \cos^2 x", "$1$"),
    ("2**(n+1)", r"$2 \cdot 2^n$"),
    ("(1, 2)", "$(1,2)$"),
    (r"\{1,2\}", r"$\{2, 1\}$"),
    ("5", "$x = 5$"),
    (["7", "8"], "\\boxed{8}"),
    (3.5, "$\\frac{7}{2}$"),
]
DIFFERENT = [
    ("x**2", "$x^3$"),
    ("1/2", "0.51"),
    ("7", "\\boxed{8}"),
    ("x+1", "I do not know"),
    ("(1, 2)", "$(2,1)$"),
]


def test_what_is_equal_as_mathematics_scores_one(scorer: WorkerTextScorer) -> None:
    outcomes = judged(scorer, EQUAL)
    wrong = [
        (pair, outcome) for pair, outcome in zip(EQUAL, outcomes, strict=True) if outcome != Score(1, {"parsed": 1})
    ]
    assert not wrong


def test_what_is_not_scores_zero(scorer: WorkerTextScorer) -> None:
    for pair, outcome in zip(DIFFERENT, judged(scorer, DIFFERENT), strict=True):
        assert isinstance(outcome, Score) and outcome.value == 0, (pair, outcome)


def test_an_answer_without_mathematics_is_no_score_of_zero(scorer: WorkerTextScorer) -> None:
    (outcome,) = judged(scorer, [("", "5")])
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported"
    item = ScoreItem(id="1", prompt="p", response="5")
    (outcome,) = scorer.score([item])
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported"


def test_an_expression_that_explodes_is_that_items_failure_and_its_worker_is_replaced() -> None:
    scorer = build_maths_scorer(MathsConfig(workers=WorkersConfig(num=1, timeout_s=3, memory_bytes=1 << 30)))
    try:
        good, exploding, after = judged(scorer, [("2", "2"), ("5", "$999999999!$"), ("2", "2.0")])
        assert good == after == Score(1, {"parsed": 1})
        assert isinstance(exploding, Failure) and exploding.kind == "timeout"
    finally:
        scorer.close()


def test_a_response_is_never_evaluated_as_python(scorer: WorkerTextScorer, tmp_path: Any) -> None:
    target = tmp_path / "ran"
    attempts = [
        f"__import__('os').mkdir('{target}')",
        f"$__import__('os').mkdir('{target}')$",
        f"\\boxed{{open('{target}','w')}}",
    ]
    judged(scorer, [("1", attempt) for attempt in attempts])
    assert not target.exists()


def test_the_answer_may_be_a_part_in_plain_notation() -> None:
    scorer = build_maths_scorer(MathsConfig(part=AnswerPart(take="after", after="Answer:")))
    try:
        outcomes = judged(scorer, [("$2x^2$", "First 3.\nAnswer: 2*x**2"), ("$2x^2$", "It is $2x^2$")])
        assert outcomes == [Score(1, {"parsed": 1}), Score(0, {"parsed": 0})]
    finally:
        scorer.close()


def test_plain_notation_becomes_latex() -> None:
    assert as_latex("2*x**(n+1)") == r"$2 \cdot x^{(n+1)}$"
    assert as_latex(" 1,234.5 ") == "1,234.5"
    assert as_latex(r"\boxed{5}") == r"\boxed{5}"
