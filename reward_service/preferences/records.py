"""What raters are shown and what they say: candidates, comparisons and labels, as records. A comparison's name is the
digest of its candidates, so the same one is never asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    StringConstraints,
    model_validator,
)

from rollcall.reward_service.preferences.files import (
    Preference,
    PreferencePair,
    Prompt,
    Ranking,
    SegmentPair,
    check_segment,
    segment_space,
)
from rollcall.reward_service.preferences.sizes import MAX_CANDIDATES
from rollcall.reward_service.protocol import Message, Segment

# Of a comparison's metadata: the actions of its segments are those that the env took. A run's labels say so since the
# release that records them; before it they held what the policy had sampled.
TAKEN: Mapping[str, JsonValue] = {"actions": "taken"}
Choice = Literal["left", "right", "tie", "skip"]
_PLACES: Mapping[str, tuple[int, ...]] = {"left": (0, 1), "right": (1, 0), "tie": (0, 0)}
RaterName = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextCandidate(_Record):
    """A response to one of prompt and messages."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    response: str

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("one of prompt and messages is needed")
        return self

    @classmethod
    def of(cls, prompt: Prompt, response: str) -> Self:
        if isinstance(prompt, str):
            return cls(prompt=prompt, response=response)
        return cls(messages=prompt, response=response)

    @property
    def asked(self) -> Prompt:
        return self.prompt if self.prompt is not None else self.messages or ()

    def digest(self) -> str:
        return _digest(self.model_dump(mode="json", exclude_none=True))


class SegmentCandidate(_Record):
    """A stretch of an episode, to be judged by what it looks like."""

    segment: Segment
    env_id: str | None = Field(default=None, description="the env that can draw it, where one can")
    clip: Digest | None = Field(default=None, description="frames recorded with it, by their digest in the store")

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        check_segment(self.segment)
        return self

    def digest(self) -> str:
        """Of what happened; not of how it is drawn."""
        return _digest({"segment": self.segment.model_dump(mode="json"), "env_id": self.env_id})


Candidate = TextCandidate | SegmentCandidate


class Comparison(_Record):
    """Two to nine things to compare, in the order of their digests, which says nothing of which is better. Text is of
    one prompt; segments come in pairs, of one env."""

    id: Digest
    kind: Literal["text", "segment"]
    candidates: tuple[TextCandidate, ...] | tuple[SegmentCandidate, ...] = Field(
        min_length=2, max_length=MAX_CANDIDATES
    )
    metadata: Mapping[str, JsonValue] = Field(
        default_factory=dict, description="whatever the producer wants back; only `question` is shown to raters"
    )
    created_at: AwareDatetime

    @classmethod
    def of(
        cls,
        candidates: Sequence[Candidate],
        *,
        metadata: Mapping[str, JsonValue] | None = None,
        created_at: datetime | None = None,
    ) -> Self:
        """The comparison of these candidates, whatever their order.

        Raises:
          ValueError: where two are the same, or they cannot be compared.
        """
        if len({type(candidate) for candidate in candidates}) > 1:
            raise ValueError("a text and a segment cannot be compared")
        ordered = sorted(candidates, key=lambda candidate: candidate.digest())
        return cls.model_validate(
            {
                "id": comparison_id(ordered),
                "kind": "text" if all(isinstance(c, TextCandidate) for c in ordered) else "segment",
                "candidates": tuple(ordered),
                "metadata": dict(metadata or {}),
                "created_at": created_at or datetime.now(UTC),
            }
        )

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        json.dumps(dict(self.metadata), allow_nan=False)  # ValueError: NaN is no number of JSON's
        digests = [candidate.digest() for candidate in self.candidates]
        if len(set(digests)) < len(digests):
            raise ValueError("two candidates are the same: there is nothing to compare")
        if digests != sorted(digests) or self.id != comparison_id(self.candidates):
            raise ValueError("the id is not that of these candidates in the order of their digests")
        if self.kind == "text":
            prompts = {c.asked for c in self.candidates if isinstance(c, TextCandidate)}
            if len(prompts) != 1:
                raise ValueError("responses to different prompts cannot be compared")
        else:
            segments = [c.segment for c in self.candidates if isinstance(c, SegmentCandidate)]
            envs = {c.env_id for c in self.candidates if isinstance(c, SegmentCandidate)}
            if len(segments) != 2 or len(envs) != 1 or len({segment_space(s) for s in segments}) != 1:
                raise ValueError("segments are compared in pairs of one env, with the same shapes and dtypes")
        return self


class Answer(_Record):
    """What is said of a comparison: a choice (of a pair; any may be skipped), or the places of all candidates."""

    choice: Choice | None = None
    ranks: tuple[int, ...] | None = Field(default=None, description="0 the best, equal places are a tie, no gaps")
    probability: FiniteFloat | None = Field(
        default=None, ge=0.5, le=1, description="of a soft label: that the one that is chosen is better"
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.probability is not None and self.choice not in ("left", "right"):
            raise ValueError("a probability is that of a choice: left or right")
        if (self.choice is None) == (self.ranks is None):
            raise ValueError("one of choice and ranks is needed")
        if self.ranks is not None and sorted(set(self.ranks)) != list(range(len(set(self.ranks)))):
            raise ValueError(f"ranks are {list(self.ranks)}: they count from 0 without a gap, equal ones are a tie")
        return self

    @property
    def places(self) -> tuple[int, ...] | None:
        """The place of each candidate, 0 the best; None of what was skipped."""
        return self.ranks if self.ranks is not None else _PLACES.get(self.choice or "")

    def check(self, *, num_candidates: int) -> None:
        """Raises ValueError where this cannot be said of so many candidates."""
        if self.choice in _PLACES and num_candidates != 2:
            raise ValueError(
                f"{self.choice!r} is said of a pair, and there are {num_candidates} candidates: give ranks"
            )
        if self.ranks is not None and len(self.ranks) != num_candidates:
            raise ValueError(f"{len(self.ranks)} ranks for {num_candidates} candidates")

    def reordered(self, order: Sequence[int]) -> Answer:
        """What is said of places on a screen, as said of the candidates: order[i] is the one in the i-th place."""
        if self.ranks is not None:
            places = dict(zip(order, self.ranks, strict=True))
            return Answer(ranks=tuple(places[index] for index in range(len(order))))
        if self.choice in ("left", "right") and order[0] == 1:
            return Answer(choice="right" if self.choice == "left" else "left", probability=self.probability)
        return self


class Label(Answer):
    """What one rater said of one comparison. left and right, and the order of `ranks`, are those of the comparison's
    candidates, not of the screen."""

    comparison_id: Digest
    rater: RaterName
    margin: FiniteFloat | None = Field(default=None, ge=0, description="by how much, where an imported file says so")
    shown: tuple[int, ...] = Field(description="candidates in the order of the screen; () where there was none")
    created_at: AwareDatetime
    duration_s: float = Field(ge=0, allow_inf_nan=False, description="from when it was seen to when it was said")
    token: str = Field(min_length=1, max_length=100, description="of the lease that it was given under")


def comparison_id(ordered: Sequence[Candidate]) -> str:
    return _digest([candidate.digest() for candidate in ordered])


def preference_of(comparison: Comparison, label: Label) -> Preference | None:
    """The line of a preference file that says it; None of what was skipped."""
    places = label.places
    if places is None:
        return None
    group = comparison.metadata.get("group")
    about: dict[str, JsonValue] = {
        "comparison": comparison.id,
        "labelled_at": label.created_at.isoformat(),
        "duration_s": round(label.duration_s, 3),
    }
    if comparison.metadata:
        about["metadata"] = dict(comparison.metadata)
    origin = {"group": group if isinstance(group, str) else None, "rater": label.rater, "details": about}
    first = comparison.candidates[0]
    if isinstance(first, SegmentCandidate):
        segments = tuple(c.segment for c in comparison.candidates if isinstance(c, SegmentCandidate))
        choice = "tie" if places[0] == places[1] else "left" if places[0] < places[1] else "right"
        return SegmentPair((segments[0], segments[1]), choice, first.env_id, **origin)  # type: ignore[arg-type]
    responses = tuple(c.response for c in comparison.candidates if isinstance(c, TextCandidate))
    if len(places) > 2:
        return Ranking(first.asked, responses, places, **origin)  # type: ignore[arg-type]
    best = min((0, 1), key=lambda index: places[index])
    pair = (responses[best], responses[1 - best], label.margin, places[0] == places[1])
    return PreferencePair(first.asked, *pair, probability=label.probability, **origin)  # type: ignore[arg-type]


def shows_taken_actions(pair: SegmentPair) -> bool:
    """Whether a labelled pair says that its actions are those that the env took."""
    about = pair.details.get("metadata")
    return isinstance(about, dict) and about.items() >= TAKEN.items()


def comparison_of(preference: Preference) -> tuple[Comparison, tuple[int, ...]]:
    """What was compared, and the place of each of its candidates.

    Raises:
      ValueError: where there is nothing to compare: the same thing twice.
    """
    if isinstance(preference, SegmentPair):
        given: list[Candidate] = [SegmentCandidate(segment=s, env_id=preference.env) for s in preference.segments]
        places = _PLACES[preference.choice]
    elif isinstance(preference, Ranking):
        given = [TextCandidate.of(preference.prompt, response) for response in preference.responses]
        places = preference.ranks
    else:
        given = [TextCandidate.of(preference.prompt, text) for text in (preference.chosen, preference.rejected)]
        places = (0, 0) if preference.tie else (0, 1)
    about = preference.details.get("metadata")
    metadata = dict(about) if isinstance(about, dict) else {}
    if preference.group is not None:
        metadata["group"] = preference.group
    place_of = {candidate.digest(): place for candidate, place in zip(given, places, strict=True)}
    comparison = Comparison.of(given, metadata=metadata)
    return comparison, tuple(place_of[candidate.digest()] for candidate in comparison.candidates)


def _digest(values: object) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
