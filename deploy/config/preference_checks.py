"""What no component of a run on preferences can check alone. As checks.py for the control half."""

from __future__ import annotations

from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.preference_config import PreferenceRunConfig, RewardTrainConfig, TextModelConfig


def check_sharing(config: PreferenceRunConfig) -> list[Problem]:
    """What several learner processes cannot share."""
    learner, size = config.learner, config.batch_size
    if learner.num_processes > size:
        text = f"more learner processes than the {size} comparisons of a step to share: {size} at the most"
        return [Problem(("learner", "num_processes"), text)]
    if learner.sharding != "fsdp":
        return []
    path = ("learner", "sharding")
    if learner.num_processes == 1:
        text = "there is one learner process, with nobody to share with: use auto, or more learner.num_processes"
        return [Problem(path, text)]
    model = config.model if isinstance(config, RewardTrainConfig) else None
    if model is not None and (not isinstance(model, TextModelConfig) or model.start == "words"):
        return [Problem(path, "such a model is small: cutting it gains nothing; use auto")]
    return []
