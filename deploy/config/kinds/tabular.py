"""A table of action values in a discrete env."""

from __future__ import annotations

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.tabular_config import TabularRunConfig


def _problems(config: TabularRunConfig) -> list[Problem]:
    for name in ("reward_clip", "fixed_episode_steps"):
        if getattr(config.env, name) is not None:
            return [Problem(("env", name), "a table learns from the env as it is: leave it out")]
    if not config.eval.greedy:
        return [Problem(("eval", "greedy"), "a table is judged by its greedy policy: leave it out")]
    return []


SETTINGS = KindSettings(name="tabular", config=TabularRunConfig, problems=_problems, fits=lambda algorithm: True)
