"""A policy from comparisons, by a direct method."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.preference_checks import check_sharing
from rollcall.deploy.config.recipe.preference_config import DirectRunConfig

SETTINGS = KindSettings(name="direct", config=DirectRunConfig, problems=check_sharing, fits=lambda algorithm: True)
