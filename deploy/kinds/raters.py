"""The raters of a run that are programs, from its settings. People label at the service's page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.config.recipe.preference_settings import PreferencesConfig, TextPreferencesConfig
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.raters.rater import JudgeRater, Rater
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater, TrueReward
from rollcall.reward_service.scorers.judge import Judge

_SKIPS = 20  # verdicts of a judge in a row that cannot be read: others are asked for in their place


@dataclass(frozen=True)
class Program:
    """A rater that is one, and how many comparisons it may be asked about side by side."""

    rater: Rater
    at_once: int = 1
    close: Callable[[], None] = lambda: None  # lets go of what it asks


def programs(config: PreferencesConfig | TextPreferencesConfig) -> list[Program]:
    """Whose labels are the same when they are asked again, as far as a judge's are."""
    found = []
    if config.true_reward is not None:
        true_reward = _as_it_stands(import_object(config.true_reward))
        found.append(Program(SyntheticRater("synthetic", true_reward, config.noise, says_it_again=True)))
    judge = config.judge if isinstance(config, TextPreferencesConfig) else None
    if judge is not None:
        asked = Judge(judge)
        rater = JudgeRater("judge", asked, soft=judge.soft, skips=_SKIPS)
        found.append(Program(rater, min(16, judge.concurrency), asked.close))
    return found


def labelling_of(config: TextPreferencesConfig) -> LabellingConfig:
    """What a judge has skipped nobody can complete: it is asked no more, and others are in its place."""
    if "judge" in config.raters:
        return LabellingConfig(labels_per_comparison=config.asked_about_each, max_skips=1)
    return LabellingConfig(labels_per_comparison=config.asked_about_each)


def _as_it_stands(true_reward: TrueReward) -> TrueReward:
    """Told a task's prompt as a row has it, also where it is asked as a user's message."""

    def judge(asked: Any, said: Any) -> Any:
        if isinstance(asked, list) and len(asked) == 1 and asked[0].get("role") == "user":
            return true_reward(asked[0]["content"], said)
        return true_reward(asked, said)

    return judge
