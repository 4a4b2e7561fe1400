"""What is said over the wire, both ways: requests, results, errors, segments of experience as plain bytes. The service,
its client and every scorer read these types; none of them knows how a score is made. Nothing here is ever unpickled."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, field_validator, model_validator

from rollcall.cluster.inputs.strict import Strict

Array = NDArray[Any]
DTypeName = Literal["bool", "uint8", "int32", "int64", "float32", "float64"]
_WIDENED = {"int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64", "float16": "float32"}
MAX_DEADLINE_MS = 600_000


class Message(Strict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ArrayField(Strict):
    """An array as the bytes of its elements in C order, little-endian, in base64."""

    dtype: DTypeName
    shape: tuple[Annotated[int, Field(ge=0)], ...] = Field(max_length=8)
    content: str = Field(description="base64 of shape x dtype bytes", repr=False)

    @model_validator(mode="after")
    def _bytes_fit_shape(self) -> Self:
        expected = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        padding = len(self.content) - len(self.content.rstrip("="))
        given = len(self.content) // 4 * 3 - padding
        if given != expected:
            raise ValueError(f"{self.dtype}{list(self.shape)} is {expected} bytes, and {given} are given")
        return self

    @classmethod
    def of(cls, array: Array) -> Self:
        """Small numbers that the wire has no dtype for are widened to one that holds the same values. Raises ValueError
        for a dtype that neither fits."""
        array = array.astype(_WIDENED.get(array.dtype.name, array.dtype), copy=False)
        return cls.model_validate(
            {
                "dtype": array.dtype.name,
                "shape": array.shape,
                "content": base64.b64encode(np.ascontiguousarray(array).data).decode("ascii"),
            }
        )

    def array(self) -> Array:
        """A read-only array.

        Raises:
          ValueError: when the content is not base64.
        """
        try:
            raw = base64.b64decode(self.content, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the content is not base64: {error}") from None
        return np.frombuffer(raw, np.dtype(self.dtype)).reshape(self.shape)


class Segment(Strict):
    """A stretch of one episode, T steps long: what was seen, and what was then done. That is the action as the env took
    it (clipped, squashed, counted from the space's `start`), not as a policy sampled it."""

    observations: ArrayField = Field(description="[T, ...]: the observation that each action followed")
    actions: ArrayField = Field(description="[T] of a discrete action space, [T, ...] of others")
    last_observation: ArrayField | None = Field(default=None, description="[1, ...]: what the last action led to")
    terminated: bool | None = Field(default=None, description="whether that ended the episode, a time limit apart")

    @model_validator(mode="after")
    def _one_action_per_observation(self) -> Self:
        lengths = (self.observations.shape[:1], self.actions.shape[:1])
        if lengths[0] != lengths[1] or lengths[0] in ((), (0,)):
            raise ValueError(
                f"observations {list(self.observations.shape)} and actions {list(self.actions.shape)}: both begin with "
                "the same number of steps, at least one"
            )
        if self.last_observation is not None and self.last_observation.shape != (1, *self.observations.shape[1:]):
            raise ValueError(
                f"last_observation {list(self.last_observation.shape)} is not one of {list(self.observations.shape)}"
            )
        return self

    @property
    def num_steps(self) -> int:
        return self.observations.shape[0]


class ScoreItem(Strict):
    """One thing to score: a response to one of prompt, messages and token_ids, or a segment."""

    id: str = Field(min_length=1, max_length=200, description="the caller's; the result carries it")
    prompt: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    token_ids: tuple[int, ...] | None = Field(default=None, description="the prompt in the scorer's own vocabulary")
    response: str | None = None
    segment: Segment | None = None
    metadata: Mapping[str, JsonValue] = Field(
        default_factory=dict, description="what a scorer may need to know: the right answer, tests, a rubric"
    )

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        given = [n for n in ("prompt", "messages", "token_ids", "segment") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of prompt, messages, token_ids and segment is needed, and {given or 'none'} is given"
            )
        if (self.response is None) != (self.segment is not None):
            raise ValueError("a response is needed with a prompt, messages or token_ids, and none with a segment")
        return self

    # A function that expects a text, or a list of them, must not get a number out of an item's fields.

    def __iter__(self) -> NoReturn:
        raise TypeError("this is one item and no list: its text is item.response")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            raise TypeError("this is an item and no text: its text is item.response")
        return super().__eq__(other)

    def canonical(self) -> bytes:
        """The same bytes for the same thing, whatever it is called."""
        values = self.model_dump(mode="json", exclude={"id"}, exclude_none=True)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class ScoreRequest(Strict):
    """POST /v1/score."""

    request_id: str = Field(min_length=1, max_length=200)
    model: str | None = Field(default=None, description="which scorer; none: the service's default")
    deadline_ms: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_MS, description="from the request's arrival")
    items: tuple[ScoreItem, ...] = Field(min_length=1)

    @field_validator("items")
    @classmethod
    def _ids_are_unique(cls, items: tuple[ScoreItem, ...]) -> tuple[ScoreItem, ...]:
        ids = [item.id for item in items]
        if len(set(ids)) < len(ids):
            raise ValueError("two items have the same id")
        return items


ItemErrorKind = Literal[
    "scorer_failed",  # the scorer raised, or died
    "timeout",  # it took longer than one item may
    "non_finite",  # it said NaN or infinity
    "too_long",  # more tokens or steps than it takes
    "unsupported",  # this scorer does not score such a thing, or the metadata lack what it needs
    "unavailable",  # what it stands on is not there: no sandbox, a judge that does not answer
]


class ItemError(Strict):
    """Why an item has no score. Never a score of 0."""

    kind: ItemErrorKind
    message: str


class ItemResult(Strict):
    """Exactly one of score and error."""

    id: str
    score: float | None = None
    components: Mapping[str, float] = Field(default_factory=dict, description="what the score was made of")
    step_scores: tuple[float, ...] | None = Field(default=None, description="[T], of a segment: they sum to the score")
    error: ItemError | None = None

    @model_validator(mode="after")
    def _score_or_error(self) -> Self:
        if (self.score is None) == (self.error is None):
            raise ValueError("a result has a score or an error")
        return self


class ScoreResponse(Strict):
    """Results in the order of the items, all by the same version of the model."""

    request_id: str
    model: str
    model_version: str
    results: tuple[ItemResult, ...]


class ModelInfo(Strict):
    """One scorer that the service has, as GET /v1/models lists them."""

    name: str
    kind: str
    version: str
    takes: tuple[Literal["text", "segment"], ...]
    is_default: bool


class ModelList(Strict):
    models: tuple[ModelInfo, ...]


class LoadRequest(Strict):
    """POST /v1/models/{name}:load: the model is built aside and then takes the old one's place at once."""

    path: str = Field(min_length=1, description="a reward model's directory, below one of the service's model roots")


class ErrorBody(Strict):
    """The body of every answer that is no success."""

    kind: str
    message: str


def cache_key(model_version: str, item: ScoreItem) -> str:
    """SHA-256 (hex) over the version and the canonical item."""
    return hashlib.sha256(model_version.encode() + b"\0" + item.canonical()).hexdigest()
