"""One request of an outside actor: who may ask, how much, and how long; to the desk, and back in one line of JSON."""

from __future__ import annotations

import hmac
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BufferedReader
from typing import Any, ClassVar, cast

from pydantic import JsonValue

from rollcall.actors.outside import protocol
from rollcall.actors.outside.protocol import OutsideExperience
from rollcall.cluster.errors import WireError
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.messages.wire import from_bytes
from rollcall.deploy.gateway.deadlines import DeadlineReader
from rollcall.deploy.gateway.desk import Desk, Lease, Refused, Session
from rollcall.deploy.gateway.rules import Invalid, TrajectoryRules

MAX_JSON_BYTES = 16 << 10
MAX_WAIT_S = 60.0  # of a long poll
WRITE_S = 60.0
MAX_BODIES = 4  # trajectories that are read at a time: what they hold in memory is bounded
ANSWERED = 200

Count = Callable[[str, int, str], None]  # (request, status, code)

_log = logging.getLogger("rollcall")


@dataclass(slots=True)
class Served:
    """What requests are answered from."""

    desk: Desk
    rules: TrajectoryRules
    token: bytes
    run: Mapping[str, JsonValue]  # what whoever joins is told of it
    max_body_bytes: int
    count: Count
    weights: tuple[Weights, bytes] | None = None  # the newest, and as they are sent
    bodies: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_BODIES))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of what is no request: it is answered with a status all the same

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = DeadlineReader(self.connection)
        self.rfile = BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._body_read = False
        super().handle_one_request()
        self._reader.next_request()

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("gateway: " + format, *args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of the standard library's own complaints about a request."""
        self.close_connection = True
        code = 405 if code == 501 else code  # a method that there is not is no fault of ours
        self._count("malformed", code, "malformed")
        self._answer(code, {"error": "malformed", "detail": message or "no HTTP request"})

    def _serve(self, method: str) -> None:
        path = self.path.partition("?")[0]
        kind = path.removeprefix("/v1/") if (method, path) in self._ROUTES else "unknown"
        try:
            self._check(method, path)
            self._ROUTES[method, path](self)
        except Refused as refused:
            self._drain(known=refused.status != 401)
            self._count(kind, refused.status, refused.code)
            after = refused.retry_after_s
            headers = {} if after is None else {"Retry-After": f"{after:.0f}"}
            if refused.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            self._answer(refused.status, {"error": refused.code, "detail": refused.detail}, headers)
        except (TimeoutError, ConnectionError):
            self.close_connection = True
            self._count(kind, 408, "too_slow")
            self._answer(408, {"error": "too_slow", "detail": "the body did not come in time"})
        except Exception:
            _log.exception("the gateway failed at %s %s", method, path[:80])
            self.close_connection = True
            self._count(kind, 500, "internal")
            self._answer(500, {"error": "internal", "detail": "a fault of the gateway's: the run's log has it"})
        else:
            self._count(kind, self._status, "ok")

    def _check(self, method: str, path: str) -> None:
        """Raises Refused: before anything is read or done."""
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._gateway.token)
        if scheme.lower() != "bearer" or not right:
            raise Refused(401, "token", "send Authorization: Bearer and the run's token")
        if (method, path) not in self._ROUTES:
            raise Refused(404, "unknown_request", f"there are {', '.join(' '.join(key) for key in self._ROUTES)}")
        spoken = self.headers.get(protocol.PROTOCOL_HEADER)
        if spoken != str(protocol.PROTOCOL):
            header = f"{protocol.PROTOCOL_HEADER}: {protocol.PROTOCOL}"
            raise Refused(400, "protocol", f"this gateway speaks version {protocol.PROTOCOL}: send {header}")

    # One request each.

    def _join(self) -> None:
        name = self._json().get("name", "")
        if not isinstance(name, str) or len(name) > 100 or not name.isprintable():
            raise Refused(400, "malformed", "name must be a text of at most 100 characters")
        session = self._desk.join(name, instead_of=self.headers.get(protocol.ACTOR_HEADER, ""))
        _log.info("%s (%s) has joined from %s", session.actor_id, name, self.client_address[0])
        told: dict[str, JsonValue] = {"actor": session.secret, "actor_id": session.actor_id}
        self._answer(ANSWERED, {**told, "lease_s": self._desk.lease_s, "run": dict(self._gateway.run)})

    def _leave(self) -> None:
        session = self._session()
        self._json()
        self._desk.leave(session)
        self._answer(ANSWERED, {"left": True})

    def _weights(self) -> None:
        session, newest = self._session(), self._gateway.weights
        if newest is None:
            raise Refused(503, "no_weights", "none are published yet", retry_after_s=1.0)
        weights, data = newest
        tag = protocol.etag(weights)
        headers = {"ETag": tag, "Rollcall-Version": str(weights.version), "Rollcall-Epoch": str(weights.epoch)}
        self._desk.fetched(session, weights.epoch, weights.version)
        if self.headers.get("If-None-Match") == tag:
            self._answer(304, b"", headers)
        else:
            self._answer(ANSWERED, data, headers)

    def _lease(self) -> None:
        session = self._session()
        wait_s = self._json().get("wait_s", 0.0)
        if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= MAX_WAIT_S:
            raise Refused(400, "malformed", f"wait_s must be 0 to {MAX_WAIT_S:g}")
        lease = self._desk.lease(session, float(wait_s))
        self._answer(ANSWERED, {"lease": lease.secret, "lease_s": self._desk.lease_s, "ticket": asdict(lease.ticket)})

    def _renew(self) -> None:
        session = self._session()
        self._json()
        self._desk.renew(session, self.headers.get(protocol.LEASE_HEADER, ""))
        self._answer(ANSWERED, {"lease_s": self._desk.lease_s})

    def _trajectory(self) -> None:
        session, secret = self._session(), self.headers.get(protocol.LEASE_HEADER, "")
        size = self._body_size(self._gateway.max_body_bytes)
        if not self._gateway.bodies.acquire(blocking=False):
            raise Refused(503, "busy", f"{MAX_BODIES} trajectories are being read", retry_after_s=1.0)
        try:
            begun = self._desk.begin_post(session, secret)
            if isinstance(begun, Lease):
                self._take(begun, size)
            else:
                self._body(size)  # again: answered as it was, and counted once
                self._count("trajectory", ANSWERED, "repeated")
        finally:
            self._gateway.bodies.release()
        self._answer(ANSWERED, {"accepted": True})

    def _take(self, lease: Lease, size: int) -> None:
        """Reads and looks at what is posted. What is no record at all is not held against the attempt."""
        try:
            posted = from_bytes(self._body(size), OutsideExperience)
        except WireError as error:
            self._desk.give_back(lease)
            raise Refused(400, "no_record", str(error)) from None
        except BaseException:
            self._desk.give_back(lease)
            raise
        try:
            produced, trajectory = self._gateway.rules.produced(posted, lease)
        except Invalid as error:
            self._desk.reject(lease, str(error))
            raise Refused(422, "invalid", str(error)) from None
        except Exception as error:  # numbers beyond what anybody thought of
            self._desk.reject(lease, f"it cannot be looked at ({type(error).__name__})")
            raise Refused(422, "invalid", f"it cannot be looked at ({type(error).__name__})") from error
        self._desk.accept(lease, produced, trajectory)

    _ROUTES: ClassVar[dict[tuple[str, str], Callable[[Handler], None]]] = {
        ("POST", protocol.JOIN): _join,
        ("POST", protocol.LEAVE): _leave,
        ("GET", protocol.WEIGHTS): _weights,
        ("POST", protocol.LEASE): _lease,
        ("POST", protocol.RENEW): _renew,
        ("POST", protocol.TRAJECTORY): _trajectory,
    }

    # Reading and answering.

    @property
    def _gateway(self) -> Served:
        return cast(Served, cast(Any, self.server).served)

    @property
    def _desk(self) -> Desk:
        return self._gateway.desk

    def _session(self) -> Session:
        return self._desk.session(self.headers.get(protocol.ACTOR_HEADER, ""))

    @property
    def _has_body(self) -> bool:
        return self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers

    def _body_size(self, most: int) -> int:
        given = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (given.isascii() and given.isdigit() and len(given) < 16):
            raise Refused(411, "length", "send the body whole, with its Content-Length")
        if int(given) > most:
            raise Refused(413, "too_large", f"a body of {given} bytes: at most {most} are taken")
        return int(given)

    def _body(self, size: int) -> bytes:
        self._reader.body(size)
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("the body ended early")
        self._body_read = True
        return body

    def _drain(self, *, known: bool) -> None:
        """Of a request that is refused: a body that is small, or of somebody who has the token, is read to its end, or
        the answer would be lost with the connection. What is not read is no next request."""
        if self._body_read or not self._has_body:
            return
        self.close_connection = True
        try:
            rest = size = self._body_size(self._gateway.max_body_bytes if known else MAX_JSON_BYTES)
            self._reader.body(size)
            while rest and (chunk := self.rfile.read(min(rest, MAX_JSON_BYTES))):
                rest -= len(chunk)
            self.close_connection = bool(rest)
        except (Refused, OSError):
            return

    def _json(self) -> dict[str, JsonValue]:
        body = self._body(self._body_size(MAX_JSON_BYTES))
        try:
            found = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(400, "malformed", "the body must be a JSON object")
        return found

    def _answer(
        self, status: int, body: Mapping[str, JsonValue] | bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        kind = protocol.TENSORS if isinstance(body, bytes) else protocol.JSON
        data = body if isinstance(body, bytes) else json.dumps({"protocol": protocol.PROTOCOL, **body}).encode()
        self._status = status
        try:
            self.connection.settimeout(WRITE_S)
            self.send_response_only(status)
            self.send_header(protocol.PROTOCOL_HEADER, str(protocol.PROTOCOL))
            self.send_header("Content-Type", kind)
            if status != 304:
                self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # nobody reads the answer; whoever asks again is told it again
            self.close_connection = True

    def _count(self, kind: str, status: int, code: str) -> None:
        self._gateway.count(kind, status, code)
