"""A control run on a recorded set."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.offline_config import OfflineConfig


def _problems(config: OfflineConfig) -> list[Problem]:
    problems = []
    if config.policy.recurrent != "none":
        text = f"{config.algorithm_name} learns from single steps of a recorded set: use none"
        problems.append(Problem(("policy", "recurrent"), text))
    if config.policy.normalise_rewards:
        text = f"{config.algorithm_name} takes recorded rewards as they are: use false"
        problems.append(Problem(("policy", "normalise_rewards"), text))
    return problems


SETTINGS = KindSettings(name="offline", config=OfflineConfig, problems=_problems, fits=lambda algorithm: True)
