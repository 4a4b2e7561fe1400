"""Scorers that are rules about a text: equal to the answer, the same number, patterns found, sections in their order, a
length."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import Field, JsonValue, TypeAdapter

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.answers.final_answer import (
    READING,
    accepted_answers,
    boxed_number,
    final_number,
    gold_number,
)
from rollcall.reward_service.scorer import Failure, Outcome, Score, Scorer
from rollcall.reward_service.scorers.rules_config import (
    ExactMatchConfig,
    FormatConfig,
    LengthConfig,
    NumberConfig,
    RegexConfig,
)
from rollcall.reward_service.scorers.text_scorers import (
    Rule,
    Said,
    TextJob,
    TextScorer,
    WorkerTextScorer,
    in_worker,
    version_of,
)
from rollcall.reward_service.workers.pool import WorkerPool

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
