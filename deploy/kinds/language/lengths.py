"""What of a task fits into a run's model: its rows, and the length that engines are given."""

from __future__ import annotations

import logging
from pathlib import Path

from rollcall.actors.language.conversations import opening
from rollcall.actors.language.lm_actors_config import LMActorsConfig
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Task
from rollcall.cluster.errors import BadInput
from rollcall.learners.models.language.token_policy import model_length

_log = logging.getLogger("rollcall")


def usable_rows(label: str, task: Task, codec: TextCodec, actors: LMActorsConfig) -> list[int]:
    """Training rows whose prompt leaves room for a completion.

    Raises:
      BadInput: when there is none.
    """
    rows = task.rows("train")
    room = actors.engine.max_model_len - actors.sampling.max_tokens
    lengths = [len(opening(task, codec, row)) for row in rows]
    usable = [index for index, length in enumerate(lengths) if length <= room]
    if len(usable) < len(rows):
        longest = max(range(len(rows)), key=lengths.__getitem__)
        _log.warning(
            "%d of %d prompts are longer than the %d tokens that max_tokens leaves of max_model_len, and are "
            "skipped; the longest is row %d (%s) with %d tokens",
            *(len(rows) - len(usable), len(rows), room, longest, rows[longest].source, lengths[longest]),
        )
    if not usable:
        raise BadInput(f"task {label}: no training row has a prompt of at most {room} tokens")
    return usable


def check_length(wanted: int, model: Path) -> None:
    """Raises BadInput: where engines are to take more tokens than the model does."""
    longest = model_length(model)
    if longest is not None and wanted > longest:
        raise BadInput(
            f"actors.engine.max_model_len = {wanted}: policy.model = {str(model)!r} takes at most "
            f"{longest} tokens of prompt and completion: lower it, and actors.sampling.max_tokens"
        )
