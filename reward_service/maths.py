"""Scores answers of mathematics by symbolic equality: math-verify's parser and comparison, in processes that are killed
when an expression explodes. Must never evaluate a response as Python: its LaTeX is parsed by a grammar."""

from __future__ import annotations

import re
import resource
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.answers import AnswerPart, accepted_answers
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.text_scorers import WorkerTextScorer, in_worker, version_of
from rollcall.reward_service.workers import WorkerPool, WorkersConfig

_MARKED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")
_NUMERIC = re.compile(r"[\s\d.,%+-]*")
_POWER_IN_BRACKETS = re.compile(r"\^\(([^()]*)\)")


class MathsConfig(BaseModel):
    """1 where the response's answer equals one in the metadata as mathematics; else 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["maths"] = "maths"
    answer_key: str = Field(
        default="answer", description="where the metadata have the answer, or a list: LaTeX or plain"
    )
    part: AnswerPart = Field(
        default=AnswerPart(),
        description="of the response; of the whole, the last expression is taken (in $, \\boxed or a number)",
    )
    digits: int = Field(default=6, ge=1, le=30, description="decimals to which numbers must agree")
    workers: WorkersConfig = WorkersConfig()


def build_maths_scorer(config: MathsConfig) -> WorkerTextScorer:
    """The algebra itself is imported by the workers.

    Raises:
      BadInput: it is not installed.
    """
    try:
        algebra = (version("math-verify"), version("sympy"))
    except PackageNotFoundError as error:
        raise BadInput(f"kind=maths needs the package {error.name}, which is not installed: install it") from None
    pool = WorkerPool("rollcall.reward_service.maths:make_worker", config.model_dump(mode="json"), config.workers)
    return WorkerTextScorer(version_of(config, *algebra), pool)


def make_worker(settings: JsonValue) -> Any:
    """Imports the algebra once per process."""
    import logging

    import math_verify  # type: ignore[import-untyped]

    logging.disable(logging.WARNING)  # it warns of the time limits that are ours to keep
    config = MathsConfig.model_validate(settings)

    def parsed(text: str) -> list[Any]:
        expressions: list[Any] = math_verify.parse(text, parsing_timeout=None)
        return expressions

    def judge(response: str, metadata: dict[str, JsonValue]) -> Outcome:
        answers = accepted_answers(metadata, config.answer_key)
        if answers is None:
            return Failure("unsupported", f"metadata[{config.answer_key!r}] must be the answer, or a list of answers")
        expected = [parsed(as_latex(answer)) for answer in answers]
        if [] in expected:
            return Failure("unsupported", f"no mathematics in the answer {answers[expected.index([])]!r:.80}")
        part = config.part.of(response)
        found = [] if part is None else parsed(part if config.part.take == "whole" else as_latex(part))
        right = bool(found) and any(
            math_verify.verify(gold, found, float_rounding=config.digits, timeout_seconds=None, raise_on_error=True)
            for gold in expected
        )
        if not right and _was_short_of_memory():
            raise MemoryError  # the algebra catches its own, and calls the two different
        return Score(float(right), {"parsed": float(bool(found))})

    return in_worker(judge)


def _was_short_of_memory() -> bool:
    """Whether this process has come near its limit."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/status") as status:
        peak_kib = next((int(line.split()[1]) for line in status if line.startswith("VmPeak:")), 0)
    return limit_bytes != resource.RLIM_INFINITY and peak_kib * 1024 > 0.95 * limit_bytes


def as_latex(text: str) -> str:
    """An expression that stands alone, between dollars; plain notation (2*x**2) as LaTeX writes it."""
    text = text.strip().rstrip(".")
    if _MARKED.search(text) or _NUMERIC.fullmatch(text):
        return text
    text = text.replace("**", "^").replace("*", r" \cdot ")
    return "$" + _POWER_IN_BRACKETS.sub(r"^{(\1)}", text) + "$"
