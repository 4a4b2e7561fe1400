"""Bandits."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.recipe.tabular_config import BanditRunConfig

SETTINGS = KindSettings(name="bandit", config=BanditRunConfig, fits=lambda algorithm: True)
