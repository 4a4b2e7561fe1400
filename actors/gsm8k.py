"""GSM8K, word problems of school mathematics (Cobbe et al., 2021, arXiv:2110.14168), judged by their final number.
Must never know of tokens or models; how a number is found in free text is decided here alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.text_task import Judgement, Row, Segment, Split, read_rows
from rollcall.cluster.errors import BadInput

MARK = "####"
_FILES: dict[Split, str] = {"train": "train.jsonl", "eval": "test.jsonl"}
# A sign, with or without a dollar on either side of it; then 1,234 or 1234 or neither, with or without decimals.
# In 16-3 the line is no sign: it follows an operand.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%.])[-\u2212])?\$?(?P<inner_sign>(?<=\$)[-\u2212])?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_BRACE = re.compile(r"\\boxed\{|[{}]")


class GSM8KConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["gsm8k"] = Field(default="gsm8k", description="the task")
    directory: Path = Field(description="the folder that holds train.jsonl and test.jsonl")
    chat: bool = Field(default=True, description="prompts go through the tokenizer's chat template")
    instruction: str = Field(
        default="Think step by step. End with one line that holds nothing but #### and the number: #### <number>",
        description="follows every question; it must ask for the form that the judge looks for",
    )


class GSM8K:
    """The eval split is the test split. `row.answer` is the number; the reference solution is a column."""

    Config = GSM8KConfig

    def __init__(self, config: GSM8KConfig) -> None:
        self._config = config
        self._rows: dict[Split, Sequence[Row]] = {}

    @property
    def chat(self) -> bool:
        return self._config.chat

    def rows(self, split: Split) -> Sequence[Row]:
        if split not in self._rows:
            path = self._config.directory / _FILES[split]
            if not path.expanduser().is_file():
                raise BadInput(
                    f"{path}: there is no such file: get train.jsonl and test.jsonl of GSM8K "
                    "(github.com/openai/grade-school-math), and name their folder in task.directory"
                )
            read = read_rows(path, prompt_column="question", answer_column="answer")
            self._rows[split] = [self._row(row) for row in read]
        return self._rows[split]

    def judge(self, row: Row, completion: str) -> Judgement:
        return judge_number(row.answer, completion)

    def environment(self, row: Row) -> None:
        return None

    def demonstration(self, row: Row) -> Sequence[Segment]:
        """The reference solution as it stands, its <<48/2=24>> included."""
        return [Segment(row.prompt, by_model=False), Segment(row.columns["solution"], by_model=True)]

    def _row(self, row: Row) -> Row:
        _, mark, number = row.answer.rpartition(MARK)
        if not mark or _first_number(number) is None:
            raise BadInput(f"{row.source}: the answer does not end with {MARK} and a number: mend the line")
        # Without a chat template nothing else parts the question from the solution.
        prompt = f"{row.prompt}\n{self._config.instruction}" + ("" if self._config.chat else "\n")
        columns = {**row.columns, "question": row.prompt, "solution": row.answer, "answer": number.strip()}
        return replace(row, prompt=prompt, answer=number.strip(), columns=columns)


def judge_number(answer: str, completion: str) -> Judgement:
    """Whether the final numbers of both are equal as numbers: 18.00 is 18, and $1,234 is 1234."""
    number = extract_number(completion)
    correct = number is not None and number == extract_number(answer)
    return Judgement(reward=float(correct), correct=correct, parsed=number is not None)


def extract_number(text: str) -> Decimal | None:
    """The number that a solution ends with; None where there is none.

    It is the first after the last ####; else that of the last \\boxed{...}, after its last equals sign; else the last
    in the text. Commas between thousands, $ and % and a full stop at the end are no part of it. A fraction is not one
    number: 1/2 is 1, and then 2.
    """
    _, mark, after = text.rpartition(MARK)
    if mark and (number := _first_number(after)) is not None:
        return number
    if (inside := _last_box(text)) is not None and (number := _first_number(inside.rpartition("=")[2])) is not None:
        return number
    found = list(_NUMBER.finditer(_plain(text)))
    return _value(found[-1]) if found else None


def _first_number(text: str) -> Decimal | None:
    found = _NUMBER.search(_plain(text))
    return None if found is None else _value(found)


def _last_box(text: str) -> str | None:
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


def _plain(text: str) -> str:
    """Without what LaTeX puts into numbers and before units: 1{,}234, 1\\,234, 1,\\!234, \\$5."""
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$")


def _value(found: re.Match[str]) -> Decimal:
    number = Decimal(found["digits"].replace(",", ""))
    return -number if found["sign"] or found["inner_sign"] else number


TASK = GSM8K
