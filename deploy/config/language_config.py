"""The configuration of a language run: as run_config.py for the control half, with a task in place of an env and a
language model in place of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, Field, SerializeAsAny, field_validator

from rollcall.actors.language.lm_actor import LMActorsConfig
from rollcall.actors.language.lm_evaluation import LMEvalConfig
from rollcall.deploy.config import plugins
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.preference_settings import TextPreferencesConfig
from rollcall.deploy.config.run_config import CommonConfig, plugin_settings
from rollcall.learners.models.token_policy import LMPolicyConfig


class LanguageConfig(CommonConfig):
    """One run of the language half. Immutable; built by `load_config`."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.ALGORITHM, "task": plugins.TASK}

    task: SerializeAsAny[BaseModel] = Field(description="the task's own settings; a plain string is its name")
    policy: LMPolicyConfig = Field(default_factory=LMPolicyConfig, description="the language model")
    actors: LMActorsConfig = Field(default_factory=LMActorsConfig, description="who generates, and in what portions")
    preferences: TextPreferencesConfig | None = Field(
        default=None, description="train the reward from comparisons first; the task's own judgement is only reported"
    )
    eval: LMEvalConfig = Field(default_factory=LMEvalConfig, description="evaluation on held-out rows")

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return plugin_settings(plugins.TASK, value)

    @property
    def task_name(self) -> str:
        return str(getattr(self.task, "name", type(self.task).__name__))

    def build_task(self) -> Any:
        """A new actors.text_task.Task with this run's settings."""
        return plugins.find(plugins.TASK, self.task_name)(self.task)

    def build_algorithm(self) -> Any:
        return self.algorithm_class(self.algorithm, max_tokens=self.actors.sampling.max_tokens)

    @property
    def tickets_per_step(self) -> int:
        """A ticket is a prompt with all its samples."""
        return self.actors.prompts_per_batch

    @property
    def drop_degenerate(self) -> bool:
        return bool(getattr(self.algorithm, "dynamic_sampling", False))

    def derived(self) -> dict[str, str]:
        actors, sampling = self.actors, self.actors.sampling
        completions = actors.prompts_per_batch * actors.samples_per_prompt
        lag = self.max_policy_lag
        return {
            "completions per learner step": f"{completions:,} ({actors.prompts_per_batch} prompts x "
            f"{actors.samples_per_prompt} samples, at most {sampling.max_tokens} tokens each)",
            "learner steps": f"{self.learner_steps:,}",
            "max policy lag": f"{lag}{' (synchronous)' if lag == 0 else ''}",
        }
