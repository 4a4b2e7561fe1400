"""A search for a reward."""

from __future__ import annotations

from rollcall.deploy.config.design_config import DesignRunConfig
from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.kinds.control import check_settings

SETTINGS = KindSettings(name="design", config=DesignRunConfig, problems=check_settings)
