"""Which part of a response is its answer, and what number stands in a text. Pure functions of strings; must never know
what an answer is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation, localcontext
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

MARK = "####"
_MAX_DIGITS = 400
_BRACE = re.compile(r"\\boxed\{|[{}]")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A sign, with or without a dollar on either side of it; in 16-3 the line is no sign: it follows an operand. Then the
# digits, a power of ten as 1e6, 1.5 x 10^6 or 1.5 \times 10^{6}, a denominator, a per cent sign.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%.])[-\u2212])?\$?(?P<inner_sign>(?<=\$)[-\u2212])?"
    rf"(?:(?P<digits>{_DIGITS})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,4})(?![\w.])|\s*(?:\\times|\\cdot|×|x|\*)\s*10\^\{?(?P<power>[-+\u2212]?[0-9]{1,4})\}?)?"
    rf"(?:\s?/\s?(?P<below>{_DIGITS})(?!\s?/))?"
    rf"|\\[dt]?frac\{{(?P<top>[-\u2212]?(?:{_DIGITS}))\}}\{{(?P<bottom>{_DIGITS})\}})"
    r"(?P<percent>\s?\\?%)?"
)


class AnswerPart(BaseModel):
    """Which part of the response is the answer. A response without that part has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    take: Literal["whole", "last_line", "after", "pattern", "boxed"] = Field(
        default="whole",
        description="everything; the last line that is not empty; what follows the last `after`; the first group (else "
        "all) of the last match of `pattern`; the inside of the last \\boxed{}",
    )
    after: str | None = Field(default=None, min_length=1, description="a text, for take=after")
    pattern: str | None = Field(default=None, min_length=1, description="a regular expression, for take=pattern")

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        for name in ("after", "pattern"):
            if (getattr(self, name) is not None) != (self.take == name):
                raise ValueError(f"{name} is given with take={name}, and only with it")
        if self.pattern is not None:
            check_pattern(self.pattern)
        return self

    def of(self, response: str) -> str | None:
        if self.take == "whole":
            return response
        if self.take == "last_line":
            return next((line for line in reversed(response.splitlines()) if line.strip()), None)
        if self.take == "after":
            _, mark, rest = response.rpartition(str(self.after))
            return rest if mark else None
        if self.take == "boxed":
            return last_box(response)
        last = None
        for last in re.finditer(str(self.pattern), response):  # noqa: B007 - the last one is wanted
            pass
        return None if last is None else last[1] if last.re.groups else last[0]


def check_pattern(pattern: str) -> None:
    """Raises ValueError, for a config's own message."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def accepted_answers(metadata: Mapping[str, JsonValue], key: str) -> list[str] | None:
    """The right answers of an item, as text: one, or any of several; None where the metadata have none."""
    given = metadata.get(key)
    several = given if isinstance(given, list) else [given]
    if not several or any(isinstance(answer, bool) or not isinstance(answer, (str, int, float)) for answer in several):
        return None
    return [str(answer) for answer in several]


def last_box(text: str) -> str | None:
    """What stands in the last \\boxed{...} that is closed; braces inside it are matched. One pass: a model may write
    thousands that are not closed."""
    opened: list[int] = []  # where the inside of a box begins; -1 for another brace
    last = (-1, -1)
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace.end() if brace[0] != "{" else -1)
        elif opened:
            last = max(last, (opened.pop(), brace.start()))
    begin, end = last
    return None if begin < 0 else text[begin:end]


def final_number(text: str, *, percent_divides: bool = False) -> Decimal | None:
    """The number that a solution ends with; None where there is none.

    It is the first after the last ####; else that of the last \\boxed{...}, after its last equals sign; else the last
    in the text.
    """
    _, mark, after = text.rpartition(MARK)
    if mark and (found := _NUMBER.search(_plain(after))):
        return _value(found, percent_divides)
    inside = last_box(text)
    if inside is not None and (found := _NUMBER.search(_plain(inside.rpartition("=")[2]))):
        return _value(found, percent_divides)
    last = None
    for last in _NUMBER.finditer(_plain(text)):  # noqa: B007 - the last one is wanted
        pass
    return None if last is None else _value(last, percent_divides)


def _plain(text: str) -> str:
    """Without what LaTeX puts into numbers and before units: 1{,}234, 1\\,234, 1,\\!234, \\$5."""
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$")


def _value(found: re.Match[str], percent_divides: bool) -> Decimal | None:
    with localcontext() as context:
        context.prec = 2 * _MAX_DIGITS
        try:
            if found["top"] is not None:
                number = _decimal(found["top"]) / _decimal(found["bottom"])
            else:
                number = _decimal(found["digits"])
                exponent = found["exponent"] or found["power"]
                if exponent is not None:
                    number = number.scaleb(int(exponent.replace("\u2212", "-")))
                if found["below"] is not None:
                    number /= _decimal(found["below"])
        except InvalidOperation:
            return None
        except ZeroDivisionError:
            return None
        if found["percent"] and percent_divides:
            number /= 100
        return -number if found["sign"] or found["inner_sign"] else number


def _decimal(digits: str) -> Decimal:
    if len(digits) > _MAX_DIGITS:
        raise InvalidOperation
    return Decimal(digits.replace(",", "").replace("\u2212", "-"))
