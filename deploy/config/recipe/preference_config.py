"""The configurations of runs on a file of preferences, in place of actors: reward models, and the direct methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rollcall.deploy.config import plugins
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe.root_config import MethodSettings, OptimisedConfig, settings_name
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.learners.algorithms.preferences.bradley_terry_config import BradleyTerryConfig
from rollcall.learners.loop.config import LearnerConfig, in_sections, section
from rollcall.learners.loop.optimizer_config import AdamConfig
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.lora_config import LoraConfig


class PreferenceRunConfig(OptimisedConfig):
    """What runs on preferences have in common."""

    data: PreferenceDataConfig = Field(description="the comparisons to learn from")
    batch_size: int = Field(default=64, ge=1, description="comparisons of one gradient step")
    epochs: int = Field(default=1, ge=1, description="passes over the comparisons")
    total_learner_steps: int | None = Field(
        default=None, ge=1, description="the run ends after so many; none: by epochs"
    )
    eval_every: int | None = Field(
        default=None,
        ge=1,
        description="learner steps between evaluations; default: five over the run, and the last; ten where the best "
        "reward model is kept",
    )

    def steps(self, num_comparisons: int) -> int:
        """Learner steps of the whole run."""
        if self.total_learner_steps is not None:
            return self.total_learner_steps
        return max(1, math.ceil(self.epochs * num_comparisons / self.batch_size))

    def derived(self) -> dict[str, str]:
        source = self.data.train or "made by the run"
        length = f"{self.epochs} epochs" if self.total_learner_steps is None else f"{self.total_learner_steps:,} steps"
        return {"comparisons": source, "length": f"{length} of {self.batch_size} comparisons a step"}


class TextModelConfig(BaseModel):
    """A reward model of texts: a language model whose last token's state is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["text"] = "text"
    start: str = Field(
        default="tiny",
        description="a Hugging Face directory or name; made by the run itself: tiny, a small transformer, or words, "
        "which counts words and begins as naive Bayes",
    )
    tiny: dict[str, Any] = Field(
        default_factory=dict,
        description="for start=tiny: hidden_size and so on, see learners/tiny_model; vocab_size: pieces of bytes, as "
        "many; without it a token is a character",
    )
    max_tokens: int = Field(
        default=1024, ge=2, description="of prompt and response; comparisons with longer ones are left out, and counted"
    )
    members: int = Field(
        default=1,
        ge=1,
        le=64,
        description="heads of an ensemble on one body, each of which learns from a sample with replacement of its own",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train adapters on the body, and the heads whole; the model that is kept has them merged; none: "
        "train all of it",
    )

    @model_validator(mode="after")
    def _has_layers_for_adapters(self) -> Self:
        if self.lora is not None and self.start == "words":
            raise ValueError("lora: a model of words has no layers for adapters: leave it out, or give another start")
        if self.lora is not None and find_spec("peft") is None:
            raise ValueError("lora: LoRA needs the package peft: pip install peft, or set null")
        return self


class SegmentModelConfig(BaseModel):
    """A reward model of segments: an ensemble of networks over observation and action."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["segment"]
    hidden_sizes: tuple[int, ...] = Field(default=(64, 64), description="units of each member's hidden layers")
    activation: Literal["tanh", "relu", "leaky_relu"] = Field(default="leaky_relu", description="between the layers")
    members: int = Field(default=3, ge=1, le=64, description="networks of the ensemble")
    bootstrap: bool = Field(default=True, description="each member learns from a sample with replacement of its own")
    num_actions: int | None = Field(
        default=None, ge=2, description="of a discrete action space; default: as many as the segments show"
    )
    first_action: int | None = Field(
        default=None, description="the smallest of them; default: 0, or the smallest in the segments where that is less"
    )


REWARD_WEIGHT_DECAY = 0.1


class RewardTrainConfig(PreferenceRunConfig):
    """A reward model from comparisons."""

    learner: LearnerConfig = Field(
        default=LearnerConfig(optimizer=AdamConfig(weight_decay=REWARD_WEIGHT_DECAY)),
        description=f"how the parameters are optimised; weight_decay is {REWARD_WEIGHT_DECAY} where it is not given",
    )
    keep: Literal["auto", "best", "last"] = Field(
        default="auto",
        description="the model that is kept: of the evaluation with the lowest held-out loss, or of the last step; "
        "auto: the best, where enough pairs are held out to tell",
    )
    patience: int | None = Field(
        default=5,
        ge=1,
        description="evaluations without a lower held-out loss after which training stops, where the best model is "
        "kept (where the rate anneals, the loss may rest for four and then fall again); none: never",
    )

    model: Annotated[TextModelConfig | SegmentModelConfig, Field(discriminator="kind")] = Field(
        default=TextModelConfig(), description="what the reward model is"
    )
    loss: BradleyTerryConfig = Field(default=BradleyTerryConfig(), description="how it learns from comparisons")

    @field_validator("learner", mode="before")
    @classmethod
    def _decayed(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        learner = in_sections(value)
        return {**learner, "optimizer": {"weight_decay": REWARD_WEIGHT_DECAY, **section(learner.get("optimizer"))}}

    @property
    def algorithm_name(self) -> str:
        return self.loss.name


class DirectRunConfig(PreferenceRunConfig):
    """A policy from comparisons, by a direct method."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.DIRECT_METHOD}

    algorithm: MethodSettings = Field(description="the method's own settings; a plain string is its name")
    policy: LMPolicyConfig = Field(default_factory=LMPolicyConfig, description="the language model")
    imitate: Literal["chosen", "all"] = Field(
        default="chosen", description="what policy.warm_start learns: the best responses, or all that are compared"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="of prompt and response; comparisons with longer ones are left out, and counted"
    )
    kl_prompts: int = Field(
        default=64, ge=0, description="held-out prompts answered at evaluations, to estimate the KL to the reference"
    )
    kl_max_tokens: int = Field(default=64, ge=1, description="tokens of such an answer at the most")

    @model_validator(mode="after")
    def _estimates_a_baseline(self) -> Self:
        if self.algorithm_name == "kto" and self.batch_size < 2:
            raise ValueError("batch_size: kto estimates its baseline from the rows of a batch: give 2 or more")
        return self

    @model_validator(mode="after")
    def _begins_with_a_model(self) -> Self:
        if self.policy.init_from is not None:
            raise ValueError(
                f"policy.init_from: a run on preferences begins with a model's directory: "
                f"policy.model={self.policy.init_from}/policy (rollcall export writes it)"
            )
        return self

    @property
    def algorithm_name(self) -> str:
        return settings_name(self.algorithm)
