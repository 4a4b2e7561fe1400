"""A recipe's `preferences` section: who says what is better, how often, and what is made of it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.reward_service.raters.synthetic_rater import SyntheticRaterConfig

SHARE_EXPONENT = 0.5  # labels grow as the square root of the run: most are asked for while the policy changes most

USUAL_NOISE = 0.1  # of people, in Christiano et al. (2017, arXiv:1706.03741, section 2.2.3)


class PreferencesConfig(BaseModel):
    """No reward of the env's: what is better is asked of raters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rater: Literal["people", "synthetic"] = Field(
        default="people", description="people label at the page that the run prints; synthetic: by a true reward"
    )
    true_reward: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function of (observations, actions): what a synthetic rater judges by, one number a step",
    )
    noise: SyntheticRaterConfig = Field(default=SyntheticRaterConfig(), description="of a synthetic rater")
    question: str = Field(default="Which one is better?", description="what people are asked")
    total_labels: int = Field(default=700, ge=10, description="comparisons that are labelled over the whole run")
    initial_labels: int = Field(default=150, ge=2, description="of them, those before the policy's first step")
    rounds: int = Field(default=10, ge=1, description="reward models trained over the run, each on all labels so far")
    segment_steps: int = Field(default=25, ge=1, description="env steps of a stretch that is compared")
    selection: int = Field(
        default=5, ge=1, description="pairs considered for each asked: those the ensemble disagrees on most are"
    )
    patience_s: float = Field(default=86_400.0, gt=0, description="how long the run waits for people's labels")
    members: int = Field(default=3, ge=1, le=64, description="networks of the reward model's ensemble")
    hidden_sizes: tuple[int, ...] = Field(default=(64, 64), description="units of each one's hidden layers")
    epochs: int = Field(default=60, ge=1, description="passes over the labels in one round")
    label_noise: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of labels taken to be random; default: 0.1, or of a synthetic rater twice its error_rate "
        "where that is more",
    )
    seed: int = Field(default=0, ge=0, description="which stretches are compared")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.rater == "synthetic") != (self.true_reward is not None):
            raise ValueError("rater=synthetic and a true_reward go together: give both, or rater=people")
        if self.initial_labels > self.total_labels:
            raise ValueError(f"initial_labels={self.initial_labels} of total_labels={self.total_labels}: lower it")
        return self

    @property
    def random_share(self) -> float:
        """Of the labels, as the reward model is told."""
        if self.label_noise is not None:
            return self.label_noise
        return max(USUAL_NOISE, self.noise.believed_random_share)

    def labels_due(self, progress: float) -> int:
        """Labels that the reward model has learnt from once the policy has come so far, in [0, 1]."""
        if self.rounds == 1:
            return self.initial_labels
        round_ = min(self.rounds - 1, int(self.rounds * progress))
        share: float = (round_ / (self.rounds - 1)) ** SHARE_EXPONENT
        return self.initial_labels + round(share * (self.total_labels - self.initial_labels))


class TextPreferencesConfig(BaseModel):
    """A reward model that is trained before the policy is: on a file of preferences, or on pairs that the policy of
    version 0 samples and a synthetic rater judges. From then on it is the reward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = Field(
        default=None, description="preferences of people or a judge, as rollcall reward train reads"
    )
    true_reward: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function of (prompt, response): what a synthetic rater judges by",
    )
    noise: SyntheticRaterConfig = Field(default=SyntheticRaterConfig(), description="of a synthetic rater")
    pairs: int = Field(default=1000, ge=10, description="comparisons that are sampled for it")
    epochs: int = Field(default=2, ge=1, description="passes of the reward model over the comparisons")
    batch_size: int = Field(default=64, ge=1, description="comparisons of one of its gradient steps")
    learning_rate: float = Field(default=1e-3, gt=0, description="its step size")
    max_tokens: int = Field(default=1024, ge=2, description="of prompt and response together")
    threads: int = Field(default=2, ge=1, le=256, description="CPU threads: the actors have not begun yet")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is None) == (self.true_reward is None):
            raise ValueError("give either a file of preferences or a true_reward to judge samples by")
        return self
