"""The configurations of runs whose learner is a table: episodes of a discrete env, or a bandit's pulls. One process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.deploy.config import plugins
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe.root_config import (
    RootConfig,
    plugin_settings,
    section_settings,
    settings_name,
)

MethodSettings = Annotated[SerializeAsAny[BaseModel], BeforeValidator(partial(plugin_settings, plugins.TABULAR))]
BanditSettings = Annotated[SerializeAsAny[BaseModel], BeforeValidator(partial(plugin_settings, plugins.BANDIT))]


class TabularRunConfig(RootConfig):
    """A table of action values learns from one episode after the other."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.TABULAR}

    total_episodes: int | None = Field(default=None, ge=1, description="the run ends after so many")
    episodes_per_step: int = Field(
        default=100, ge=1, description="of a learner step: a line of metrics, after which a run may stop or be saved"
    )
    env: EnvConfig = Field(description="the environment; a plain string is its id or module:function")
    algorithm: MethodSettings = Field(description="the method's own settings; a plain string is its name")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="evaluation of the greedy policy")

    @field_validator("env", mode="before")
    @classmethod
    def _env_by_name(cls, value: Any) -> Any:
        return section_settings(EnvConfig, {"id": value} if isinstance(value, str) else value)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.total_episodes is None) == (self.total_learner_steps is None):
            raise ValueError("give the length of the run: total_episodes (or total_learner_steps, and not both)")
        return self

    @property
    def algorithm_name(self) -> str:
        return settings_name(self.algorithm)

    @property
    def num_episodes(self) -> int:
        return self.total_episodes or (self.total_learner_steps or 0) * self.episodes_per_step

    def derived(self) -> dict[str, str]:
        steps = -(-self.num_episodes // self.episodes_per_step)
        return {"episodes": f"{self.num_episodes:,}, {self.episodes_per_step:,} in each of {steps:,} learner steps"}


class TestBedConfig(BaseModel):
    """The problems that a bandit method is tried on."""

    __test__ = False  # no class of tests
    model_config = ConfigDict(extra="forbid", frozen=True)

    arms: int = Field(default=10, ge=2, le=10_000, description="of each problem")
    problems: int = Field(default=2000, ge=1, le=1_000_000, description="side by side; curves are their mean")
    mean: float = Field(default=0.0, description="around which the arms' mean rewards are drawn, from N(mean, 1)")


class BanditRunConfig(RootConfig):
    """A bandit method on a test bed of many problems."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.BANDIT}

    total_learner_steps: int = Field(default=1000, ge=1, description="pulls in each problem")
    bandit: TestBedConfig = Field(default_factory=TestBedConfig, description="the problems")
    algorithm: BanditSettings = Field(description="the method's own settings; a plain string is its name")

    @property
    def algorithm_name(self) -> str:
        return settings_name(self.algorithm)

    def derived(self) -> dict[str, str]:
        return {"problems": f"{self.bandit.problems:,} of {self.bandit.arms} arms, side by side"}
