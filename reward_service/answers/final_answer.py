"""Which part of a response is its answer, and which number it is (docs/answers.md). Pure functions of strings; must
never know what an answer is worth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple, Self

from pydantic import Field, JsonValue, model_validator

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.answers.exact_numbers import as_decimal, divide
from rollcall.reward_service.answers.number_reader import MAX_CHARACTERS, Reading, read_numbers

_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_MARK = re.compile(r"#{4,}|</?answer>|\\(?:boxed|fbox)\s*\{", re.IGNORECASE)
# Headings of a solution, and not its answer: #### Step 2: ..., #### 2. Add them up
_HEADING = re.compile(
    r"[\W_]*(?:(?:step|case|part|problem|question|example|section|option|solution|method|approach|stage|phase)\b"
    r"|[0-9]{1,2}[.)]\s+[^\W\d_])",
    re.IGNORECASE,
)
_LISTED = re.compile(r"[\s$]*(?:,|;|&|and|or|,\s*and|,\s*or|\\text\{\s*(?:and|or)\s*\})[\s$]*", re.IGNORECASE)
READING = "reading-2"  # to be raised when answers are read otherwise: scores in a cache are of one reading
_NUM_MARKS = 20  # so many marks are looked at, from the last


class AnswerPart(Strict):
    """Which part of the response is the answer. A response without that part has none."""

    take: Literal["whole", "last_line", "after", "pattern", "boxed"] = Field(
        default="whole",
        description="everything; the last line that is not empty; what follows the last `after`; the first group (else "
        "all) of the last match of `pattern`; the inside of the last \\boxed{} (of a list of boxes, of all of them)",
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
            return boxed_answer(response)
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


class _Box(NamedTuple):
    begin: int  # of the command
    inside: int
    end: int  # of what is inside

    def of(self, text: str) -> str:
        return text[self.inside : self.end]


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{...} that is closed; braces inside it are matched; of a box within a box alone,
    the inner one. One pass: a model may write thousands that are not closed."""
    boxes = _boxes(text)
    return boxes[-1].of(text) if boxes else None


def boxed_answer(text: str) -> str | None:
    r"""As last_box; of boxes that only a comma, "and" or "or" parts, all, with commas: \boxed{3} or \boxed{4}. Empty
    ones are no answer."""
    boxes = [box for box in _boxes(text) if box.of(text).strip()]
    if not boxes:
        return None
    parts = [boxes[-1].of(text)]
    for earlier, later in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if len(parts) >= _NUM_MARKS or not _LISTED.fullmatch(text[earlier.end + 1 : later.begin][:40]):
            break
        if later.begin - earlier.end > 40:
            break
        parts.insert(0, earlier.of(text))
    return ", ".join(parts)


def _boxes(text: str) -> list[_Box]:
    """Those that are closed and in no other; a box whose whole inside is a box gives way to that one."""
    opened: list[tuple[int, int]] = []  # where a box begins, and its inside; (-1, -1) for another brace
    found: list[_Box] = []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append((brace.start(), brace.end()) if brace[0] != "{" else (-1, -1))
        elif opened and (place := opened.pop()) != (-1, -1):
            box = _Box(*place, brace.start())
            while found and found[-1].begin > box.begin:
                inner = found.pop()
                around = text[box.inside : inner.begin], text[inner.end + 1 : box.end]
                if not "".join(around).strip():
                    box = _Box(box.begin, inner.inside, inner.end)
            found.append(box)
    return found


class _Marked(NamedTuple):
    """What a mark says to be the answer. `given` is False for a heading, or where nothing follows the mark."""

    text: str
    given: bool
    box: bool = False
    first: bool = False  # of several numbers the first counts: #### 42 apples and 3 pears


def final_number(text: str, *, percent_divides: bool = False) -> Decimal | None:
    """The number that a solution ends with, as docs/answers.md says; None where there is none, or several readings.

    It is the one that the last mark gives: a line after ####, <answer>...</answer>, or a box; without a mark, the last
    in the text. Of what is written as a calculation, the result: exactly, but for fractions whose decimal has no end,
    which are given to 28 digits.
    """
    return _decimal(final_reading(text), percent_divides)


def final_reading(text: str) -> Reading | None:
    """As final_number; a reading without a value is refused."""
    for marked in _marked(text):
        if marked.given:
            return _reading_of(marked)
    for line in _last_lines(text):
        if readings := read_numbers(line, item=line.strip() != text.strip()):
            return readings[-1]
    return None


def formula_reading(formula: str) -> Reading | None:
    """The number that a formula is as a whole, as in a box."""
    return _only(read_numbers(formula, maths=True))


def boxed_number(formula: str, *, percent_divides: bool = False) -> Decimal | None:
    """As final_number, of what stood in a box."""
    return _decimal(formula_reading(formula), percent_divides)


def marked_answer(text: str) -> str | None:
    """What the last mark gives; None without a mark."""
    return next((marked.text for marked in _marked(text) if marked.given), None)


def _reading_of(marked: _Marked) -> Reading | None:
    if marked.box:
        return formula_reading(marked.text)
    readings = read_numbers(marked.text, alone=True)
    return _only(readings[:1] if marked.first else readings)


def gold_number(answer: str, *, percent_divides: bool = False) -> Decimal | None:
    """The number that a given right answer means; None where there is none, or more than one reading.

    As final_number, but an answer that holds one number only is known to be that number: 11 5/6, 1 234.
    """
    if not any(marked.given for marked in _marked(answer)) and len(answer) <= MAX_CHARACTERS:
        number = _decimal(_only(read_numbers(answer, alone=True)), percent_divides)
        if number is not None:
            return number
    return final_number(answer, percent_divides=percent_divides)


def _marked(text: str) -> Iterator[_Marked]:
    """The marks of a text, the last first."""
    marks = list(_MARK.finditer(text))[-_NUM_MARKS:]
    box = boxed_answer(text)
    for index in range(len(marks) - 1, -1, -1):
        mark = marks[index]
        kind = mark[0].lower()
        if kind == "</answer>":
            continue
        if kind == "<answer>":
            closed = marks[index + 1].start() if index + 1 < len(marks) and marks[index + 1][0][1] == "/" else len(text)
            inside = text[mark.end() : closed]
            yield _Marked(inside, bool(inside.strip()))
        elif kind.startswith("#"):
            rest = text[mark.end() : mark.end() + 2 * MAX_CHARACTERS]
            yield _after_mark(rest, ends_text=mark.end() + len(rest) == len(text))
        elif box is not None:
            yield _Marked(box, bool(box.strip()), box=True)
            box = None


def _after_mark(rest: str, ends_text: bool) -> _Marked:
    """The first line after #### that is not empty. One without a number is an answer only where the text ends there."""
    stripped = rest.lstrip()
    line, _, more = stripped.partition("\n")
    heading = _HEADING.match(line) is not None
    words_alone = not any(character.isnumeric() for character in line)
    last = ends_text and not more.strip()
    given = bool(line.strip()) and not heading and (not words_alone or last)
    return _Marked(line, given, first=True)


def _only(readings: Sequence[Reading]) -> Reading | None:
    """The one number of an answer that was marked as a whole; of several, a refusal."""
    if not readings:
        return None
    return readings[0] if len({(reading.value, reading.percent) for reading in readings}) == 1 else Reading(None)


def _last_lines(text: str) -> Iterator[str]:
    """The lines that hold a digit, from the last, as far back as an answer may stand; long ones without beginning."""
    end = text[-5 * MAX_CHARACTERS :]
    for line in reversed(end.splitlines()):
        if any(character.isnumeric() for character in line):
            yield line if len(line) <= MAX_CHARACTERS else line[-MAX_CHARACTERS:].partition(" ")[2]


def _decimal(reading: Reading | None, percent_divides: bool) -> Decimal | None:
    number = None if reading is None else reading.value
    if reading is not None and reading.percent and percent_divides:
        number = divide(number, Fraction(100))
    return None if number is None else as_decimal(number)
