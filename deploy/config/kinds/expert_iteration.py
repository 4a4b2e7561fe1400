"""Rounds of selection and imitation."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.kinds.language import RENAMED, check_collecting
from rollcall.deploy.config.recipe.selection_config import (
    ExpertIterationConfig,
    ExpertIterationSettings,
    algorithm_section,
)

SETTINGS = KindSettings(
    name="expert_iteration",
    config=ExpertIterationConfig,
    problems=check_collecting,
    sections=algorithm_section(ExpertIterationSettings),
    renamed=RENAMED,
)
