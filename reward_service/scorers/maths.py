"""Scores answers of mathematics by symbolic equality: math-verify's parser and comparison, in processes that are killed
when an expression explodes. Must never evaluate a response as Python: its LaTeX is parsed by a grammar."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import JsonValue

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.answers.final_answer import (
    READING,
    AnswerPart,
    accepted_answers,
    final_reading,
    formula_reading,
    marked_answer,
)
from rollcall.reward_service.answers.formulas import as_latex, has_formula, normalised
from rollcall.reward_service.answers.number_reader import Reading
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.scorers.maths_config import MathsConfig
from rollcall.reward_service.scorers.text_scorers import Said, TextJob, WorkerTextScorer, in_worker, version_of
from rollcall.reward_service.workers.pool import WorkerPool

_MAX_CHARACTERS = 20_000  # of a response that the algebra's patterns search


def build_maths_scorer(config: MathsConfig) -> WorkerTextScorer:
    """The algebra itself is imported by the workers.

    Raises:
      BadInput: it is not installed.
    """
    try:
        algebra = (version("math-verify"), version("sympy"))
    except PackageNotFoundError as error:
        raise BadInput(f"kind=maths needs the package {error.name}, which is not installed: install it") from None
    pool = WorkerPool(f"{__name__}:make_worker", config.model_dump(mode="json"), config.workers)
    return WorkerTextScorer(version_of(config, READING, *algebra), pool)


def make_worker(settings: JsonValue) -> Callable[[TextJob], Said]:
    """Imports the algebra once per process."""
    algebra = Algebra()
    config = MathsConfig.model_validate(settings)

    def rule(response: str, metadata: dict[str, JsonValue]) -> Outcome:
        problem = unreadable_gold(metadata, config, algebra)
        if problem is not None:
            return Failure("unsupported", problem)
        number, formula = found_in(response, config.part)
        expressions = [] if formula is None else algebra.parsed(formula)
        right = any(
            _is_right(answer, number, expressions, algebra, config.digits)
            for answer in accepted_answers(metadata, config.answer_key) or ()
        )
        if not right and _was_short_of_memory():
            raise MemoryError  # the algebra catches its own, and calls the two different
        return Score(float(right), {"parsed": float(bool(expressions) or number is not None)})

    return in_worker(rule)


class Algebra:
    """math-verify, its numbers compared by their size."""

    def __init__(self) -> None:
        import math_verify  # type: ignore[import-untyped]
        from math_verify import grader

        from rollcall.reward_service.answers.maths_equality import agree, is_too_large

        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the time limits that are ours to keep
        grader.sympy_numeric_eq = agree
        self._library = math_verify
        self._is_too_large = is_too_large

    def parsed(self, text: str) -> list[Any]:
        """Nothing of a text that is too long for a formula, or of powers of powers that nobody could write out."""
        text = text if len(text) <= _MAX_CHARACTERS else text[-_MAX_CHARACTERS:].partition(" ")[2]
        expressions: list[Any] = self._library.parse(text, parsing_timeout=None)
        return [] if any(self._is_too_large(expression) for expression in expressions) else expressions

    def equal(self, gold: list[Any], found: list[Any], digits: int) -> bool:
        verify = self._library.verify
        return bool(verify(gold, found, float_rounding=digits, timeout_seconds=None, raise_on_error=True))


def unreadable_gold(metadata: Mapping[str, JsonValue], config: MathsConfig, algebra: Algebra) -> str | None:
    """What is wrong with the right answers of an item; None where all can be read."""
    answers = accepted_answers(metadata, config.answer_key)
    if answers is None:
        return f"metadata[{config.answer_key!r}] must be the answer, or a list of answers"
    for answer in answers:
        if _number_of(answer) is None and not algebra.parsed(as_latex(answer)):
            return f"no mathematics in the answer {answer!r:.80}"
    return None


def found_in(response: str, part: AnswerPart) -> tuple[Reading | None, str | None]:
    """(the number that a response's answer is, the answer as the algebra takes it); None for what it is not."""
    answer = marked_answer(response) if part.take == "whole" else part.of(response)
    if answer is not None:
        reading = final_reading(response) if part.take == "whole" else formula_reading(answer)
        return _known(reading), as_latex(answer)
    if part.take != "whole":
        return None, None
    if has_formula(response):
        return None, normalised(response)
    reading = final_reading(response)
    return _known(reading), normalised(response) if _known(reading) is not None else None


def _is_right(answer: str, number: Reading | None, expressions: list[Any], algebra: Algebra, digits: int) -> bool:
    gold = _number_of(answer)
    if gold is not None and number is not None:
        return any(_near(a, b, digits) for a in _values(gold) for b in _values(number))
    return bool(expressions) and algebra.equal(algebra.parsed(as_latex(answer)), expressions, digits)


def _number_of(answer: str) -> Reading | None:
    """The number that a right answer is. An equation is none: x = 5 is not y = 5."""
    return None if "=" in answer and "\\boxed" not in answer else _known(formula_reading(answer))


def _known(reading: Reading | None) -> Reading | None:
    return None if reading is None or reading.value is None else reading


def _values(reading: Reading) -> tuple[Fraction, ...]:
    """50% is 50 and 1/2."""
    assert reading.value is not None
    return (reading.value, reading.value / 100) if reading.percent else (reading.value,)


def _near(gold: Fraction, number: Fraction, digits: int) -> bool:
    """Exactly for whole numbers; else to half a unit of the last decimal, or below 1 of the last significant digit."""
    if gold == number or gold.denominator == number.denominator == 1:
        return gold == number
    zeros = len(str((gold.denominator - 1) // abs(gold.numerator))) - 1 if 0 < abs(gold) < 1 else 0
    return gold != 0 and abs(gold - number) * 2 * 10 ** (digits + zeros) <= 1


def _was_short_of_memory() -> bool:
    """Whether this process has come near its limit."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/status") as status:
        peak_kib = next((int(line.split()[1]) for line in status if line.startswith("VmPeak:")), 0)
    return limit_bytes != resource.RLIM_INFINITY and peak_kib * 1024 > 0.95 * limit_bytes
