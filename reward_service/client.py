"""How the rest of the system asks for scores: deadlines, retries, typed errors. A failure is no score of 0."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, Field, SecretStr, ValidationError

from rollcall.cluster.backoff import Backoff
from rollcall.cluster.errors import RewardError, RewardRefused, RewardTimeout, RewardUnavailable, VersionsMixed
from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.protocol import (
    MAX_DEADLINE_MS,
    ErrorBody,
    LoadRequest,
    ModelInfo,
    ModelList,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)

# It will never take this request, unless it says when to come again.
_REFUSED = {400, 401, 403, 404, 405, 409, 413, 415, 422}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
_ROUND_TRIP_S = 0.5  # how much longer we listen than the service may take

_B = TypeVar("_B", bound=BaseModel)


class ClientConfig(Strict):
    """How the service is asked."""

    deadline_s: float = Field(default=120.0, gt=0, description="of one call with all its tries, unless it names one")
    max_items: int = Field(default=128, ge=1, description="of one request: more are cut into several")
    max_body_bytes: int = Field(default=4_194_304, ge=1, description="of one request, about")
    max_connections: int = Field(default=16, ge=1, description="requests under way at once, of one call or of several")
    connect_timeout_s: float = Field(default=5.0, gt=0, description="to reach the service, each try")


class RewardClient:
    """Threads may share one. The requests of one call go out side by side."""

    def __init__(self, url: str, token: SecretStr | str | None = None, config: ClientConfig | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url {url!r} must begin with http:// or https://")
        self.url = url.rstrip("/")
        self._config = config or ClientConfig()
        headers = {}
        if token is not None:
            secret = token if isinstance(token, str) else token.get_secret_value()
            headers["authorization"] = f"Bearer {secret}"
        most = self._config.max_connections
        # trust_env: neither a proxy nor .netrc is to see the token.
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            trust_env=False,
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=20.0),
        )
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()

    def score(
        self, items: Sequence[ScoreItem], *, model: str | None = None, deadline_s: float | None = None
    ) -> ScoreResponse:
        """One result per item, in their order, all by one version of the model.

        Raises:
          VersionsMixed: the model was swapped between two requests of this call.
          RewardUnavailable, RewardTimeout: not within the deadline, for want of a service or of its answer.
          RewardRefused: it will never take this.
          ValueError: there are no items, or two have the same id.
        """
        _check(items)
        deadline = time.monotonic() + (self._config.deadline_s if deadline_s is None else deadline_s)
        request_id = secrets.token_hex(8)
        parts = [
            ScoreRequest.model_construct(request_id=f"{request_id}-{index}", model=model, items=tuple(chunk))
            for index, chunk in enumerate(self._chunks(items))
        ]
        if len(parts) == 1:
            responses = self._score_part(parts[0], deadline)
        else:
            futures = [self._threads().submit(self._score_part, part, deadline) for part in parts]
            try:
                responses = [response for future in futures for response in future.result()]
            finally:
                for future in futures:
                    future.cancel()  # where one has failed, those that have not begun are not begun
        versions = sorted({response.model_version for response in responses})
        if len(versions) > 1:
            raise VersionsMixed(f"the items of one call were scored by {' and '.join(versions)}")
        results = tuple(result for response in responses for result in response.results)
        first = responses[0]
        return ScoreResponse(
            request_id=request_id, model=first.model, model_version=first.model_version, results=results
        )

    def score_group(
        self, items: Sequence[ScoreItem], *, model: str | None = None, deadline_s: float | None = None
    ) -> ScoreResponse:
        """As `score`; a group that a swap has torn apart is scored again, once.

        Raises:
          VersionsMixed: it was torn apart again.
        """
        deadline = time.monotonic() + (self._config.deadline_s if deadline_s is None else deadline_s)
        try:
            return self.score(items, model=model, deadline_s=deadline - time.monotonic())
        except VersionsMixed:
            return self.score(items, model=model, deadline_s=deadline - time.monotonic())

    def models(self, *, deadline_s: float = 10.0) -> tuple[ModelInfo, ...]:
        response = self._send("GET", "/v1/models", lambda _: None, time.monotonic() + deadline_s)
        return _read(ModelList, response).models

    def load(self, name: str, path: str, *, deadline_s: float = 300.0) -> ModelInfo:
        """Swaps a model for the one at `path`, below one of the service's model roots; after another load that is under
        way, such as one that was asked for by somebody who has died.

        Raises:
          RewardRefused: it was not loaded, and the old one stays.
        """
        body = LoadRequest(path=path).model_dump_json().encode()
        response = self._send("POST", f"/v1/models/{name}:load", lambda _: body, time.monotonic() + deadline_s)
        return _read(ModelInfo, response)

    def wait_ready(self, timeout_s: float, look: Callable[[], None] = lambda: None) -> None:
        """`look`, before each try, may end the wait by raising.

        Raises:
          RewardUnavailable: it is not ready in time; the message says why.
        """

        def no_body(rest_s: float) -> None:
            look()

        self._send("GET", "/readyz", no_body, time.monotonic() + timeout_s)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _chunks(self, items: Sequence[ScoreItem]) -> Iterator[list[ScoreItem]]:
        if len(items) == 1:
            yield list(items)
            return
        chunk: list[ScoreItem] = []
        size = 0
        for item in items:
            length = len(item.model_dump_json())
            if chunk and (len(chunk) >= self._config.max_items or size + length > self._config.max_body_bytes):
                yield chunk
                chunk, size = [], 0
            chunk.append(item)
            size += length
        yield chunk

    def _score_part(self, part: ScoreRequest, deadline: float) -> list[ScoreResponse]:
        """One request, or where the service finds it too large, two of half the size."""

        def body(rest_s: float) -> bytes:
            deadline_ms = max(1, min(MAX_DEADLINE_MS, int(1e3 * rest_s)))
            return part.model_copy(update={"deadline_ms": deadline_ms}).model_dump_json().encode()

        try:
            response = self._send("POST", "/v1/score", body, deadline)
        except _TooLarge as error:
            if len(part.items) == 1:
                raise RewardRefused(f"item {part.items[0].id!r} alone is too large: {error}") from None
            half = len(part.items) // 2
            halves = [part.items[:half], part.items[half:]]
            parts = [
                part.model_copy(update={"items": half, "request_id": f"{part.request_id}.{index}"})
                for index, half in enumerate(halves)
            ]
            return [response for each in parts for response in self._score_part(each, deadline)]
        scored = _read(ScoreResponse, response)
        ids = [result.id for result in scored.results]
        if scored.request_id != part.request_id or ids != [item.id for item in part.items]:
            raise RewardUnavailable(f"{self.url} answered something else than what request {part.request_id} asked")
        return [scored]

    def _send(self, method: str, path: str, body: Callable[[float], bytes | None], deadline: float) -> httpx.Response:
        """Tries until there is an answer or the deadline is over. The same request may be scored twice: it is the same
        work with the same result."""
        backoff = Backoff(deadline, first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        error: RewardError = RewardTimeout(f"{self.url}{path}: no time was left")
        while True:
            rest_s = deadline - time.monotonic()
            if rest_s <= 0:
                raise error
            again_s = 0.0
            try:
                response = self._try(method, path, body(rest_s), rest_s)
                if response.status_code == 200:
                    return response
                error, again_s = _problem(response, f"{self.url}{path}")
            except httpx.ReadTimeout:
                error = RewardTimeout(f"{self.url}{path}: no answer within the deadline")
            except httpx.RequestError as failure:
                error = RewardUnavailable(f"{self.url}{path}: {failure or type(failure).__name__}")
            if isinstance(error, RewardRefused) or not backoff.wait(again_s):
                raise error

    def _try(self, method: str, path: str, content: bytes | None, rest_s: float) -> httpx.Response:
        timeout = httpx.Timeout(
            rest_s + _ROUND_TRIP_S,
            connect=min(self._config.connect_timeout_s, rest_s),
            pool=rest_s,
        )
        headers = {} if content is None else {"content-type": "application/json"}
        return self._http.request(method, path, content=content, headers=headers, timeout=timeout)

    def _threads(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._config.max_connections, thread_name_prefix="reward-client")
            return self._pool


class _TooLarge(RewardRefused):
    """413."""


def _check(items: Sequence[ScoreItem]) -> None:
    if not items:
        raise ValueError("items are empty: give at least one")
    if len({item.id for item in items}) < len(items):
        raise ValueError("two items have the same id: give each its own")


def _problem(response: httpx.Response, where: str) -> tuple[RewardError, float]:
    """What an answer that is no success means, and after how many seconds the service asks us to come again."""
    status = response.status_code
    text = f"{where} answers {status}: {_message(response)}"
    if status == 413:
        return _TooLarge(text), 0.0
    again_s = _retry_after_s(response)
    if (status in _REFUSED and not again_s) or 300 <= status < 400:
        return RewardRefused(text), 0.0
    if status == 504:
        return RewardTimeout(text), 0.0
    return RewardUnavailable(text), again_s


def _message(response: httpx.Response) -> str:
    try:
        return ErrorBody.model_validate_json(response.content).message
    except ValidationError:
        return " ".join(response.text.split())[:200] or response.reason_phrase


def _retry_after_s(response: httpx.Response) -> float:
    """Of the header; dates and nonsense are no number of seconds, and mean none."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _read(model: type[_B], response: httpx.Response) -> _B:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        raise RewardUnavailable(f"{response.url} answered no {model.__name__}: {found['msg']}") from None
