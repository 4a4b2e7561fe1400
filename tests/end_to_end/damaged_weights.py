"""own_task.py's task; and a tensor of the policy arrives upside down in every engine of a run, because its processes
import this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from own_task import LongAnswers, LongAnswersConfig  # type: ignore[import-not-found]

from rollcall.actors.engine.checkpoint_names import CheckpointNames

_right = CheckpointNames.tensors


class DamagedConfig(LongAnswersConfig):
    name: str = "damaged_weights:Damaged"


class Damaged(LongAnswers):
    Config = DamagedConfig


def wrong(self: CheckpointNames, published: Mapping[str, Any]) -> dict[str, Any]:
    tensors = _right(self, published)
    name = "model.layers.0.mlp.down_proj.weight"
    return {**tensors, name: tensors[name].flip(0)}


CheckpointNames.tensors = wrong  # type: ignore[method-assign]
