"""Settings that language algorithms have in common: of all of them, and of those that clip or penalise alike."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.learners.maths.choices import Aggregation, KLEstimator

TOKEN_BUDGET = 16384  # padded tokens of one forward pass, where a run says nothing else

ClipLow = Annotated[float, Field(gt=0, le=1, description="how far a ratio may fall below 1 with a gradient")]
ClipHigh = Annotated[float, Field(gt=0, description="how far a ratio may rise above 1 with a gradient")]
NormaliseStd = Annotated[
    bool,
    Field(description="divide by the group's deviation; False (Dr. GRPO): hard and easy prompts count as others do"),
]
LossKL = Annotated[
    Literal["k2", "k3"],
    Field(
        description="of the KL in the loss; k3: never negative; k2: its gradient is the KL's; k1 would do nothing here"
    ),
]
RewardKL = Annotated[
    KLEstimator,
    Field(description="of the KL in the reward; k1: unbiased, as in the paper; k2 and k3 are never negative"),
]


KL_GAIN = 0.1  # Ziegler et al. (2019)


class KLGoal(NamedTuple):
    """The KL that an adaptive weight is to hold, and the share of a batch's relative error that moves it."""

    kl: float
    gain: float


class LagCorrection(BaseModel):
    """What is done about tokens whose behaviour policy is not the learner's. With all of it off, the surrogate's ratio
    is pi / behaviour, which is sound, and clips the more tokens the older they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decoupled: bool = Field(
        default=False,
        description="clip around the proximal policy and weigh by proximal / behaviour (arXiv:2110.00641, AReaL "
        "arXiv:2505.24298): the clip then bounds the update, not the age of the data",
    )
    truncate: float | None = Field(
        default=None,
        gt=0,
        description="cap of the weight proximal / behaviour (truncated importance sampling): bounds the variance at "
        "the cost of a bias; needs decoupled, as otherwise there is no such weight; None: no cap",
    )
    band: tuple[float, float] | None = Field(
        default=None,
        description="tokens with proximal / behaviour outside [low, high] are left out of the loss: a ratio that far "
        "from 1 says more about the engine's arithmetic, or about age, than about the policy; None: none are",
    )

    @model_validator(mode="after")
    def _consistent(self) -> LagCorrection:
        if self.truncate is not None and not self.decoupled:
            raise ValueError(
                f"truncate={self.truncate} needs decoupled=true: clipped around the behaviour policy, "
                "the ratio holds proximal / behaviour already"
            )
        if self.band is not None and not 0 <= self.band[0] <= 1 <= self.band[1]:
            raise ValueError(f"band={self.band}: must be (low, high) with 0 <= low <= 1 <= high")
        return self

    @property
    def needs_proximal(self) -> bool:
        return self.decoupled or self.band is not None


class TokenAlgorithmConfig(BaseModel):
    """Settings of every language algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=1, ge=1, description="passes over a batch: more is learnt from it, and drifts further")
    num_minibatches: int = Field(default=1, ge=1, description="gradient steps per pass; 1: no step is off-policy")
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="padded tokens of one forward pass: bounds memory, changes no result; null: 16384, or as many as "
        "there is memory for where rollcall plan finds that too many",
    )
    aggregation: Aggregation = Field(
        default="token_mean",
        description="token_mean: every token alike; sequence_mean: every sample alike; fixed_length: as token_mean, "
        "but by a constant, so that a batch of short samples does not take larger steps per token",
    )
    fixed_length: int | None = Field(default=None, ge=1, description="for aggregation=fixed_length: max_tokens, say")
    kl_coef: float = Field(
        default=0.0, ge=0, description="weight of KL(pi || reference): holds it near; 0: no reference is loaded"
    )
    kl_estimator: KLEstimator = Field(
        default="k3", description="k3: unbiased and never negative; k2: its gradient is the KL's; k1: for a reward only"
    )
    overlong_buffer: int = Field(
        default=0,
        ge=0,
        description="tokens before max_tokens over which the reward falls by up to 1: a warning before the cut; of a "
        "conversation the longest turn counts; 0: off",
    )
    correction: LagCorrection = Field(default=LagCorrection(), description="of tokens from older policies")

    @model_validator(mode="after")
    def _aggregation_is_complete(self) -> TokenAlgorithmConfig:
        if (self.aggregation == "fixed_length") != (self.fixed_length is not None):
            raise ValueError(
                f"aggregation={self.aggregation!r} with fixed_length={self.fixed_length}: "
                "set fixed_length for aggregation=fixed_length, and for no other"
            )
        return self

    # What the algorithm is, as far as it follows from its settings.

    @property
    def pass_tokens(self) -> int:
        """Of one forward pass, padded, at the most."""
        return TOKEN_BUDGET if self.token_budget is None else self.token_budget

    @property
    def kl_in_loss(self) -> bool:
        """The KL to the reference is a term of the loss; False: it is in the rewards."""
        return True

    @property
    def kl_goal(self) -> KLGoal | None:
        """The KL that an adaptive kl_coef is to hold; None: it stays as it is."""
        return None

    @property
    def supervised_coef(self) -> float:
        """The weight of the likelihood of demonstrations beside each batch; 0: there are none."""
        return 0.0

    @property
    def kl_of_loss(self) -> KLEstimator:
        """The estimator of that term."""
        return self.kl_estimator

    @property
    def min_group_size(self) -> int:
        """Samples of one prompt that are compared."""
        return 2
