"""What a language run imitates beside what it samples (PPO-ptx): the task's own demonstrations, or those of a file.
Which of them go with a learner step follows from the run's seed and the step alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.actors.tasks.text_task import Task
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import parse_object, read_json_lines
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.kinds.language.models import policy_layout
from rollcall.deploy.kinds.language.warm_start import demonstrations_of
from rollcall.learners.algorithms.language.lm_ppo_config import LMPPOConfig
from rollcall.learners.algorithms.language.token_settings import TOKEN_BUDGET
from rollcall.learners.collators.language import LanguageCollator
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource

TEXT = "text"  # the column of a document, which is learnt whole
_OF_A_ROW = {"prompt", "messages"}
_NAME = "algorithm.ptx_file"


def language_collator(
    config: LanguageConfig, models: Mapping[str, nn.Module], task: Task, codec: TextCodec, model: Path
) -> LanguageCollator:
    """Raises BadInput: where there is nothing to imitate, or it is longer than the model."""
    budget = int(getattr(config.algorithm, "pass_tokens", TOKEN_BUDGET))
    layout, settings = policy_layout(models, config.policy, budget), _settings(config)
    if settings is None:
        return LanguageCollator(token_budget=budget, layout=layout)
    shown = ShuffledSource(
        _demonstrations(config, settings, task, codec, model),
        batch_size=settings.ptx_batch_size,
        steps=config.learner_steps or 0,
        seed=derive_seed(config.seed, "ptx", "order"),
    )
    return LanguageCollator(token_budget=budget, layout=layout, beside=lambda step: shown.take(step) or ())


def check_beside(config: LanguageConfig, task: Task) -> None:
    """Raises BadInput: naming the file's line that cannot be learnt from."""
    settings = _settings(config)
    if settings is None or settings.ptx_file is None:
        return
    if _documents(Path(settings.ptx_file)) is None:
        _rows_of(settings.ptx_file, task).rows("train")


def _settings(config: LanguageConfig) -> LMPPOConfig | None:
    """Where demonstrations are imitated."""
    found = config.algorithm
    return found if isinstance(found, LMPPOConfig) and found.ptx_coef else None


def _demonstrations(
    config: LanguageConfig, settings: LMPPOConfig, task: Task, codec: TextCodec, model: Path
) -> list[Demonstration]:
    seed = derive_seed(config.seed, "ptx")
    if settings.ptx_file is None:
        return demonstrations_of(task, codec, model, num_rows=None, seed=seed, what_for="algorithm.ptx_coef")
    texts = _documents(Path(settings.ptx_file))
    if texts is not None:
        return [piece for text in texts for piece in _pieces(codec, text, config.actors.engine.max_model_len)]
    rows = _rows_of(settings.ptx_file, task)
    return demonstrations_of(rows, codec, model, num_rows=None, seed=seed, what_for=_NAME)


def _rows_of(file: str, task: Task) -> Jsonl:
    return Jsonl(JsonlConfig(path=Path(file), chat=task.chat))


def _documents(file: Path) -> list[str] | None:
    """The texts of a file whose first line has one, and neither a prompt nor messages. None: its lines are rows.

    Raises:
      BadInput: naming the line without one; or the file, where it is empty.
    """
    found: list[str] = []
    for source, line in read_json_lines(file):
        try:
            columns = parse_object(line)
        except ValueError as error:
            raise BadInput(f"{source}: {error}; fix or remove the line") from None
        if not found and (TEXT not in columns or _OF_A_ROW & columns.keys()):
            return None
        text = columns.get(TEXT)
        if not isinstance(text, str) or not text.strip():
            given = json.dumps(text)[:60]
            raise BadInput(f"{source}: the column {TEXT!r} is {given}, and not a text: fix or remove the line")
        found.append(text)
    if not found:
        raise BadInput(f"{_NAME}={file}: the file is empty: write one JSON object a line")
    return found


def _pieces(codec: TextCodec, text: str, room: int) -> Sequence[Demonstration]:
    """A document, of which nothing predicts the first token; one that is longer than `room` in several pieces."""
    tokens = np.array(codec.document(text), np.int32)
    cut = [tokens[begin : begin + room] for begin in range(0, len(tokens), room)]
    return [Demonstration(piece, np.arange(len(piece)) > 0) for piece in cut if len(piece) > 1]
