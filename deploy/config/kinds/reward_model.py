"""A reward model from comparisons."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.preference_checks import check_sharing
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig, SegmentModelConfig, TextModelConfig
from rollcall.deploy.config.settings import Settings


def _sections(settings: Settings) -> Mapping[str, type[BaseModel]]:
    model = settings.tree.get("model")
    if not isinstance(model, dict):
        return {}
    model.setdefault("kind", "text")  # a union's tag has no default of its own
    return {"model": SegmentModelConfig if model["kind"] == "segment" else TextModelConfig}


SETTINGS = KindSettings(name="reward_model", config=RewardTrainConfig, problems=check_sharing, sections=_sections)
