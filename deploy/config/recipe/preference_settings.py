"""A recipe's `preferences` section: who says what is better, how often, and what is made of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.reward_service.preferences.sizes import MAX_CANDIDATES
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from rollcall.reward_service.scorers.judge_config import JudgeConfig

USUAL_NOISE = 0.1  # of people, in Christiano et al. (2017, arXiv:1706.03741, section 2.2.3)
RaterKind: TypeAlias = Literal["people", "synthetic", "judge"]


class AskedConfig(BaseModel):
    """Raters who are asked while the policy learns, of whatever is compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    SHARE_EXPONENT: ClassVar[float]  # labels grow as this power of the run

    noise: SyntheticRaterConfig = Field(default=SyntheticRaterConfig(), description="of a synthetic rater")
    question: str = Field(default="Which one is better?", description="what people are asked")
    patience_s: float = Field(default=86_400.0, gt=0, description="how long the run waits for people's labels")
    label_noise: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of labels taken to be random; default: 0.1 of people, of a synthetic rater twice its "
        "error_rate where that is more",
    )
    seed: int = Field(default=0, ge=0, description="which are compared")
    total_labels: int = Field(default=700, ge=10, description="comparisons that are labelled over the whole run")
    rounds: int = Field(default=10, ge=1, description="reward models trained over the run, each on all labels so far")
    asked_until: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the run over which its rounds are spread: with less the policy goes less far on a model "
        "of few labels, and the last model is of an earlier policy",
    )

    @property
    def raters(self) -> tuple[RaterKind, ...]:
        """Who is asked."""
        raise NotImplementedError

    @property
    def first_labels(self) -> int:
        """Of the labels, those before the policy's first step."""
        raise NotImplementedError

    def labels_due(self, progress: float) -> int:
        """Labels that the reward model has learnt from once the policy has come so far, in [0, 1]."""
        if self.rounds == 1:
            return self.first_labels
        round_ = min(self.rounds - 1, int(self.rounds * progress / self.asked_until))
        share: float = (round_ / (self.rounds - 1)) ** self.SHARE_EXPONENT
        return self.first_labels + round(share * (self.total_labels - self.first_labels))


class PreferencesConfig(AskedConfig):
    """No reward of the env's: what is better is asked of raters."""

    SHARE_EXPONENT: ClassVar[float] = 0.5  # most are asked for while the policy changes most

    rater: Literal["people", "synthetic"] = Field(
        default="people", description="people label at the page that the run prints; synthetic: by a true reward"
    )
    true_reward: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function of (observations, actions): what a synthetic rater judges by, one number a step",
    )
    initial_labels: int = Field(default=150, ge=2, description="of them, those before the policy's first step")
    segment_steps: int = Field(default=25, ge=1, description="env steps of a stretch that is compared")
    selection: int = Field(
        default=5, ge=1, description="pairs considered for each asked: those the ensemble disagrees on most are"
    )
    members: int = Field(default=3, ge=1, le=64, description="networks of the reward model's ensemble")
    hidden_sizes: tuple[int, ...] = Field(default=(64, 64), description="units of each one's hidden layers")
    epochs: int = Field(default=60, ge=1, description="passes over the labels in one round")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.rater == "synthetic") != (self.true_reward is not None):
            raise ValueError("rater=synthetic and a true_reward go together: give both, or rater=people")
        if self.initial_labels > self.total_labels:
            raise ValueError(f"initial_labels={self.initial_labels} of total_labels={self.total_labels}: lower it")
        return self

    @property
    def raters(self) -> tuple[RaterKind, ...]:
        return (self.rater,)

    @property
    def first_labels(self) -> int:
        return self.initial_labels

    @property
    def random_share(self) -> float:
        """Of the labels, as the reward model is told."""
        if self.label_noise is not None:
            return self.label_noise
        return max(USUAL_NOISE, self.noise.believed_random_share)


def _several(value: Any) -> Any:
    """`rater: people` is one of several."""
    return (value,) if isinstance(value, str) else value


class TextPreferencesConfig(AskedConfig):
    """A reward model from comparisons of texts: of a file, before the policy learns; or of what the policy writes,
    judged by raters in rounds, of which the first is before its first step."""

    SHARE_EXPONENT: ClassVar[float] = 1.0  # each round asks for as many as the others

    file: str | None = Field(
        default=None, description="preferences of people or a judge, as rollcall reward train reads; nobody is asked"
    )
    rater: Annotated[tuple[RaterKind, ...] | None, BeforeValidator(_several)] = Field(
        default=None,
        description="who is asked, one or several of people (at the page that the run prints), synthetic (by "
        "true_reward) and judge; default: synthetic where there is a true_reward",
    )
    true_reward: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function of (prompt, response): what a synthetic rater judges by",
    )
    judge: JudgeConfig | None = Field(default=None, description="a language model as rater: url, model, principles")
    labels_per_comparison: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="raters asked about the same comparison, whose agreement is told; default: as many as in rater",
    )
    total_labels: int = Field(default=1000, ge=10, description="answers of raters over the whole run")
    initial_labels: int | None = Field(
        default=None, ge=2, description="of them, those before the policy's first step; default: as many as in a round"
    )
    rounds: int = Field(
        default=1, ge=1, description="reward models trained over the run, each from the last one, on all labels so far"
    )
    candidates: int = Field(
        default=2, ge=2, le=MAX_CANDIDATES, description="responses to one prompt that are ranked at once"
    )
    members: int = Field(default=1, ge=1, le=64, description="heads of the reward model's ensemble, on one body")
    lora: LoraConfig | None = Field(
        default=None,
        description="the reward model trains adapters on its body, which each round merges; none: all of it",
    )
    selection: int = Field(
        default=1,
        ge=1,
        description="comparisons considered for each asked: those the ensemble disagrees on most are; in later rounds",
    )
    epochs: int = Field(
        default=2,
        ge=1,
        description="passes of the reward model over the comparisons; of a later round as many steps as over its own",
    )
    batch_size: int = Field(default=64, ge=1, description="comparisons of one of its gradient steps")
    learning_rate: float = Field(default=1e-3, gt=0, description="its step size")
    max_tokens: int = Field(default=1024, ge=2, description="of prompt and response together")
    threads: int = Field(default=2, ge=1, le=256, description="CPU threads while it trains")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None:
            given = [name for name in ("rater", "true_reward", "judge") if getattr(self, name) is not None]
            if given or self.rounds > 1:
                text = f"{given[0]} too" if given else f"rounds={self.rounds}"
                raise ValueError(f"give either a file of preferences, or raters to be asked: there is {text}")
            return self
        if self.rater is None and self.true_reward is None:
            raise ValueError(
                "give either a file of preferences, or who is asked: rater=people, or a true_reward to judge samples "
                "by, or a judge"
            )
        if len(set(self.raters)) != len(self.raters) or not self.raters:
            raise ValueError(f"rater={list(self.raters)}: name each of people, synthetic and judge once at the most")
        for kind, name in (("synthetic", "true_reward"), ("judge", "judge")):
            if (kind in self.raters) != (getattr(self, name) is not None):
                raise ValueError(f"rater={kind} and a {name} go together: give both, or neither")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.first_labels > self.total_labels:
            raise ValueError(f"initial_labels={self.first_labels} of total_labels={self.total_labels}: lower it")
        if self.selection > 1 and self.members == 1:
            raise ValueError(f"selection={self.selection}: one model disagrees with nobody: set members=3")
        if "judge" in self.raters and self.candidates > 2:
            raise ValueError(f"candidates={self.candidates}: a judge compares two: use 2, or other raters")
        if self.judge is not None and self.judge.url is None:
            raise ValueError("judge.url: a run's raters ask a judge that is served already: give its url")
        return self

    @property
    def raters(self) -> tuple[RaterKind, ...]:
        if self.file is not None:
            return ()
        return self.rater if self.rater is not None else ("synthetic",)

    @property
    def asked_about_each(self) -> int:
        """Raters, about one comparison."""
        return self.labels_per_comparison or max(1, len(self.raters))

    @property
    def before_all(self) -> bool:
        """Whether the only reward model is made before the run's processes are."""
        return self.file is not None or (self.rounds == 1 and self.raters == ("synthetic",))

    @property
    def first_labels(self) -> int:
        if self.initial_labels is not None:
            return self.initial_labels
        return max(2, round(self.total_labels / self.rounds))

    @property
    def random_share(self) -> float:
        """Of the labels, as the reward model is told: of a program alone what it says of itself, else of people."""
        if self.label_noise is not None:
            return self.label_noise
        known = self.noise.believed_random_share if "synthetic" in self.raters else 0.0
        return known if self.raters == ("synthetic",) or self.file is not None else max(USUAL_NOISE, known)
