"""Which model judges, and what it is asked, as a recipe has it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rollcall.cluster.inputs.strict import Strict


class Criterion(Strict):
    """One of a rubric's."""

    text: str = Field(min_length=1, description="what is judged: 'The answer cites its sources.'")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="in the mean over the criteria")


class JudgeConfig(Strict):
    """A judge behind HTTP. Its key, if it wants one, is in the environment."""

    kind: Literal["judge"] = "judge"
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="up to /v1; with no password in it; none: `model` is a model's directory, and an engine of the "
        "run's own serves it, frozen",
    )
    model: str = Field(min_length=1, description="by the name the server gives it; without url a directory")
    max_model_len: int = Field(default=4096, ge=64, description="without url: tokens of question and reply together")
    mode: Literal["graded", "pairwise"] = Field(
        default="graded", description='a grade; or against metadata["other_response"], both orders asked: 1, 0.5 or 0'
    )
    low: float = Field(default=1.0, allow_inf_nan=False, description="the worst grade")
    high: float = Field(default=10.0, allow_inf_nan=False, description="the best grade")
    principles: tuple[str, ...] = Field(default=(), description="what to judge by; none: the judge's own idea")
    ask: Literal["one", "all"] = Field(
        default="one", description="one principle, drawn for each item; or all, averaged"
    )
    seed: int = Field(default=0, description="of that draw")
    rubric: dict[str, Criterion] = Field(
        default_factory=dict,
        description="in place of principles: criteria by name, each asked for by itself; the score is the weighted "
        "mean",
    )
    chain_of_thought: bool = Field(default=False, description="the judge thinks before its verdict")
    soft: bool = Field(default=False, description="pairwise: probabilities of A and B, where the server gives them")
    temperature: float = Field(default=0.0, ge=0, description="above 0 an item has another score each time")
    max_tokens: int = Field(default=512, ge=1, description="of a reply with a chain of thought; else 16 are enough")
    timeout_s: float = Field(default=60.0, gt=0, description="of one request")
    deadline_s: float = Field(default=120.0, gt=0, description="of all that one item needs")
    tries: int = Field(default=4, ge=1, le=20, description="of one request, where trying again may help")
    concurrency: int = Field(default=16, ge=1, le=1024, description="items judged at once")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}: give a range")
        if self.soft and self.mode != "pairwise":
            raise ValueError("soft is for mode=pairwise")
        if any(not principle.strip() for principle in self.principles):
            raise ValueError("a principle is empty")
        if self.principles and self.rubric:
            raise ValueError("principles and rubric are both given: give one of them")
        return self
