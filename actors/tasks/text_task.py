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
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Row:
    """One problem. `source` says where it came from, for messages: "train.jsonl:12" or "arithmetic 17"."""

    prompt: str
    answer: str
    source: str
    columns: Mapping[str, Any] = field(default_factory=dict)  # its line, as scorers see it in `metadata`
    # Of a chat of several messages: all that the model is shown, as its template takes them; `prompt` is the last one's
    # text. Empty: the prompt is all there is.
    messages: tuple[Mapping[str, Any], ...] = ()
    reply: Mapping[str, Any] | None = None  # the message that is to follow, where the data has it


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


def opening_of(task: Task, row: Row) -> str | tuple[Mapping[str, Any], ...]:
    """What every sample of a row begins with: a text, or messages for the chat template."""
    env = task.environment(row)
    if env is not None:
        return env.reset()
    return row.messages or row.prompt


def all_shown(row: Row) -> str:
    """The text of a row's prompt, all its messages together: to see how long it is and what is in it."""
    return "".join(str(part) for message in row.messages for part in message.values()) or row.prompt


def read_rows(path: Path, *, prompt_column: str, answer_column: str) -> list[Row]:
    """The rows of a file with one JSON object a line, or of a table; blank lines are skipped. A row's prompt may be a
    list of chat messages, in the prompt's column or in one called messages.

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
            raise BadInput(f"{source}: {error}; fix or remove the line") from None
    if not rows:
        raise BadInput(f"{path}: no rows: the file is empty; write one JSON object a line")
    return rows


def _row(line: str, source: str, prompt_column: str, answer_column: str) -> Row:
    columns = parse_object(line)
    if prompt_column not in columns and "messages" in columns:
        prompt_column = "messages"
    if isinstance(columns.get(prompt_column), list):
        return _conversation(columns, source, prompt_column, answer_column)
    for column in (prompt_column, answer_column):
        if column not in columns:
            raise BadInput(
                f"{source}: there is no column {column!r}; the columns are {', '.join(map(repr, columns)) or 'none'}: "
                "name the right one in the task's settings"
            )
    prompt, answer = columns[prompt_column], columns[answer_column]
    if not isinstance(prompt, str) or not prompt.strip():
        what = "is empty" if isinstance(prompt, str) else "is neither text nor a list of messages"
        raise ValueError(f"the prompt (column {prompt_column!r}) {what}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"the answer (column {answer_column!r}) is neither text nor a number")
    text = answer if isinstance(answer, str) else number_as_written(line, answer_column)
    columns = {"answer": answer} | columns
    return Row(prompt, text, source, {name: value for name, value in columns.items() if name != prompt_column})


def _conversation(columns: Mapping[str, Any], source: str, prompt_column: str, answer_column: str) -> Row:
    """A row of messages. One that ends with the assistant's has its reply; the answer is the answer's column, or that
    reply. Where the two are apart (`prompt` and `completion`, as TRL has them), the completion is the reply."""
    messages = [_message(item, place) for place, item in enumerate(columns[prompt_column])]
    completion = columns.get("completion")
    if isinstance(completion, list):
        messages += [_message(item, place) for place, item in enumerate(completion)]
    reply = messages.pop() if messages and messages[-1]["role"] == "assistant" else None
    if not messages:
        raise ValueError(f"the messages (column {prompt_column!r}) hold no turn for the model to answer")
    answer = columns.get(answer_column)  # a table has the column in every row, null where a row has none
    if answer is None and reply is not None:
        answer = reply.get("content") or ""
    if answer is None:
        raise ValueError(
            f"the messages do not end with the assistant's, and there is no column {answer_column!r}: give one of them"
        )
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"the answer (column {answer_column!r}) is neither text nor a number")
    kept = {"answer": answer} | {
        name: value for name, value in columns.items() if name != prompt_column and (name, value) != ("answer", None)
    }
    return Row(str(messages[-1].get("content") or ""), str(answer), source, kept, tuple(messages), reply)


def _message(item: Any, place: int) -> Mapping[str, Any]:
    """One turn, as chat templates take it: `role` and `content`, or of the assistant `tool_calls`.

    Raises:
      ValueError: saying which one is none.
    """
    if not isinstance(item, Mapping) or item.get("role") not in ROLES:
        raise ValueError(f"message {place} has no role of {', '.join(ROLES)}")
    calls, content = item.get("tool_calls"), item.get("content")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise ValueError(f"message {place}: tool_calls is no list of objects")
    if not isinstance(content, str) and not (content is None and calls):
        raise ValueError(f"message {place} has no content that is text")
    return dict(item)
