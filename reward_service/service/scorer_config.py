"""Every kind of scorer by its settings, and how one is built from them. The one file that knows all scorers; must never
know who asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, assert_never

from pydantic import Field, JsonValue

from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.scorer import Scorer
from rollcall.reward_service.scorers.combined import (
    EnsembleConfig,
    Part,
    WeightedSumConfig,
    build_ensemble,
    build_weighted_sum,
)
from rollcall.reward_service.scorers.function_scorer import FunctionConfig, build_function_scorer
from rollcall.reward_service.scorers.judge import Judge, JudgeConfig
from rollcall.reward_service.scorers.maths import Algebra, MathsConfig, build_maths_scorer, unreadable_gold
from rollcall.reward_service.scorers.python_tests import PythonTestsConfig, build_python_tests_scorer
from rollcall.reward_service.scorers.rules import (
    ExactMatchConfig,
    FormatConfig,
    LengthConfig,
    NumberConfig,
    RegexConfig,
    build_rule,
    unreadable_answer,
)

ScorerConfig = Annotated[
    ExactMatchConfig
    | NumberConfig
    | MathsConfig
    | RegexConfig
    | FormatConfig
    | LengthConfig
    | PythonTestsConfig
    | RewardModelConfig
    | JudgeConfig
    | FunctionConfig
    | WeightedSumConfig
    | EnsembleConfig,
    Field(discriminator="kind"),
]
for _combined in (Part, WeightedSumConfig, EnsembleConfig):
    _combined.model_rebuild(_types_namespace={"ScorerConfig": ScorerConfig, "Part": Part})


def build_scorer(config: ScorerConfig, *, name: str) -> Scorer:
    """Builds the scorer, with all that it stands on: workers, a sandbox, a model. `name` is the service's for it.

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
        case RewardModelConfig():
            from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer  # imports torch

            return build_reward_model_scorer(config)
        case JudgeConfig():
            return Judge(config)
        case FunctionConfig():
            return build_function_scorer(config)
        case WeightedSumConfig():
            return build_weighted_sum(config, _inner, name)
        case EnsembleConfig():
            return build_ensemble(config, _inner, name)
        case _:
            assert_never(config)


def _inner(config: ScorerConfig, name: str) -> Scorer:
    return build_scorer(config, name=name)


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
        case WeightedSumConfig():
            return [check for part in config.parts.values() for check in answer_checks(part.scorer)]
        case EnsembleConfig():
            return [check for member in config.members.values() for check in answer_checks(member)]
        case _:
            return []
