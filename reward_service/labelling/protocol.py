"""What raters and the labelling service say to each other: the types of /v1/preferences. What is left and right here is
so on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from rollcall.reward_service.preferences.records import (
    Choice,
    Comparison,
    Digest,
    RaterName,
    SegmentCandidate,
    TextCandidate,
)
from rollcall.reward_service.preferences.sizes import MAX_CANDIDATES

MAX_HELD = 8
MAX_ADDED = 1000
Token = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}-[0-9a-f]{16}$")]
SessionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,64}$")]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewComparison(_Wire):
    candidates: tuple[TextCandidate, ...] | tuple[SegmentCandidate, ...] = Field(
        min_length=2, max_length=MAX_CANDIDATES
    )
    metadata: Mapping[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        self.comparison()
        return self

    def comparison(self) -> Comparison:
        return Comparison.of(self.candidates, metadata=self.metadata)


class AddRequest(_Wire):
    """POST /v1/preferences/comparisons: what raters are to be asked."""

    comparisons: tuple[NewComparison, ...] = Field(min_length=1, max_length=MAX_ADDED)


class AddResponse(_Wire):
    ids: tuple[str, ...] = Field(description="in the order of the request")
    new: int = Field(description="how many were never queued before")


class Progress(_Wire):
    comparisons: int
    labels: int = Field(description="that stand and decide, of all raters")
    waiting: int = Field(description="what this rater may still be asked")
    today: int = Field(description="what this rater has decided since `since`")


class LeaseRequest(_Wire):
    """POST /v1/preferences/lease: what the rater is asked next."""

    rater: RaterName
    session: SessionName = Field(default="", description="one screen: what it held when it was lost it gets again")
    held: tuple[Token, ...] = Field(default=(), max_length=MAX_HELD, description="leases that the screen has already")
    since: AwareDatetime | None = Field(default=None, description="where the rater's day began; none: midnight, UTC")
    segments: bool = Field(default=False, description="whether segments come as arrays too, for raters that compute")


class LeasedSegment(_Wire):
    """The arrays only where they were asked for; a clip is at /v1/preferences/clips/{token}/{place}."""

    env_id: str | None
    num_steps: int
    candidate: SegmentCandidate | None = None


class LeaseBody(_Wire):
    token: Token
    comparison_id: Digest
    kind: Literal["text", "segment"]
    question: str | None = Field(description="of the comparison's metadata")
    candidates: tuple[TextCandidate, ...] | tuple[LeasedSegment, ...] = Field(description="in the order of the screen")
    ttl_s: float


class LeaseResponse(_Wire):
    lease: LeaseBody | None = Field(description="none: nothing waits for this rater")
    progress: Progress


class LabelRequest(_Wire):
    """POST /v1/preferences/labels: what the rater says."""

    token: Token
    rater: RaterName
    choice: Choice | None = None
    ranks: tuple[Annotated[int, Field(ge=0, lt=MAX_CANDIDATES)], ...] | None = Field(
        default=None, max_length=MAX_CANDIDATES, description="one a candidate, 0 the best, equal ones a tie"
    )
    probability: float | None = Field(default=None, ge=0.5, le=1, description="of the choice, where the label is soft")
    duration_s: float = Field(ge=0, le=86_400, allow_inf_nan=False)
    since: AwareDatetime | None = None


class LabelResponse(_Wire):
    progress: Progress


class WithdrawRequest(_Wire):
    """POST /v1/preferences/withdraw: the rater takes a label back and is asked again."""

    token: Token
    rater: RaterName
    session: SessionName = ""
    since: AwareDatetime | None = None


class LabelledResponse(_Wire):
    """GET /v1/preferences/labelled?after=N: labels as the lines of a preference file, and where to ask from next."""

    preferences: tuple[dict[str, Any], ...]
    next: int


class ClipResponse(_Wire):
    clip: Digest


class AgreementBody(_Wire):
    num_labels: int
    num_raters: int
    num_shared: int
    agreement: float | None
    alpha: float | None
    first_chosen: float | None
    ties: float | None
