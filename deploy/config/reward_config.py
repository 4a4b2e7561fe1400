"""A recipe's `reward` section: who scores what was produced, in place of the env or the task. Knows no scorer's
settings, and starts nothing; that is reward_launch.py's."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.actors.tasks.text_task import Row
from rollcall.actors.trajectory_scoring import answer_metadata
from rollcall.cluster.errors import BadInput
from rollcall.deploy.preferences.round_book import REWARD_MODELS
from rollcall.reward_service.scorers.scorer_config import ScorerConfig, answer_checks

MODEL = "reward"  # what the only scorer of a private service is called
CHECKING_S = 60.0  # at most, of right answers before a run

__all__ = ["REWARD_MODELS", "RewardConfig", "by_name", "check_answers"]

_log = logging.getLogger("rollcall")


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


def check_answers(config: RewardConfig | None, rows: Sequence[Row]) -> None:
    """A right answer that the scorer cannot read would never be scored, whatever the response. Formulas take long to
    read, so that those of a very large file are not all looked at.

    Raises:
      BadInput: naming the first row that has such an answer.
    """
    checks = [] if config is None or config.scorer is None else answer_checks(config.scorer)
    until = time.monotonic() + CHECKING_S
    for index, row in enumerate(rows if checks else ()):
        problem = next(filter(None, (check(answer_metadata(row)) for check in checks)), None)
        if problem is not None:
            raise BadInput(f"{row.source}: {problem}: fix the line, or choose another scorer")
        if time.monotonic() > until:
            _log.warning(
                "the right answers of %d of %d rows can be read; the others are not checked", index + 1, len(rows)
            )
            return
