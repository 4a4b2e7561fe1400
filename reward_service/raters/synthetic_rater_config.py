"""How a synthetic rater errs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_MOST_BELIEVED = 0.99


class SyntheticRaterConfig(BaseModel):
    """How a known reward is turned into what a person might say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="P(left) = sigmoid((r_left - r_right) / temperature); 0: always the better one",
    )
    error_rate: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="how often what would be said is turned round; 0.5: it says nothing (a tie is never turned round)",
    )
    tie_threshold: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="rewards that differ by no more are a tie"
    )
    seed: int = Field(default=0, ge=0, description="of the noise")

    @property
    def random_share(self) -> float:
        """How often its answers say nothing: to turn one round with probability e is to answer at random with
        probability 2 e, for half of what is answered at random is right."""
        return 2 * self.error_rate

    @property
    def believed_random_share(self) -> float:
        """The same, for a loss to be told: with 1 there would be nothing to learn, and no loss takes it."""
        return min(self.random_share, _MOST_BELIEVED)
