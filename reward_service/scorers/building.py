"""Scorers from their settings, with all that they stand on; and what is to be looked at before they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import assert_never

from pydantic import JsonValue

from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.scorer import Scorer
from rollcall.reward_service.scorers.code_reward import build_code_reward
from rollcall.reward_service.scorers.code_reward_config import CodeRewardConfig
from rollcall.reward_service.scorers.combined import build_all, ensemble, weighted_sum
from rollcall.reward_service.scorers.function_config import FunctionConfig
from rollcall.reward_service.scorers.function_scorer import build_function_scorer
from rollcall.reward_service.scorers.judge import Judge
from rollcall.reward_service.scorers.judge_config import JudgeConfig
from rollcall.reward_service.scorers.maths import Algebra, build_maths_scorer, unreadable_gold
from rollcall.reward_service.scorers.maths_config import MathsConfig
from rollcall.reward_service.scorers.python_tests import build_python_tests_scorer
from rollcall.reward_service.scorers.python_tests_config import PythonTestsConfig
from rollcall.reward_service.scorers.rules import build_rule, unreadable_answer
from rollcall.reward_service.scorers.rules_config import (
    ExactMatchConfig,
    FormatConfig,
    LengthConfig,
    NumberConfig,
    RegexConfig,
)
from rollcall.reward_service.scorers.scorer_config import EnsembleConfig, ScorerConfig, WeightedSumConfig


def build_scorer(config: ScorerConfig) -> Scorer:
    """Builds the scorer, with all that it stands on: workers, a sandbox, a model.

    Raises:
      BadInput: what the settings name is not there, or cannot be used.
    """
    match config:
        case ExactMatchConfig() | NumberConfig() | RegexConfig() | FormatConfig() | LengthConfig():
            return build_rule(config)
        case MathsConfig():
            return build_maths_scorer(config)
        case PythonTestsConfig():
            return build_python_tests_scorer(config)
        case CodeRewardConfig():
            return build_code_reward(config)
        case RewardModelConfig():
            from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer  # imports torch

            return build_reward_model_scorer(config)
        case JudgeConfig():
            return Judge(config)
        case FunctionConfig():
            return build_function_scorer(config)
        case WeightedSumConfig():
            return weighted_sum(_build_inner(config), config.parts)
        case EnsembleConfig():
            return ensemble(_build_inner(config), config.take, config.deviations)
        case _:
            assert_never(config)


def _build_inner(config: WeightedSumConfig | EnsembleConfig) -> dict[str, Scorer]:
    return build_all({name: partial(build_scorer, scorer) for name, scorer in config.scorers().items()})


AnswerCheck = Callable[[Mapping[str, JsonValue]], str | None]


def answer_checks(config: ScorerConfig) -> list[AnswerCheck]:
    """Of an item's metadata: what is wrong with its right answers, so that no response could ever be scored; None where
    all is well. There are no checks where a scorer needs no answers."""
    match config:
        case ExactMatchConfig() | NumberConfig():
            return [lambda metadata: unreadable_answer(config, metadata)]
        case MathsConfig():
            algebra = Algebra()
            return [lambda metadata: unreadable_gold(metadata, config, algebra)]
        case WeightedSumConfig() | EnsembleConfig():
            return [check for scorer in config.scorers().values() for check in answer_checks(scorer)]
        case _:
            return []
