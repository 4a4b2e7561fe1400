"""What stands before every route: the token, limits on bodies and on how much is under way, draining, and the count of
what became of each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from pydantic import Field
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.protocol import ErrorBody
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scheduling.refusals import Refused
from rollcall.reward_service.service.auth import BearerToken, named_locally, same_origin

_DISCARDED = 8  # times max_body_bytes: read and thrown away, so that the client gets to read why it is refused


class GuardConfig(Strict):
    """How much the service takes in."""

    max_body_bytes: int = Field(default=8_388_608, ge=1, description="of one request; beyond them: 413")
    body_timeout_s: float = Field(default=30.0, gt=0, description="how long a request's body may take to arrive: 408")
    max_buffered_bytes: int = Field(default=268_435_456, ge=1, description="of all bodies at once; beyond them: 429")
    max_requests: int = Field(default=1024, ge=1, description="under way at once; beyond them: 429")


def refusal(refused: Refused) -> Response:
    """The answer, with an ErrorBody."""
    headers = {}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(refused.retry_after_s)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refused.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    body = ErrorBody(kind=refused.kind, message=refused.message).model_dump_json()
    return Response(body, refused.status, headers, "application/json")


class Guard:
    """ASGI middleware. Bodies are read here, whole and within limits: routes behind it find them ready."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: GuardConfig,
        metrics: ServiceMetrics,
        token: BearerToken | None,
        open_paths: Collection[str],
    ) -> None:
        self.app = app
        self.draining = False
        self.num_requests = 0  # under way, behind the guard
        self._config, self._metrics, self._token = config, metrics, token
        self._open_paths = frozenset(open_paths)
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        state = scope.setdefault("state", {})
        state["arrived"] = began
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, noted)
        except Refused as refused:
            state["outcome"] = refused.kind
            await refusal(refused)(scope, receive, noted)
        finally:
            route = _route(scope["path"])
            outcome = state.get("outcome") or ("ok" if 0 < status < 400 else f"http_{status}")
            self._metrics.requests.labels(route, outcome).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - began)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._check_sender(scope["path"], headers)
        if scope["path"] in self._open_paths:
            await self.app(scope, receive, send)
            return
        self._check_room()
        self.num_requests += 1
        self._metrics.in_flight.inc()
        body = bytearray()
        try:
            await self._read(headers, receive, body)
            await self.app(scope, _ready(bytes(body), receive), send)
        finally:
            self._buffered -= len(body)
            self.num_requests -= 1
            self._metrics.in_flight.dec()

    def _check_sender(self, path: str, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"")
        if b"origin" in headers and not same_origin(headers[b"origin"], host):
            raise Refused("forbidden", "a page of another origin may not use this service")
        if self._token is None:
            if not named_locally(host):
                raise Refused("forbidden", "without a token this service answers to localhost and 127.0.0.1 only")
        elif path not in self._open_paths and not self._token.accepts(headers.get(b"authorization", b"")):
            raise Refused("unauthorised", "a bearer token is needed, and this is not the one")

    def _check_room(self) -> None:
        if self.draining:
            raise Refused("draining", "the service is ending and takes no more work", retry_after_s=2)
        if self.num_requests >= self._config.max_requests:
            raise Refused("queue_full", f"{self.num_requests} requests are under way already", retry_after_s=1)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                await self._read_all(headers, receive, body)
        except TimeoutError:
            text = f"the body did not arrive within {self._config.body_timeout_s:g} s"
            raise Refused("body_timeout", text) from None

    async def _read_all(self, headers: dict[bytes, bytes], receive: Receive, body: bytearray) -> None:
        """With or without a Content-Length: what counts is what comes."""
        most = self._config.max_body_bytes
        said = headers.get(b"content-length", b"")
        length = int(said) if said.isdigit() and len(said) < 20 else 0
        if length > _DISCARDED * most:
            raise Refused("too_large", f"a body of {length} bytes, at most {most} are taken")
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused("client_gone", "the client left before its request was complete")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            received += len(chunk)
            if received <= most and length <= most:
                if self._buffered + len(chunk) > self._config.max_buffered_bytes:
                    raise Refused("queue_full", "too many bytes are under way already", retry_after_s=1)
                body += chunk
                self._buffered += len(chunk)
            elif received > _DISCARDED * most:
                break
        if received > most or length > most:
            raise Refused("too_large", f"a body of {max(received, length)} bytes or more, at most {most} are taken")


def _ready(body: bytes, receive: Receive) -> Receive:
    """The body in one message; then what else comes: that the client leaves."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _route(path: str) -> str:
    """A bounded label."""
    if path in ("/v1/score", "/v1/models"):
        return path.removeprefix("/v1/")
    if path.startswith("/v1/models/") and path.endswith(":load"):
        return "load"
    return "other"
