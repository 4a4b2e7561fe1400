"""A search for a reward."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.kinds.control import check_settings
from rollcall.deploy.config.recipe.design_config import DesignRunConfig

SETTINGS = KindSettings(name="design", config=DesignRunConfig, problems=check_settings)
