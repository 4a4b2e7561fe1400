"""The rules about texts, against hand-made cases; and the patterns that would match for ever."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.answers.final_answer import final_number, last_box
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.scorer_config import ScorerConfig
from tests.needs import require_module

CONFIGS: TypeAdapter[ScorerConfig] = TypeAdapter(ScorerConfig)


def outcomes(config: dict[str, Any], *responses: str, **metadata: Any) -> list[Outcome]:
    scorer = build_scorer(CONFIGS.validate_python(config))
    try:
        items = [ScoreItem(id=str(n), prompt="p", response=r, metadata=metadata) for n, r in enumerate(responses)]
        return list(scorer.score(items))
    finally:
        scorer.close()


def values(config: dict[str, Any], *responses: str, **metadata: Any) -> list[float]:
    return [o.value if isinstance(o, Score) else float("nan") for o in outcomes(config, *responses, **metadata)]


def test_exact_match_is_letter_by_letter_but_for_what_is_let_go() -> None:
    kind = {"kind": "exact_match"}
    assert values(kind, "Paris", " Paris\n", "paris", "Paris.", answer="Paris") == [1, 1, 0, 0]
    assert values({**kind, "strip": False}, "Paris", " Paris", answer="Paris") == [1, 0]
    assert values({**kind, "ignore_case": True}, "PARIS", "STRASSE", answer=["paris", "straße"]) == [1, 1]
    assert values({**kind, "any_space": True}, "New \n York", answer="New York") == [1]
    assert values({**kind, "answer_key": "gold"}, "7", gold=7) == [1]


def test_the_answer_may_be_a_part_of_the_response() -> None:
    text = "I think so.\nAnswer: no\nOn reflection \\boxed{a{b}c} and\nAnswer: yes \n\n"

    def taking(**part: str) -> list[float]:
        return values(
            {"kind": "exact_match", "part": part}, text, "nothing here\n", answer=["yes", "a{b}c", "Answer: yes"]
        )

    assert taking(take="after", after="Answer:") == [1, 0]
    assert taking(take="last_line") == [1, 0]
    assert taking(take="boxed") == [1, 0]
    assert taking(take="pattern", pattern=r"Answer: (\w+)") == [1, 0]
    assert taking(take="pattern", pattern=r"Answer: \w+") == [1, 0]
    assert taking(take="whole") == [0, 0]


def test_a_response_without_the_part_is_parsed_as_nothing() -> None:
    (outcome,) = outcomes({"kind": "exact_match", "part": {"take": "boxed"}}, "yes", answer="yes")
    assert outcome == Score(0.0, {"parsed": 0.0})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 16-3 = 13", "13"),
        ("It costs $1,234.50.", "1234.50"),
        ("#### -5\nor 7", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\\boxed{x = 3{,}000} is not 4", "3000"),
        ("1.5e3 metres", "1500"),
        ("1.5e-3", "0.0015"),
        ("3 x 10^4", "30000"),
        ("3.2 \\times 10^{-2}", "0.032"),
        ("3/4", "0.75"),
        ("\\frac{1}{8}", "0.125"),
        ("the answer is -\\frac{1}{2}", "-0.5"),
        ("about 50%", "50"),
        ("50\\%", "50"),
        ("12,345,678", "12345678"),
        ("on 2024", "2024"),
        ("7.", "7"),
        (".5", "0.5"),
        ("\u22127", "-7"),
        ("1/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    found = final_number(text)
    assert found == (None if number is None else Decimal(number))


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**12), 10**12), st.text(alphabet="ab \n", max_size=20))
def test_any_whole_number_is_found_however_it_is_written(number: int, around: str) -> None:
    for written in (str(number), f"{number:,}", f"{number}.0", f"${number}", f"\\boxed{{{number}}}", f"{number}."):
        assert final_number(f"first 3 {around} {written} {around}") == number


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="{}\\boxed1,. /-^e+x*%$", max_size=300))
def test_no_text_upsets_the_search_for_a_number(text: str) -> None:
    number = final_number(text)
    assert number is None or number.is_finite()
    assert last_box(text) is None or last_box(text) in text  # type: ignore[operator]


def test_searching_takes_time_in_proportion_to_the_text() -> None:
    for text in ("1," * 100_000, "\\boxed{" * 50_000, "9" * 200_000, "1 " * 100_000, "-" * 200_000, "1.5e3/" * 30_000):
        begin = time.perf_counter()
        final_number(text)
        assert time.perf_counter() - begin < 5


def test_numbers_are_equal_within_a_tolerance() -> None:
    assert values({"kind": "number"}, "18.00", "$18", "about 18.1", "nothing", answer="#### 18") == [1, 1, 0, 0]
    near = {"kind": "number", "relative_tolerance": 0.01}
    assert values(near, "3.14", "3.17", "3.2", answer=3.14159) == [1, 1, 0]
    assert values({"kind": "number", "absolute_tolerance": 0.5}, "10.5", "10.6", answer=[10, 99]) == [1, 0]
    assert values({"kind": "number", "percent_divides": True}, "50%", "0.5", "50", answer="1/2") == [1, 1, 0]


@pytest.mark.parametrize("kind", ["exact_match", "number"])
@pytest.mark.parametrize("metadata", [{}, {"answer": None}, {"answer": []}, {"answer": [{}]}, {"answer": True}])
def test_without_an_answer_there_is_no_score(kind: str, metadata: dict[str, Any]) -> None:
    (outcome,) = outcomes({"kind": kind}, "1", **metadata)
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported"


def test_an_answer_without_a_number_is_no_score_of_zero() -> None:
    (outcome,) = outcomes({"kind": "number"}, "1", answer="one")
    assert isinstance(outcome, Failure) and "holds no number: 'one'" in outcome.message


def test_patterns_add_their_weights() -> None:
    patterns = [
        {"name": "thinks", "pattern": "<think>.+</think>", "weight": 0.5},
        {"name": "polite", "pattern": "please", "weight": 2, "ignore_case": True},
        {"name": "shouts", "pattern": "[^a-z]*", "weight": -1, "whole": True},
    ]
    found = outcomes({"kind": "regex", "patterns": patterns}, "<think>a\nb</think> Please", "HEY!", "no")
    assert found == [
        Score(2.5, {"thinks": 1.0, "polite": 1.0, "shouts": 0.0}),
        Score(-1.0, {"thinks": 0.0, "polite": 0.0, "shouts": 1.0}),
        Score(0.0, {"thinks": 0.0, "polite": 0.0, "shouts": 0.0}),
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "regex", "patterns": [{"name": "evil", "pattern": "(a+)+$"}]},
        {"kind": "exact_match", "part": {"take": "pattern", "pattern": "(a+)+$"}},
        {"kind": "number", "part": {"take": "pattern", "pattern": "(a+)+$"}},
    ],
)
def test_a_pattern_that_matches_for_ever_is_that_items_timeout(config: dict[str, Any]) -> None:
    config = {**config, "workers": {"num": 1, "timeout_s": 1}}
    begin = time.monotonic()
    good, bad, after = outcomes(config, "b", "a" * 40 + "b", "b", answer=1)
    assert isinstance(bad, Failure) and bad.kind == "timeout"
    assert isinstance(good, Score) and after == good
    assert time.monotonic() - begin < 30


def test_sections_in_their_order_and_nothing_else() -> None:
    config = {"kind": "format", "sections": ["think", "answer"]}
    responses = [
        "<think>a</think>\n<answer>b</answer>\n",
        "Well. <think>a</think><answer>b</answer>",
        "<answer>b</answer><think>a</think>",
        "<think>a</think>",
        "<think><answer>b</answer></think>",
        "<think>a</think><think>a</think><answer>b</answer>",
        "</think><think><answer></answer>",
        "nothing",
    ]
    assert values(config, *responses) == [1, 0.75, 0.5, 0.25, 0.5, 0.25, 0.25, 0]
    assert values({**config, "only_weight": 0, "section_weight": 0}, *responses[:3]) == [1, 1, 0]


def test_length_is_free_within_its_range_and_falls_beyond_it() -> None:
    config = {"kind": "length", "at_least": 2, "at_most": 4, "slack": 4}
    assert values(config, "", "a", "ab", "abcd", "abcde", "a" * 8, "a" * 100) == [0.5, 0.75, 1, 1, 0.75, 0, 0]
    assert values({"kind": "length", "at_most": 2, "unit": "words"}, "a b", "a b c") == [1, 0]


def test_length_in_tokens_is_the_tokenizers(tmp_path: Path) -> None:
    tokenizers = require_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"kind": "length", "unit": "tokens", "at_most": 3, "tokenizer": str(tmp_path / "tokenizer.json")}
    (outcome,) = outcomes(config, "abba")
    assert outcome == Score(0.0, {"length": 4.0})
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        outcomes({**config, "tokenizer": str(tmp_path / "nothing")}, "a")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"kind": "regex", "patterns": [{"name": "a", "pattern": "("}]}, "no regular expression"),
        ({"kind": "regex", "patterns": [{"name": "a", "pattern": "a"}] * 2}, "same name"),
        ({"kind": "exact_match", "part": {"take": "after"}}, "take=after"),
        ({"kind": "exact_match", "part": {"take": "whole", "pattern": "a"}}, "take=pattern"),
        ({"kind": "length", "at_least": 3, "at_most": 2}, "below at_least"),
        ({"kind": "length", "unit": "tokens"}, "tokenizer"),
        ({"kind": "format", "sections": ["a b"]}, "pattern"),
        ({"kind": "nothing"}, "kind"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CONFIGS.validate_python(config)


def test_the_version_changes_with_what_the_score_depends_on_and_with_nothing_else() -> None:
    def version(config: dict[str, Any]) -> str:
        scorer = build_scorer(CONFIGS.validate_python(config))
        scorer.close()
        return scorer.version

    assert version({"kind": "number"}) == version({"kind": "number", "workers": {"timeout_s": 9}})
    assert version({"kind": "number"}) != version({"kind": "number", "relative_tolerance": 0.1})
    assert version({"kind": "number"}).startswith("number-")
