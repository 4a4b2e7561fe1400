"""A recipe's `reward` section: who scores what was produced, in place of the env or the task. Knows no scorer's
settings, and starts nothing; that is reward_launch.py's."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.reward_service.scorers.scorer_config import ScorerConfig

MODEL = "reward"  # what the only scorer of a private service is called


class RewardConfig(BaseModel):
    """Give a `scorer` for a service of the run's own, or the `url` of one that runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorer: ScorerConfig | None = Field(default=None, description="what a private reward service scores with")
    url: str | None = Field(
        default=None, pattern=r"^https?://", description="a service that runs; its token is $ROLLCALL_REWARD_TOKEN"
    )
    model: str = Field(default=MODEL, min_length=1, description="which of the service's models at that url")
    patience_s: float = Field(
        default=600.0, gt=0, description="how long training waits for a service that is away before the run stops"
    )

    @model_validator(mode="after")
    def _one_service(self) -> Self:
        if (self.scorer is None) == (self.url is None):
            raise ValueError("give either a scorer (a private service) or the url of a service that runs")
        return self


def by_name(value: Any) -> Any:
    """`reward: my_module:score` is a user's function; `reward: maths` a scorer with its default settings."""
    if not isinstance(value, str):
        return value
    return {"scorer": {"kind": "function", "path": value} if ":" in value else {"kind": value}}
