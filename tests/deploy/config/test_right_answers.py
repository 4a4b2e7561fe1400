"""Right answers that a scorer cannot read: said before a run begins, never a reward that is always 0."""

from __future__ import annotations

from typing import Any

import pytest

from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.answer_checks import check_answers
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from tests.needs import require

ROWS = [Row("p", "5", "a.jsonl:1"), Row("p", "5 or 6", "a.jsonl:2")]


@pytest.mark.parametrize(
    ("scorer", "rows", "said"),
    [
        ({"kind": "number"}, ROWS, r"a\.jsonl:2: metadata\['answer'\] holds no number: '5 or 6'"),
        ({"kind": "number", "answer_key": "gold"}, ROWS, r"a\.jsonl:1: metadata\['gold'\] must be a number"),
        ({"kind": "exact_match", "answer_key": "gold"}, ROWS, r"a\.jsonl:1: metadata\['gold'\] must be the answer"),
        (
            {"kind": "weighted_sum", "parts": {"a": {"scorer": {"kind": "number"}}}},
            ROWS,
            r"a\.jsonl:2: .* fix the line, or choose another scorer",
        ),
        ({"kind": "maths"}, [*ROWS, Row("p", " ", "a.jsonl:3")], r"a\.jsonl:3: no mathematics in the answer ' '"),
    ],
)
def test_a_right_answer_that_cannot_be_read_is_an_error_naming_its_row(
    scorer: dict[str, Any], rows: list[Row], said: str
) -> None:
    if scorer["kind"] == "maths":
        require("math_verify")
    with pytest.raises(BadInput, match=said):
        check_answers(RewardConfig.model_validate({"scorer": scorer}), rows)


def test_matrices_sums_of_money_and_formulas_can_be_read() -> None:
    require("math_verify")
    answers = [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\$5", "$5", "x^2", "(1, 2)", "4 4/9", "½"]
    rows = [Row("p", answer, f"a.jsonl:{number}") for number, answer in enumerate(answers, start=1)]
    check_answers(RewardConfig.model_validate({"scorer": {"kind": "maths"}}), rows)


def test_without_a_scorer_of_answers_there_is_nothing_to_check() -> None:
    for config in (None, RewardConfig.model_validate({"scorer": {"kind": "length"}}), RewardConfig(url="http://a:1")):
        check_answers(config, ROWS)
