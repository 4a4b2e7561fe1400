"""Every kind of scorer by its settings, and how one is built from them: the one file that knows all scorers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal, assert_never

from pydantic import Field, JsonValue

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.scorer import Scorer
from rollcall.reward_service.scorers.code_reward import CodeRewardConfig, build_code_reward
from rollcall.reward_service.scorers.combined import Take, Term, build_all, ensemble, weighted_sum
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


class Part(Term):
    """One term of a sum."""

    scorer: ScorerConfig


class WeightedSumConfig(Strict):
    """The sum over parts of weight times clipped score. An item that a part cannot score has no score."""

    kind: Literal["weighted_sum"] = "weighted_sum"
    parts: dict[str, Part] = Field(min_length=1, description="by the names that their components go by")

    def scorers(self) -> dict[str, ScorerConfig]:
        return {name: part.scorer for name, part in self.parts.items()}


class EnsembleConfig(Strict):
    """Several opinions of one thing. An item that a member cannot score has no score."""

    kind: Literal["ensemble"] = "ensemble"
    members: dict[str, ScorerConfig] = Field(min_length=2, description="by the names that their components go by")
    take: Take = Field(
        default="mean", description="lower_bound: the mean less `deviations` standard deviations of the members"
    )
    deviations: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="for lower_bound")

    def scorers(self) -> dict[str, ScorerConfig]:
        return self.members


ScorerConfig = Annotated[
    ExactMatchConfig
    | NumberConfig
    | MathsConfig
    | RegexConfig
    | FormatConfig
    | LengthConfig
    | PythonTestsConfig
    | CodeRewardConfig
    | RewardModelConfig
    | JudgeConfig
    | FunctionConfig
    | WeightedSumConfig
    | EnsembleConfig,
    Field(discriminator="kind"),
]
for _combined in (Part, WeightedSumConfig, EnsembleConfig):
    _combined.model_rebuild()


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
