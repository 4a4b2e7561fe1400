"""Supervised fine-tuning alone."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.kinds.language import RENAMED, check_supervised
from rollcall.deploy.config.recipe.language_config import SupervisedConfig

SETTINGS = KindSettings(name="supervised", config=SupervisedConfig, problems=check_supervised, renamed=RENAMED)
