"""A task in ten lines: a base class with defaults, and answers in plain Python. Rows may be dicts; a judge may give a
number, or true and false. What runs see of it is a task like any other."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split, TextEnv
from rollcall.cluster.errors import BadInput


class OwnTaskConfig(BaseModel):
    """Of a task that has no settings of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="task", description="the task")


class TextTask:
    """Derive from it, and write `rows` and `judge`; the rest has defaults.

    rows(split): the problems of "train" or "eval", each a `Row` or a dict with "prompt", "answer" and whatever columns
      more. One that cannot be read any more of "eval" gives an empty list.
    judge(row, completion): a `Judgement`; or true or false, for right or wrong; or a number, the reward, of which 1 and
      more counts as right.
    """

    Config: ClassVar[type[BaseModel]] = OwnTaskConfig
    chat = False  # whether prompts go through the tokenizer's chat template

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def rows(self, split: Split) -> Sequence[Any]:
        raise NotImplementedError

    def judge(self, row: Row, completion: str) -> Any:
        """The completion, stripped, is the answer."""
        return completion.strip() == row.answer.strip()

    def environment(self, row: Row) -> TextEnv | None:
        return None

    def demonstration(self, row: Row) -> Sequence[Segment]:
        """The prompt, and the answer as what is imitated."""
        return [Segment(row.prompt, by_model=False), Segment(row.answer, by_model=True)]


class SettledTask:
    """A user's task as a text_task.Task: its rows are Rows, and its judge gives Judgements. Else it is the task."""

    def __init__(self, task: Any, name: str) -> None:
        self._task = task
        self._name = name
        self._rows: dict[Split, Sequence[Row]] = {}

    def __getattr__(self, name: str) -> Any:  # an alphabet, say, where it has one
        if name.startswith("__") or name == "_task":
            raise AttributeError(name)
        return getattr(self._task, name)

    @property
    def chat(self) -> bool:
        return bool(self._task.chat)

    def rows(self, split: Split) -> Sequence[Row]:
        """Raises BadInput: for what is no row, naming it."""
        if split not in self._rows:
            given = self._task.rows(split)
            if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
                raise BadInput(f"task {self._name}: rows({split!r}) gave {_described(given)}: give a list of rows")
            self._rows[split] = [row_of(row, f"{self._name} {split} {i}") for i, row in enumerate(given)]
        return self._rows[split]

    def judge(self, row: Row, completion: str) -> Judgement:
        return judgement_of(self._task.judge(row, completion), completion, self._name)

    def environment(self, row: Row) -> TextEnv | None:
        found: TextEnv | None = self._task.environment(row)
        return found

    def demonstration(self, row: Row) -> Sequence[Segment]:
        found: Sequence[Segment] = self._task.demonstration(row)
        return found


def row_of(given: object, source: str) -> Row:
    """A row as it is, or of a dict with "prompt" and "answer"; its columns are what else the dict has, and the answer.

    Raises:
      BadInput: for anything else.
    """
    if isinstance(given, Row):
        return given
    if not isinstance(given, Mapping):
        raise BadInput(f"{source}: a row is {_described(given)}: give a dict with 'prompt' and 'answer', or a Row")
    missing = [name for name in ("prompt", "answer") if name not in given]
    if missing:
        there = ", ".join(map(repr, given)) or "nothing"
        raise BadInput(f"{source}: a row without {' and '.join(map(repr, missing))} (it has {there}): add it")
    prompt, answer = given["prompt"], given["answer"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput(f"{source}: the prompt is {_described(prompt)}: give text")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise BadInput(f"{source}: the answer is {_described(answer)}: give text or a number")
    columns = {str(name): value for name, value in given.items() if name not in ("prompt", "source")}
    return Row(prompt, str(answer), str(given.get("source", source)), columns)


def judgement_of(said: object, completion: str, name: str) -> Judgement:
    """Raises ValueError: for what is none of those that a judge may give."""
    if isinstance(said, Judgement):
        return said
    if hasattr(said, "item") and not isinstance(said, numbers.Real):  # of numpy, of torch
        said = said.item()
    if isinstance(said, bool):
        return Judgement(reward=float(said), correct=said, parsed=bool(completion.strip()))
    if isinstance(said, numbers.Real) and math.isfinite(float(said)):
        reward = float(said)
        return Judgement(reward=reward, correct=reward >= 1.0, parsed=bool(completion.strip()))
    raise ValueError(
        f"task {name}: its judge gave {_described(said)}: give true or false, a finite number, or a Judgement"
    )


def _described(thing: object) -> str:
    shown = repr(thing)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(thing).__name__})"
