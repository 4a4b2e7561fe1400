"""A user's own problems: a file with one JSON object a line, judged by text or by number."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.actors.tasks.gsm8k import judge_number
from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split, all_shown, read_rows
from rollcall.cluster.errors import BadInput
from rollcall.cluster.seeds import derive_seed
from rollcall.reward_service.answers.final_answer import gold_number

_log = logging.getLogger("rollcall")


class JsonlConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["jsonl"] = Field(default="jsonl", description="the task")
    path: Path = Field(
        description="the file to learn from: one JSON object a line, or Parquet; a folder of Parquet files, or a data "
        "set as the package datasets saves it; hub:OWNER/NAME:SUBSET:SPLIT, a data set of the Hugging Face hub"
    )
    eval_path: Path | None = Field(default=None, description="the file to evaluate on (None: see num_eval_rows)")
    num_eval_rows: int = Field(
        default=0, ge=0, description="without eval_path: so many prompts of path, chosen by seed, are held out"
    )
    seed: int = Field(default=0, ge=0, description="which rows are held out")
    prompt_column: str = Field(default="prompt", min_length=1, description="the column with the prompt")
    answer_column: str = Field(default="answer", min_length=1, description="the column with the reference answer")
    chat: bool = Field(default=False, description="prompts go through the tokenizer's chat template")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="what else the chat template is told: enable_thinking: false, say"
    )
    judge: Literal["exact", "number", "contains"] = Field(
        default="exact",
        description="exact: the completion, stripped, is the answer; number: its final number equals the answer's; "
        "contains: the answer stands in it",
    )
    system_prompt: str | None = Field(
        default=None,
        min_length=1,
        description="before every prompt: of a chat a system message, unless it begins with one; else with an empty "
        "line between them",
    )
    system_prompt_as: Literal["message", "text"] = Field(
        default="message", description="text: of a chat too it stands in the user's message, before the prompt"
    )

    @model_validator(mode="after")
    def _one_source_of_eval_rows(self) -> JsonlConfig:
        if self.eval_path is not None and self.num_eval_rows:
            raise ValueError("eval_path and num_eval_rows are both given: give one of them")
        return self


class Jsonl:
    Config = JsonlConfig

    def __init__(self, config: JsonlConfig) -> None:
        self._config = config
        self._rows: dict[Split, Sequence[Row]] = {}

    @property
    def chat(self) -> bool:
        return self._config.chat

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]:
        return self._config.chat_template_kwargs

    def rows(self, split: Split) -> Sequence[Row]:
        if not self._rows:
            config = self._config
            train, held_out = self._read(config.path), []
            if config.eval_path is not None:
                held_out = self._read(config.eval_path)
                _warn_of_shared(train, held_out, config)
            elif config.num_eval_rows:
                train, held_out = self._divided(train)
            self._rows = {"train": train, "eval": held_out}
        return self._rows[split]

    def _divided(self, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """What to learn from, and what to evaluate on: no prompt is in both, and none is evaluated on twice."""
        config = self._config
        prompts = len({all_shown(row) for row in rows})
        if config.num_eval_rows >= prompts:
            raise BadInput(
                f"{config.path}: num_eval_rows is {config.num_eval_rows}, and the file has {prompts} different "
                "prompts, of which some must be left to learn from: lower it, or give eval_path"
            )
        random.Random(derive_seed(config.seed, "jsonl")).shuffle(rows)
        held_out: dict[str, Row] = {}
        while len(held_out) < config.num_eval_rows:
            row = rows.pop()
            held_out.setdefault(all_shown(row), row)
        train = [row for row in rows if all_shown(row) not in held_out]
        if left_out := len(rows) - len(train):
            _log.warning("%s: %d rows have the prompt of a held-out row, and are left out", config.path, left_out)
        return train, list(reversed(held_out.values()))

    def judge(self, row: Row, completion: str) -> Judgement:
        if self._config.judge == "number":
            return judge_number(row.answer, completion)
        text, answer = completion.strip(), row.answer.strip()
        correct = text == answer if self._config.judge == "exact" else answer in text
        return Judgement(reward=float(correct), correct=correct, parsed=bool(text))

    def environment(self, row: Row) -> None:
        return None

    def demonstration(self, row: Row) -> Sequence[Segment]:
        return [Segment(row.prompt, by_model=False), Segment(row.answer, by_model=True)]

    def _read(self, path: Path) -> list[Row]:
        config = self._config
        rows = read_rows(path, prompt_column=config.prompt_column, answer_column=config.answer_column)
        for row in rows:
            self._check(row)
        return [self._with_system(row) for row in rows]

    def _check(self, row: Row) -> None:
        """Raises BadInput: for an answer that cannot be judged by, and messages that no template makes a text."""
        config = self._config
        if row.messages and not config.chat:
            raise BadInput(f"{row.source}: the prompt is a list of chat messages: set task.chat=true")
        if not row.answer.strip() and not (row.reply or {}).get("tool_calls"):
            # An empty answer stands in every completion, and equals none that says something.
            raise BadInput(f"{row.source}: the answer (column {config.answer_column!r}) is empty: fill the line in")
        if config.judge == "number" and gold_number(row.answer) is None:
            raise BadInput(
                f"{row.source}: the answer {row.answer[:60]!r} cannot be read as one number (docs/answers.md): "
                "write it as digits, or use judge: exact"
            )

    def _with_system(self, row: Row) -> Row:
        config = self._config
        if config.system_prompt is None:
            return row
        if not config.chat or (config.system_prompt_as == "text" and not row.messages):
            return replace(row, prompt=f"{config.system_prompt}\n\n{row.prompt}")
        messages = row.messages or ({"role": "user", "content": row.prompt},)
        if messages[0]["role"] in ("system", "developer"):
            return row
        return replace(row, messages=({"role": "system", "content": config.system_prompt}, *messages))


def _warn_of_shared(train: Sequence[Row], held_out: Sequence[Row], config: JsonlConfig) -> None:
    shared = len(set(map(all_shown, train)) & set(map(all_shown, held_out)))
    if shared:
        text = "%s and %s share %d prompts: what is learnt from them is evaluated on them"
        _log.warning(text, config.path, config.eval_path, shared)


TASK = Jsonl
