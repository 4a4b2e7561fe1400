"""Scorers that are rules about a text: equal to the answer, the same number, patterns found, sections in their order, a
length."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, TypeAdapter, field_validator, model_validator

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.answers.final_answer import (
    READING,
    AnswerPart,
    accepted_answers,
    boxed_number,
    check_pattern,
    final_number,
    gold_number,
)
from rollcall.reward_service.scorer import Failure, Outcome, Score, Scorer
from rollcall.reward_service.scorers.text_scorers import (
    Rule,
    Said,
    TextJob,
    TextScorer,
    WorkerTextScorer,
    in_worker,
    version_of,
)
from rollcall.reward_service.workers.pool import WorkerPool, WorkersConfig


class ExactMatchConfig(Strict):
    """1 where the answer is, letter by letter, one of those in the metadata; else 0."""

    kind: Literal["exact_match"] = "exact_match"
    answer_key: str = Field(default="answer", description="where the metadata have the answer, or a list of them")
    part: AnswerPart = Field(default=AnswerPart(), description="of the response")
    strip: bool = Field(default=True, description="white space at both ends does not count")
    ignore_case: bool = Field(default=False, description="a and A are the same")
    any_space: bool = Field(default=False, description="any run of white space is one space")
    workers: WorkersConfig = WorkersConfig()


class NumberConfig(Strict):
    """1 where the response's final number equals that of an answer in the metadata; else 0."""

    kind: Literal["number"] = "number"
    answer_key: str = Field(default="answer", description="where the metadata have the answer, or a list of them")
    part: AnswerPart = Field(default=AnswerPart(), description="of the response, whose final number is taken")
    relative_tolerance: float = Field(default=0.0, ge=0, description="of the answer's size")
    absolute_tolerance: float = Field(default=0.0, ge=0, description="in the answer's unit")
    percent_divides: bool = Field(default=False, description="50% is 0.5, not 50")
    workers: WorkersConfig = WorkersConfig()


class Pattern(Strict):
    """A regular expression to find in the response."""

    name: str = Field(min_length=1, description="of its component")
    pattern: str = Field(description="a regular expression of Python's re")
    weight: float = Field(default=1.0, allow_inf_nan=False, description="what it is worth to be found")
    whole: bool = Field(default=False, description="it must match the whole response")
    ignore_case: bool = Field(default=False, description="a and A are the same")
    dot_all: bool = Field(default=True, description=". is a line's end, too")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        check_pattern(pattern)
        return pattern


class RegexConfig(Strict):
    """The weights of the patterns that are found, added up."""

    kind: Literal["regex"] = "regex"
    patterns: tuple[Pattern, ...] = Field(min_length=1)
    workers: WorkersConfig = WorkersConfig()

    @field_validator("patterns")
    @classmethod
    def _names_differ(cls, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
        if len({pattern.name for pattern in patterns}) < len(patterns):
            raise ValueError("two patterns have the same name")
        return patterns


class FormatConfig(Strict):
    """Sections such as <think>...</think><answer>...</answer>: the share of what is asked of them that holds."""

    kind: Literal["format"] = "format"
    sections: tuple[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")], ...] = Field(
        min_length=1, description="names of tags: each must open and close once"
    )
    section_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="of each section")
    order_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="all are there, in this order")
    only_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="and nothing outside them")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.section_weight + self.order_weight + self.only_weight <= 0:
            raise ValueError("all weights are 0")
        return self


class LengthConfig(Strict):
    """1 within the range, falling to 0 over `slack` below and above it."""

    kind: Literal["length"] = "length"
    unit: Literal["characters", "words", "tokens"] = Field(default="characters", description="what is counted")
    tokenizer: Path | None = Field(default=None, description="a tokenizer.json, for unit=tokens")
    at_least: int = Field(default=0, ge=0, description="the range's lower end")
    at_most: int | None = Field(default=None, ge=0, description="the range's upper end; none: there is none")
    slack: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="units until the score is 0; 0: at once")

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most={self.at_most} is below at_least={self.at_least}: give a range")
        if (self.unit == "tokens") != (self.tokenizer is not None):
            raise ValueError("tokenizer is given with unit=tokens, and only with it")
        return self


RuleConfig = Annotated[
    ExactMatchConfig | NumberConfig | RegexConfig | FormatConfig | LengthConfig, Field(discriminator="kind")
]
_RULES: TypeAdapter[RuleConfig] = TypeAdapter(RuleConfig)


def build_rule(config: RuleConfig) -> Scorer:
    """In killable workers where a user's regular expression is matched: it may take longer than the universe has.

    Raises:
      BadInput: the tokenizer is not there.
    """
    version = version_of(config, *([READING] if isinstance(config, ExactMatchConfig | NumberConfig) else []))
    if isinstance(config, RegexConfig) or (
        isinstance(config, ExactMatchConfig | NumberConfig) and config.part.pattern is not None
    ):
        pool = WorkerPool(f"{__name__}:make_worker", config.model_dump(mode="json"), config.workers)
        return WorkerTextScorer(version, pool)
    return TextScorer(version, rule_of(config))


def make_worker(settings: JsonValue) -> Callable[[TextJob], Said]:
    return in_worker(rule_of(_RULES.validate_python(settings)))


def rule_of(config: RuleConfig) -> Rule:
    match config:
        case ExactMatchConfig():
            return lambda response, metadata: exact_match(config, response, metadata)
        case NumberConfig():
            return lambda response, metadata: same_number(config, response, metadata)
        case RegexConfig():
            return lambda response, _: patterns_found(config, response)
        case FormatConfig():
            return lambda response, _: format_kept(config, response)
        case LengthConfig():
            count = _counter(config)
            return lambda response, _: length_kept(config, count(response))


def _counter(config: LengthConfig) -> Callable[[str], int]:
    if config.tokenizer is None:
        return len if config.unit == "characters" else lambda text: len(text.split())
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(config.tokenizer.expanduser()))
    except ImportError:
        raise BadInput("unit=tokens needs the package tokenizers: install it") from None
    except Exception as error:  # the package raises nothing narrower
        raise BadInput(f"{config.tokenizer} is no tokenizer.json ({error}): name one") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def unreadable_answer(config: ExactMatchConfig | NumberConfig, metadata: Mapping[str, JsonValue]) -> str | None:
    """What is wrong with the right answers of an item; None where all can be read."""
    answers = accepted_answers(metadata, config.answer_key)
    if answers is None:
        what = "a number, or a list of them" if isinstance(config, NumberConfig) else "the answer, or a list of answers"
        return f"metadata[{config.answer_key!r}] must be {what}"
    if isinstance(config, ExactMatchConfig):
        return None
    for answer in answers:
        if gold_number(answer, percent_divides=config.percent_divides) is None:
            return (
                f"metadata[{config.answer_key!r}] holds no number: {answer!r:.80} (docs/answers.md says what is read "
                "as one)"
            )
    return None


def exact_match(config: ExactMatchConfig, response: str, metadata: dict[str, JsonValue]) -> Outcome:
    problem = unreadable_answer(config, metadata)
    if problem is not None:
        return Failure("unsupported", problem)

    def normal(text: str) -> str:
        text = " ".join(text.split()) if config.any_space else text
        text = text.strip() if config.strip else text
        return text.casefold() if config.ignore_case else text

    part = config.part.of(response)
    right = part is not None and normal(part) in {
        normal(answer) for answer in accepted_answers(metadata, config.answer_key) or ()
    }
    return Score(float(right), {"parsed": float(part is not None)})


def same_number(config: NumberConfig, response: str, metadata: dict[str, JsonValue]) -> Outcome:
    problem = unreadable_answer(config, metadata)
    if problem is not None:
        return Failure("unsupported", problem)
    answers = accepted_answers(metadata, config.answer_key) or ()
    expected = [gold_number(answer, percent_divides=config.percent_divides) for answer in answers]
    part = config.part.of(response)
    read = boxed_number if config.part.take == "boxed" else final_number
    number = None if part is None else read(part, percent_divides=config.percent_divides)
    right = number is not None and any(_near(config, number, answer) for answer in expected if answer is not None)
    return Score(float(right), {"parsed": float(number is not None)})


def _near(config: NumberConfig, number: Decimal, answer: Decimal) -> bool:
    if number == answer:
        return True
    allowed = max(Decimal(config.absolute_tolerance), Decimal(config.relative_tolerance) * abs(answer))
    return abs(number - answer) <= allowed


def patterns_found(config: RegexConfig, response: str) -> Outcome:
    components = {}
    for pattern in config.patterns:
        flags = (re.IGNORECASE if pattern.ignore_case else 0) | (re.DOTALL if pattern.dot_all else 0)
        compiled = re.compile(pattern.pattern, flags)
        found = compiled.fullmatch(response) if pattern.whole else compiled.search(response)
        components[pattern.name] = float(found is not None)
    return Score(sum(pattern.weight * components[pattern.name] for pattern in config.patterns), components)


def format_kept(config: FormatConfig, response: str) -> Outcome:
    """By searching for fixed texts alone: always as fast as the response is long."""
    components = {}
    places = []
    for name in config.sections:
        opening, closing = f"<{name}>", f"</{name}>"
        once = response.count(opening) == 1 and response.count(closing) == 1
        begin, end = response.find(opening), response.find(closing)
        components[name] = float(once and begin < end)
        places.append((begin, end + len(closing)))
    complete = all(components.values())
    ordered = complete and all(one[1] <= other[0] for one, other in itertools.pairwise(places))
    outside = [
        response[end:begin] for (_, end), (begin, _) in zip([(0, 0), *places], [*places, (None, 0)], strict=True)
    ]
    components["order"] = float(ordered)
    components["only"] = float(ordered and not "".join(outside).strip())
    weights = [config.section_weight] * len(config.sections) + [config.order_weight, config.only_weight]
    earned = sum(weight * kept for weight, kept in zip(weights, components.values(), strict=True))
    return Score(earned / sum(weights), components)


def length_kept(config: LengthConfig, length: int) -> Outcome:
    beyond = max(config.at_least - length, length - config.at_most if config.at_most is not None else 0, 0)
    if beyond == 0:
        value = 1.0
    else:
        value = max(0.0, 1.0 - beyond / config.slack) if config.slack > 0 else 0.0
    return Score(value, {"length": float(length)})
