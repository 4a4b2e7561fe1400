"""How programs ask raters and rate themselves over HTTP: comparisons in, labels out, deadlines and typed errors."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from rollcall.cluster.errors import LeaseLost, RewardError, RewardRefused, RewardTimeout, RewardUnavailable
from rollcall.reward_service.labelling.leases import LeasedComparison
from rollcall.reward_service.labelling.protocol import (
    AddRequest,
    AddResponse,
    ClipResponse,
    LabelledResponse,
    LabelRequest,
    LabelResponse,
    LeasedSegment,
    LeaseRequest,
    LeaseResponse,
    NewComparison,
    Progress,
)
from rollcall.reward_service.preferences.clips import RecordedFrames
from rollcall.reward_service.preferences.files import Preference, parse_preference_values
from rollcall.reward_service.preferences.records import Choice, Comparison
from rollcall.reward_service.protocol import ErrorBody

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 3.0
_BODY_BYTES = 4_000_000  # of one request, about: services take 8 MB unless told otherwise
_LATER = {408, 429, 500, 502, 503, 504}

_B = TypeVar("_B", bound=BaseModel)


class LabelClient:
    """One rater's or one producer's. Every call may be repeated: it is done once.

    All methods raise RewardUnavailable, RewardTimeout and RewardRefused.
    """

    def __init__(self, url: str, token: SecretStr | str | None = None, *, deadline_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._deadline_s = deadline_s
        headers = {}
        if token is not None:
            secret = token if isinstance(token, str) else token.get_secret_value()
            headers["authorization"] = f"Bearer {secret}"
        # trust_env: neither a proxy nor .netrc is to see the token.
        self._http = httpx.Client(base_url=self.url, headers=headers, trust_env=False)

    def add(self, comparisons: Iterable[Comparison]) -> int:
        """Has raters asked. Returns how many were never queued before."""
        part: list[NewComparison] = []
        new = size = 0
        for comparison in comparisons:
            asked = NewComparison.model_construct(candidates=comparison.candidates, metadata=comparison.metadata)
            length = len(asked.model_dump_json())
            if part and (size + length > _BODY_BYTES or len(part) == 100):
                new += self._add(part)
                part, size = [], 0
            part.append(asked)
            size += length
        return new + (self._add(part) if part else 0)

    def keep_frames(self, frames: RecordedFrames) -> str:
        """The name of frames that were recorded with a segment, for its candidate's `clip`."""
        return self._post("frames", frames, ClipResponse).clip

    def lease(self, rater: str, *, session: str = "") -> LeasedComparison | None:
        """What the rater is asked next, segments as arrays; None where nothing waits for it."""
        lease = self._post("lease", LeaseRequest(rater=rater, session=session, segments=True), LeaseResponse).lease
        if lease is None:
            return None
        candidates = [c.candidate if isinstance(c, LeasedSegment) else c for c in lease.candidates]
        assert None not in candidates, "segments were asked for"
        return LeasedComparison(lease.token, tuple(c for c in candidates if c is not None))

    def label(
        self,
        *,
        token: str,
        rater: str,
        duration_s: float,
        choice: Choice | None = None,
        ranks: Sequence[int] | None = None,
        probability: float | None = None,
    ) -> None:
        """Raises LeaseLost."""
        places = None if ranks is None else tuple(ranks)
        said = LabelRequest(
            token=token, rater=rater, duration_s=duration_s, choice=choice, ranks=places, probability=probability
        )
        self._post("labels", said, LabelResponse)

    def labelled(self, after: int = 0) -> tuple[list[Preference], int]:
        """Labels that came after a place in the log, and the place to ask from next time."""
        found = self._send("GET", "labelled", None, LabelledResponse, after=after)
        where = f"{self.url} labels after {after}"
        return [parse_preference_values(values, source=where) for values in found.preferences], found.next

    def progress(self, rater: str) -> Progress:
        """As the rater sees it."""
        return self._send("GET", "progress", None, Progress, rater=rater)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, part: Sequence[NewComparison]) -> int:
        return self._post("comparisons", AddRequest.model_construct(comparisons=tuple(part)), AddResponse).new

    def _post(self, path: str, body: BaseModel, answer: type[_B]) -> _B:
        return self._send("POST", path, body.model_dump_json(exclude_none=True).encode(), answer)

    def _send(self, method: str, path: str, content: bytes | None, answer: type[_B], **asked: str | int) -> _B:
        deadline, pause_s = time.monotonic() + self._deadline_s, _FIRST_PAUSE_S
        where = f"{self.url}/v1/preferences/{path}"
        headers: dict[str, Any] = {} if content is None else {"content-type": "application/json"}
        while True:
            rest_s = max(0.05, deadline - time.monotonic())
            error: RewardError
            try:
                response = self._http.request(
                    method, f"/v1/preferences/{path}", params=asked, content=content, headers=headers, timeout=rest_s
                )
                if response.status_code == 200:
                    return answer.model_validate_json(response.content)
                text = f"{where} answers {response.status_code}: {_message(response)}"
                if response.status_code == 409:
                    raise LeaseLost(text)
                if response.status_code not in _LATER:
                    raise RewardRefused(text)
                error = RewardUnavailable(text)
            except ValidationError:
                raise RewardUnavailable(f"{where} answered no {answer.__name__}: is it this version's?") from None
            except httpx.ReadTimeout:
                error = RewardTimeout(f"{where}: no answer within {self._deadline_s:g} s")
            except httpx.TransportError as failure:
                error = RewardUnavailable(f"{where}: {failure or type(failure).__name__}")
            wait_s = pause_s * random.uniform(0.5, 1.5)
            if time.monotonic() + wait_s >= deadline:
                raise error
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _message(response: httpx.Response) -> str:
    try:
        return ErrorBody.model_validate_json(response.content).message
    except ValidationError:
        return " ".join(response.text.split())[:200] or response.reason_phrase
