"""Every kind of scorer by its settings, and how one is built from them: the one file that knows all scorers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.scorers.code_reward_config import CodeRewardConfig
from rollcall.reward_service.scorers.combined_config import Take, Term
from rollcall.reward_service.scorers.function_config import FunctionConfig
from rollcall.reward_service.scorers.judge_config import JudgeConfig
from rollcall.reward_service.scorers.maths_config import MathsConfig
from rollcall.reward_service.scorers.python_tests_config import PythonTestsConfig
from rollcall.reward_service.scorers.rules_config import (
    ExactMatchConfig,
    FormatConfig,
    LengthConfig,
    NumberConfig,
    RegexConfig,
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
