"""The gateway as an outside actor sees it: its requests, its weights, and what becomes of both when it is away. Knows
no environment; threads may share one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from rollcall.actors.outside import protocol
from rollcall.cluster.backoff import Backoff
from rollcall.cluster.errors import BadInput, RollcallError, StaleEpoch
from rollcall.cluster.messages.attempt import Header, ShardPayload, Ticket
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.messages.wire import to_bytes

CONNECT_S, ANSWER_S = 5.0, 60.0
LONG_POLL_S = 20.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0


class GatewayAway(RollcallError):
    """Nobody answers, or not as a gateway does."""


class GatewayRefuses(RollcallError):
    """What was asked for is not granted."""

    def __init__(self, status: int, code: str, detail: str, retry_after_s: float) -> None:
        super().__init__(f"{code}: {detail}")
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


class RunOver(RollcallError):
    """There is nothing more to do."""


@dataclass(frozen=True, slots=True)
class Joined:
    actor_id: str
    lease_s: float
    run: Mapping[str, Any]  # what the run says of itself


@dataclass(frozen=True, slots=True)
class Leased:
    secret: str
    ticket: Ticket


class GatewayClient:
    """One actor's. Each request raises GatewayAway, GatewayRefuses, RunOver, and nothing else."""

    def __init__(self, url: str, token: str) -> None:
        # trust_env: neither a proxy nor .netrc is to see the token.
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            trust_env=False,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            headers={"Authorization": f"Bearer {token}", protocol.PROTOCOL_HEADER: str(protocol.PROTOCOL)},
        )
        self.url = url
        self._actor: dict[str, str] = {}

    def join(self, name: str) -> Joined:
        said = self._ask(protocol.JOIN, {"name": name}).json()
        self._actor = {protocol.ACTOR_HEADER: str(said["actor"])}
        return Joined(str(said["actor_id"]), float(said["lease_s"]), said["run"])

    def leave(self) -> None:
        self._ask(protocol.LEAVE, {})

    def lease(self, wait_s: float) -> Leased:
        said = self._ask(protocol.LEASE, {"wait_s": wait_s}).json()
        ticket = said["ticket"]
        header, payload = Header(**ticket.pop("header")), ShardPayload(**ticket.pop("payload"))
        return Leased(str(said["lease"]), Ticket(header=header, payload=payload, **ticket))

    def renew(self, lease: str) -> None:
        self._ask(protocol.RENEW, {}, {protocol.LEASE_HEADER: lease})

    def post(self, lease: str, experience: protocol.OutsideExperience) -> None:
        self._ask(protocol.TRAJECTORY, to_bytes(experience), {protocol.LEASE_HEADER: lease})

    def weights(self, known: Weights | None) -> Weights | None:
        """The newest; None where they are known.

        Raises:
          WireError: they are not what was published; the next ones would not be either.
        """
        headers = {} if known is None else {"If-None-Match": protocol.etag(known)}
        answer = self._ask(protocol.WEIGHTS, None, headers)
        if answer.status_code == 304:
            return None
        return protocol.weights_from_bytes(answer.content)

    def close(self) -> None:
        self._http.close()

    def _ask(
        self, path: str, body: Mapping[str, object] | bytes | None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        method = "GET" if body is None else "POST"
        content: dict[str, Any] = {"content" if isinstance(body, bytes) else "json": body} if body is not None else {}
        try:
            answer = self._http.request(method, path, headers={**self._actor, **(headers or {})}, **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise GatewayAway(f"{self.url} does not answer ({type(error).__name__})") from None
        if answer.status_code in (200, 304):
            return answer
        try:
            said = answer.json()
            code, detail = str(said["error"]), str(said["detail"])
        except (ValueError, KeyError, TypeError):
            raise GatewayAway(f"{self.url} answers {answer.status_code}, and is no gateway of Rollcall's") from None
        if code == "run_over":
            raise RunOver(detail)
        after = answer.headers.get("Retry-After", "")
        raise GatewayRefuses(answer.status_code, code, detail, float(after) if after.isdigit() else 0.0)


class HttpWeights:
    """The run's weights, for an actor."""

    def __init__(self, gateway: GatewayClient) -> None:
        self._gateway = gateway
        self._known: Weights | None = None

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        """See WeightsSource. The gateway gives out no ticket before its weights: there is nothing to wait for."""
        found = self._gateway.weights(self._known)
        if found is not None:
            self._known = found
        if self._known is None or self._known.epoch < epoch:
            return None
        if self._known.epoch > epoch:
            raise StaleEpoch(f"epoch {epoch} has ended: epoch {self._known.epoch} has begun")
        return self._known if self._known.version > newer_than else None


class Heartbeat:
    """Renews a lease while its ticket is worked on."""

    def __init__(self, gateway: GatewayClient, lease: str, every_s: float) -> None:
        self._gateway, self._lease, self._every_s = gateway, lease, every_s
        self._stop = threading.Event()
        self.lost = ""  # why the lease is not ours any more
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._gateway.renew(self._lease)
            except GatewayAway:
                continue
            except (GatewayRefuses, RunOver) as error:
                self.lost = str(error)
                return


def patiently(ask: Callable[[], Joined], patience_s: float, tell: Callable[[str], None]) -> Joined:
    """Joins, and waits for a gateway that is away or full.

    Raises:
      BadInput: it will not have us: token, protocol.
      GatewayAway: for longer than `patience_s`.
    """
    backoff = Backoff(time.monotonic() + patience_s, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
    told = False
    while True:
        try:
            return ask()
        except GatewayAway as error:
            reason, at_least_s = error, 0.0
        except GatewayRefuses as refused:
            if refused.status not in (429, 503):
                raise BadInput(str(refused)) from None
            reason, at_least_s = GatewayAway(str(refused)), refused.retry_after_s
        if not told:
            told = True
            tell(f"{reason}: trying again for {patience_s:.0f} s")
        if not backoff.wait(at_least_s):
            raise reason
