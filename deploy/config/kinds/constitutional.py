"""A critic by principles, revisions, and their imitation."""

from __future__ import annotations

from pathlib import Path

from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.kinds.language import RENAMED, check_collecting
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.constitutional_config import ConstitutionalConfig, ConstitutionalSettings
from rollcall.deploy.config.recipe.selection_config import algorithm_section


def _problems(config: ConstitutionalConfig) -> list[Problem]:
    critic = config.stage.critic
    if critic.url is None and not (Path(critic.model) / "config.json").is_file():
        text = "no model is in it (config.json is missing): name a model's directory, or the url of a server"
        return [Problem(("algorithm", "critic", "model"), text)]
    return check_collecting(config)


SETTINGS = KindSettings(
    name="constitutional",
    config=ConstitutionalConfig,
    problems=_problems,
    sections=algorithm_section(ConstitutionalSettings),
    renamed=RENAMED,
)
