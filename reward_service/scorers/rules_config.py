"""The settings of scorers that go by rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.answers.final_answer import (
    AnswerPart,
    check_pattern,
)
from rollcall.reward_service.workers.workers_config import WorkersConfig


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
