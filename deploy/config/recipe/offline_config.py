"""The configuration of a control run on a recorded set, in place of actors: a policy learns from what somebody else
did, and is tried out in the env as it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.deploy.config import plugins
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe.root_config import OfflineSettings, OptimisedConfig, section_settings, settings_name
from rollcall.learners.models.policy_config import PolicyConfig


class RecordedDataConfig(BaseModel):
    """Which recorded episodes are learnt from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str | tuple[str, ...] = Field(
        min_length=1,
        description="what rollcall eval RUN --record FILE wrote, or minari:ID for a Minari data set; or a list of such",
    )
    eval: str | None = Field(default=None, description="one of held-out episodes; none: a share of train")
    eval_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the episodes that is held out, at least one; 0: none is"
    )
    episodes: int | None = Field(
        default=None, ge=1, description="episodes learnt from, of those that are not held out, in a seeded order"
    )

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.train,) if isinstance(self.train, str) else self.train


class OfflineConfig(OptimisedConfig):
    """One run on a recorded set."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.OFFLINE_METHOD}

    env: EnvConfig = Field(description="the environment; a plain string is its id or module:function")
    data: RecordedDataConfig = Field(description="the episodes to learn from")
    algorithm: OfflineSettings = Field(description="the method's own settings; a plain string is its name")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="the network")
    batch_size: int = Field(default=256, ge=1, description="recorded steps of one gradient step")
    epochs: int = Field(default=10, ge=1, description="passes over the recorded steps")
    total_learner_steps: int | None = Field(
        default=None, ge=1, description="the run ends after so many; none: by epochs"
    )
    eval: EvalConfig = Field(default_factory=EvalConfig, description="evaluation in the env")

    @field_validator("env", mode="before")
    @classmethod
    def _env_by_name(cls, value: Any) -> Any:
        return section_settings(EnvConfig, {"id": value} if isinstance(value, str) else value)

    @property
    def begins_from(self) -> str | None:
        return self.policy.init_from

    @model_validator(mode="after")
    def _one_process(self) -> Self:
        if self.learner.num_processes != 1:
            raise ValueError("learner.num_processes: a run on a recorded set has one learner process")
        return self

    @property
    def algorithm_name(self) -> str:
        return settings_name(self.algorithm)

    def build_algorithm(self) -> Any:
        """A new learners.algorithm.Algorithm with this run's settings."""
        return plugins.find(plugins.OFFLINE_METHOD, self.algorithm_name)(self.algorithm)

    @property
    def acting_threads(self) -> int:
        return 1

    def steps(self, num_recorded: int) -> int:
        """Learner steps of the whole run."""
        if self.total_learner_steps is not None:
            return self.total_learner_steps
        return max(1, math.ceil(self.epochs * num_recorded / self.batch_size))

    def resolved(self) -> Self:
        if self.learner.compile != "auto":
            return self
        return self.model_copy(update={"learner": self.learner.model_copy(update={"compile": "off"})})

    def derived(self) -> dict[str, str]:
        length = f"{self.epochs} epochs" if self.total_learner_steps is None else f"{self.total_learner_steps:,} steps"
        return {
            "learns from": ", ".join(self.data.sources),
            "length": f"{length} of {self.batch_size} recorded steps a step",
        }
