"""The configuration of a language run: as run_config.py for the control half, with a task in place of an env and a
language model in place of a network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny

from rollcall.actors.language.lm_actors_config import LMActorsConfig
from rollcall.actors.language.lm_eval_config import LMEvalConfig
from rollcall.actors.tasks.own_task import SettledTask
from rollcall.deploy.config import plugins
from rollcall.deploy.config.claims import SUPERVISED
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.config.recipe.root_config import TaskSettings, section_settings, settings_name
from rollcall.deploy.config.recipe.run_config import OnlineConfig, RunConfig
from rollcall.learners.algorithms.language.sft_config import SFTConfig
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig


class LanguageConfig(OnlineConfig):
    """One run of the language half. Immutable; built by `load_config`."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.ALGORITHM, "task": plugins.TASK}

    task: TaskSettings = Field(description="the task's own settings; a plain string is its name")
    policy: LMPolicyConfig = Field(default_factory=LMPolicyConfig, description="the language model")
    actors: LMActorsConfig = Field(default_factory=LMActorsConfig, description="who generates, and in what portions")
    preferences: TextPreferencesConfig | None = Field(
        default=None, description="train the reward from comparisons first; the task's own judgement is only reported"
    )
    eval: LMEvalConfig = Field(default_factory=LMEvalConfig, description="evaluation on held-out rows")

    @property
    def begins_from(self) -> str | None:
        return self.policy.init_from

    @property
    def task_name(self) -> str:
        return settings_name(self.task)

    @property
    def learner_processes(self) -> int:
        return 1 if self.runtime == "serial" else self.learner.num_processes

    def build_task(self) -> Any:
        """A new actors.text_task.Task with this run's settings."""
        task = plugins.find(plugins.TASK, self.task_name)(self.task)
        return SettledTask(task, self.task_name) if ":" in self.task_name else task

    def build_algorithm(self) -> Any:
        return self.algorithm_class(self.algorithm, max_tokens=self.actors.sampling.max_tokens)

    @property
    def tickets_per_step(self) -> int:
        """A ticket is a prompt with all its samples."""
        return self.actors.prompts_per_batch

    @property
    def eval_every_steps(self) -> int | None:
        """Learner steps between evaluations during the run."""
        return self.eval.steps_between(self.learner_steps)

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


ActingConfig: TypeAlias = RunConfig | LanguageConfig  # of runs with actors
_SFTSettings = Annotated[SerializeAsAny[BaseModel], BeforeValidator(partial(section_settings, SFTConfig))]


class SupervisedConfig(LanguageConfig):
    """Supervised fine-tuning alone: a language recipe of which the warm start is the run."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"task": plugins.TASK}

    algorithm: _SFTSettings = Field(default=SFTConfig(), description="supervised fine-tuning, and no other")
    max_policy_lag: int = Field(default=0, ge=0, le=64, description="nobody acts: of no meaning here")

    @property
    def algorithm_class(self) -> type[Any]:
        return plugins.find(plugins.SUPERVISED_METHOD, SUPERVISED)

    @property
    def learner_steps(self) -> int | None:
        return None if self.policy.warm_start is None else self.policy.warm_start.steps

    def derived(self) -> dict[str, str]:
        warm_start = self.policy.warm_start
        return {} if warm_start is None else {"learner steps": f"{warm_start.steps:,}"}
