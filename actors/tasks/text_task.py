"""What a text task is: rows with a prompt and an answer, a judge of completions, and an env where it takes many turns.
This file must never know of tokens, models or engines: whoever samples turns text into tokens and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import number_as_written, parse_object, read_json_lines

Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Row:
    """One problem. `source` says where it came from, for messages: "train.jsonl:12" or "arithmetic 17"."""

    prompt: str
    answer: str
    source: str
    columns: Mapping[str, Any] = field(default_factory=dict)  # its line, as scorers see it in `metadata`


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a demonstration. Only what is `by_model` is imitated; the rest is context.

    The end-of-sequence token after a segment of the model's is the trainer's to add, not the task's.
    """

    text: str
    by_model: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a completion is worth. An answer that could not be parsed is wrong, and is counted apart."""

    reward: float
    correct: bool
    parsed: bool
    components: Mapping[str, float] = field(default_factory=dict)  # parts of the reward or counts, for the metrics


@dataclass(frozen=True, slots=True)
class TextStep:
    """An env's reply to one turn of the model. The reward is that turn's: lm_ppo and reinforce_pp credit it there, to
    algorithms for which a sample is one action the sum of the turns counts.

    `text` is appended to the conversation and tokenised alone: tokens that stand are never tokenised again, or they
    might not be those that the model sampled. It is empty where the episode ends. `correct` and `parsed` speak of the
    answer once `terminated`; before that, `parsed` says that the turn was well-formed.
    """

    text: str
    reward: float
    terminated: bool
    correct: bool
    parsed: bool
    components: Mapping[str, float] = field(default_factory=dict)


class TextEnv(Protocol):
    """One conversation about one row. Every sample has an env of its own."""

    def reset(self) -> str:
        """The opening prompt."""

    def step(self, text: str) -> TextStep:
        """Replies to the model's turn."""


class Task(Protocol):
    """The class also names its config model in the class attribute Config: frozen, extra="forbid", with a field
    `name`. The module names the class in the module variable TASK, so that a recipe's `task: arithmetic` finds it in
    actors/tasks/arithmetic.py.

    Rows of a split are the same, in the same order, for the same config on every machine.
    """

    def __init__(self, config: Any) -> None: ...

    @property
    def chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""

    def rows(self, split: Split) -> Sequence[Row]:
        """The problems of a split; none of the eval split where the task has none.

        Raises:
          BadInput: in one line, naming the file and line, where they cannot be read.
        """

    def judge(self, row: Row, completion: str) -> Judgement:
        """What the completion, without the end-of-sequence token, is worth. A pure function of both."""

    def environment(self, row: Row) -> TextEnv | None:
        """A fresh env for one sample of the row; None where a single turn is judged."""

    def demonstration(self, row: Row) -> Sequence[Segment]:
        """What a supervised warm start imitates; the first segment is the prompt."""


def read_rows(path: Path, *, prompt_column: str, answer_column: str) -> list[Row]:
    """The rows of a file with one JSON object a line; blank lines are skipped.

    A row's columns are those of its line, as they are there, without the prompt; `answer` is added where no column is
    called so. A number as the answer is the row's answer letter by letter: 5.0 stays "5.0".

    Raises:
      BadInput: when there is no such file, no row in it, or a line that is not such an object, naming file and line.
    """
    rows = []
    for source, line in read_json_lines(path):
        try:
            rows.append(_row(line, source, prompt_column, answer_column))
        except ValueError as error:
            raise BadInput(f"{source}: {error}; mend or remove the line") from None
    if not rows:
        raise BadInput(f"{path}: no rows: the file is empty; write one JSON object a line")
    return rows


def _row(line: str, source: str, prompt_column: str, answer_column: str) -> Row:
    columns = parse_object(line)
    for column in (prompt_column, answer_column):
        if column not in columns:
            raise BadInput(
                f"{source}: there is no column {column!r}; the columns are {', '.join(map(repr, columns)) or 'none'}: "
                "name the right one in the task's settings"
            )
    prompt, answer = columns[prompt_column], columns[answer_column]
    if isinstance(prompt, list):
        raise ValueError(
            f"the prompt (column {prompt_column!r}) is a list: of chat messages write the question alone, as text, and "
            "set task.chat=true; a system message goes into task.system_prompt"
        )
    if not isinstance(prompt, str) or not prompt.strip():
        what = "is empty" if isinstance(prompt, str) else "is not text"
        raise ValueError(f"the prompt (column {prompt_column!r}) {what}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"the answer (column {answer_column!r}) is neither text nor a number")
    text = answer if isinstance(answer, str) else number_as_written(line, answer_column)
    columns = {"answer": answer} | columns
    return Row(prompt, text, source, {name: value for name, value in columns.items() if name != prompt_column})
