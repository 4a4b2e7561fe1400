"""GSM8K, word problems of school mathematics (Cobbe et al., 2021, arXiv:2110.14168), judged by their final number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split, read_rows
from rollcall.cluster.errors import BadInput
from rollcall.reward_service.answers.final_answer import final_number, gold_number

MARK = "####"
_FILES: dict[Split, str] = {"train": "train.jsonl", "eval": "test.jsonl"}


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
        if not mark or gold_number(number) is None:
            raise BadInput(f"{row.source}: the answer does not end with {MARK} and a number: fix the line")
        # Without a chat template nothing else parts the question from the solution.
        prompt = f"{row.prompt}\n{self._config.instruction}" + ("" if self._config.chat else "\n")
        columns = {**row.columns, "question": row.prompt, "solution": row.answer, "answer": number.strip()}
        return replace(row, prompt=prompt, answer=number.strip(), columns=columns)


def judge_number(answer: str, completion: str) -> Judgement:
    """Whether the final numbers of both are equal as numbers: 18.00 is 18, and $1,234 is 1234 (docs/answers.md)."""
    number = final_number(completion)
    correct = number is not None and number == gold_number(answer)
    return Judgement(reward=float(correct), correct=correct, parsed=number is not None)


TASK = GSM8K
