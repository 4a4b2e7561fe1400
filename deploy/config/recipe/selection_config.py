"""The settings of selection: which completions of a prompt are kept, and of a run that imitates them in rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from rollcall.deploy.config import plugins
from rollcall.deploy.config.claims import SUPERVISED
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.root_config import section_settings
from rollcall.deploy.config.settings import Settings


def named_settings(model: type[BaseModel], value: Any) -> Any:
    """An algorithm's section, or its name alone."""
    return section_settings(model, {"name": value} if isinstance(value, str) else value)


def algorithm_section(model: type[BaseModel]) -> Callable[[Settings], Mapping[str, type[BaseModel]]]:
    """The RunKind.sections of a kind whose algorithm has these settings."""
    return lambda settings: {"algorithm": model} if isinstance(settings.tree.get("algorithm"), dict) else {}


class KeepConfig(BaseModel):
    """Best-of-n (`best`), rejection sampling by a threshold (`at_least`), or both. A completion that was cut at
    max_tokens, an empty one and one that was kept already are never kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    best: int | None = Field(
        default=1, ge=1, description="completions of one prompt at the most, by their score; none: all that pass"
    )
    at_least: float | None = Field(
        default=None, allow_inf_nan=False, description="the score that a completion needs to be kept; none: any"
    )

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.best is None and self.at_least is None:
            raise ValueError("best and at_least are both none: everything would be kept: give one of them")
        return self


class ExpertIterationSettings(BaseModel):
    """Rounds of selection and imitation (expert iteration: Anthony et al., 2017, arXiv:1705.08439; of language models,
    Polu et al., 2022, arXiv:2202.01344, and as ReST^EM Singh et al., 2023, arXiv:2312.06585)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["expert_iteration"] = Field(default="expert_iteration", description="the algorithm")
    rounds: int = Field(
        default=4, ge=1, description="of sampling actors.prompts_per_batch prompts, keeping, and imitating what is kept"
    )
    steps: int = Field(default=100, ge=1, description="learner steps of one round")
    batch_size: int = Field(default=64, ge=1, description="kept completions of one learner step")
    restart: bool = Field(
        default=False,
        description="each round imitates from the model that the run began with, as ReST^EM does; false: from the one "
        "of the round before",
    )
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass: changes no result")


class CollectingConfig(LanguageConfig):
    """A language recipe whose run imitates what its own policy has made."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"task": plugins.TASK}

    max_policy_lag: int = Field(
        default=0, ge=0, le=64, description="the policy is frozen while it answers: of no meaning"
    )

    @property
    def algorithm_class(self) -> type[Any]:
        return plugins.find(plugins.SUPERVISED_METHOD, SUPERVISED)


class ExpertIterationConfig(CollectingConfig):
    """Of which the completions that are kept are imitated."""

    algorithm: Annotated[
        SerializeAsAny[BaseModel], BeforeValidator(partial(named_settings, ExpertIterationSettings))
    ] = Field(default=ExpertIterationSettings(), description="how many rounds, and how long each is")
    keep: KeepConfig = Field(default=KeepConfig(), description="which completions of a prompt are imitated")

    @property
    def rounds(self) -> ExpertIterationSettings:
        assert isinstance(self.algorithm, ExpertIterationSettings)
        return self.algorithm

    @property
    def learner_steps(self) -> int | None:
        return self.rounds.rounds * self.rounds.steps

    def derived(self) -> dict[str, str]:
        actors, rounds = self.actors, self.rounds
        completions = actors.prompts_per_batch * actors.samples_per_prompt
        return {
            "completions per round": f"{completions:,} ({actors.prompts_per_batch} prompts x "
            f"{actors.samples_per_prompt} samples, at most {actors.sampling.max_tokens} tokens each)",
            "learner steps": f"{self.learner_steps:,} ({rounds.rounds} rounds of {rounds.steps})",
        }
