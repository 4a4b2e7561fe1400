"""The gateway for actors outside Ray, over a real port: what it gives, what it takes, and what it refuses without a
trace in the books."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.outside import protocol
from rollcall.actors.outside.gateway_client import GatewayClient, GatewayRefuses, HttpWeights, Leased, RunOver
from rollcall.actors.outside.protocol import OutsideExperience, weights_from_bytes, weights_to_bytes
from rollcall.cluster.errors import BadInput, WireError
from rollcall.cluster.messages.attempt import EpisodeStats, Header, ShardPayload, Ticket
from rollcall.cluster.messages.events import Event, TicketFailed, TicketProduced, TicketRefused
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.messages.wire import to_bytes
from rollcall.deploy.gateway import deadlines
from rollcall.deploy.gateway.desk import Desk
from rollcall.deploy.gateway.handler import Served
from rollcall.deploy.gateway.rules import TrajectoryRules
from rollcall.deploy.gateway.server import Gateway
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.control.outside import config_told
from rollcall.learners.collective import Collective
from tests.runs import SMALL, config_of

TOKEN = "a-token-of-many-letters"
OUTSIDE = (*SMALL, "runtime=serial", "learner.compile=off", "actors.num=0", "actors.outside.num_shards=4")


@dataclass
class Open:
    """A gateway with one run's desk, and what the run has made for it."""

    desk: Desk
    gateway: Gateway
    factory: ControlFactory
    weights: Weights
    counted: list[tuple[str, int, str]]
    clients: list[GatewayClient] = field(default_factory=list)

    def client(self) -> GatewayClient:
        self.clients.append(GatewayClient(self.gateway.url, TOKEN))
        return self.clients[-1]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.gateway.url.removeprefix("http://").split(":")
        return host, int(port)

    def post_head(self, acting: Acting, lease: Leased, length: int) -> bytes:
        actor = acting.client._actor[protocol.ACTOR_HEADER]
        head = f"POST /v1/trajectory HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nRollcall-Protocol: 1\r\n"
        head += f"Rollcall-Actor: {actor}\r\nRollcall-Lease: {lease.secret}\r\nContent-Length: {length}\r\n\r\n"
        return head.encode()

    def issue(self, *numbers: int, epoch: int = 1) -> None:
        self.desk.submit([ticket(number, epoch=epoch) for number in numbers])

    def events(self) -> list[Event]:
        return self.desk.take(0.0)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request, of whatever kind."""
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        usual = {"Authorization": f"Bearer {TOKEN}", "Rollcall-Protocol": "1"}
        try:
            connection.request(method, path, body or None, usual | named)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


def ticket(number: int, *, epoch: int = 1) -> Ticket:
    return Ticket(
        header=Header(number, 1, epoch, "policy"),
        seed=number,
        min_policy_version=0,
        lane=number % 4,
        payload=ShardPayload(number % 4, 0, "fragment"),
        deadline_s=60.0,
    )


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> ControlFactory:
    return ControlFactory(config_of("cartpole-ppo", OUTSIDE), tmp_path_factory.mktemp("run"))


@pytest.fixture
def opened(factory: ControlFactory) -> Iterator[Open]:
    outside = factory.outside
    assert outside is not None
    weights = factory.learner(Collective()).weights(epoch=1, version=0)
    desk = Desk(max_actors=2, lease_s=30.0)
    counted: list[tuple[str, int, str]] = []
    served = Served(
        desk,
        TrajectoryRules(outside),
        token=TOKEN.encode(),
        run=outside.told,
        max_body_bytes=1 << 20,
        count=lambda *what: counted.append(what),
    )
    gateway = Gateway(served, address=("127.0.0.1", 0), max_actors=2)
    gateway.serve(weights)
    desk.published(1, 0)
    found = Open(desk, gateway, factory, weights, counted)
    yield found
    desk.close()
    gateway.close()
    for client in found.clients:
        client.close()


@dataclass
class Acting:
    """An actor that has joined, as `rollcall actor` makes it."""

    client: GatewayClient
    actor: GymActor

    def experience(self, leased: Leased) -> OutsideExperience:
        produced, trajectory = self.actor.produce(leased.ticket)
        assert isinstance(trajectory, GymTrajectory)
        return OutsideExperience(trajectory, produced.episodes, produced.timing)


@pytest.fixture
def acting(opened: Open) -> Iterator[Acting]:
    client = opened.client()
    joined = client.join("here")
    factory = ControlFactory(config_told(joined.run), Path())
    actor = factory.actor(joined.actor_id, HttpWeights(client))
    yield Acting(client, actor)
    actor.close()


def one_line(body: bytes) -> dict[str, Any]:
    assert body.count(b"\n") == 0 and len(body) < 1000
    said: dict[str, Any] = json.loads(body)
    assert said["protocol"] == 1 and said["error"] and said["detail"]
    return said


def test_what_is_posted_under_a_lease_is_what_the_driver_is_told_and_nothing_else(opened: Open, acting: Acting) -> None:
    opened.issue(0)
    leased = acting.client.lease(0.0)
    experience = acting.experience(leased)
    acting.client.post(leased.secret, experience)
    (event,) = opened.events()
    assert isinstance(event, TicketProduced) and isinstance(event.handle, GymTrajectory)
    assert event.handle.digest() == experience.trajectory.digest()
    assert event.produced.header == Header(0, 1, 1, "policy", "outside-1") == event.handle.header
    assert event.produced.num_steps == event.handle.num_steps and event.produced.min_policy_version == 0
    assert event.produced.episodes == experience.episodes


def test_an_outside_actor_makes_the_bits_that_the_runs_own_makes(opened: Open, acting: Acting) -> None:
    opened.issue(2)
    mine = acting.experience(acting.client.lease(0.0)).trajectory

    class Here:
        def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
            return opened.weights

    _, own = opened.factory.actor("gym-0", Here()).produce(ticket(2))
    assert mine.digest() == own.digest()


def test_whoever_asks_again_is_given_the_same_ticket(opened: Open, acting: Acting) -> None:
    opened.issue(0, 1)
    assert acting.client.lease(0.0) == acting.client.lease(0.0)


def test_a_second_post_is_answered_as_the_first_and_counted_once(opened: Open, acting: Acting) -> None:
    opened.issue(0)
    leased = acting.client.lease(0.0)
    experience = acting.experience(leased)
    for _ in range(2):
        acting.client.post(leased.secret, experience)
    assert [type(event) for event in opened.events()] == [TicketProduced]
    assert ("trajectory", 200, "repeated") in opened.counted


def test_a_late_post_is_refused_and_booked(opened: Open, acting: Acting) -> None:
    opened.issue(0)
    leased = acting.client.lease(0.0)
    experience = acting.experience(leased)
    opened.issue(1, epoch=2)  # a restore
    with pytest.raises(GatewayRefuses, match="late") as refused:
        acting.client.post(leased.secret, experience)
    assert refused.value.status == 409
    (event,) = opened.events()
    assert isinstance(event, TicketRefused) and event.header.key == (0, 1)


def test_a_lease_is_nobody_elses(opened: Open, acting: Acting) -> None:
    opened.issue(0)
    leased = acting.client.lease(0.0)
    experience = acting.experience(leased)
    other = opened.client()
    other.join("other")
    for ask in (lambda: other.post(leased.secret, experience), lambda: other.renew(leased.secret)):
        with pytest.raises(GatewayRefuses, match="lease_unknown"):
            ask()
    assert opened.events() == []
    acting.client.post(leased.secret, experience)


def test_weights_are_sent_once_a_version_and_are_what_was_published(opened: Open, acting: Acting) -> None:
    first = acting.client.weights(None)
    assert first is not None and first.compute_checksum() == opened.weights.checksum
    assert acting.client.weights(first) is None
    assert {spec.name for spec in first.index} == {spec.name for spec in opened.weights.index}


def test_weights_that_were_changed_on_the_way_are_found_out(opened: Open) -> None:
    data = bytearray(weights_to_bytes(opened.weights))
    data[-1] ^= 1
    with pytest.raises(WireError, match="checksum"):
        weights_from_bytes(bytes(data))
    with pytest.raises(WireError):
        weights_from_bytes(bytes(data[:100]))


# What is refused, and leaves the books alone.


@pytest.mark.parametrize("given_token", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_nothing_is_told_without_the_token(opened: Open, given_token: str) -> None:
    for method, path in (("POST", "/v1/join"), ("GET", "/v1/weights"), ("GET", "/nothing")):
        status, headers, body = opened.ask(method, path, Authorization=given_token)
        assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
        assert one_line(body)["error"] == "token"


def test_another_protocol_is_refused_before_anything_else(opened: Open) -> None:
    status, _, body = opened.ask("POST", "/v1/join", b"{}", Rollcall_Protocol="2")
    assert status == 400 and "speaks version 1" in one_line(body)["detail"]


def test_actors_beyond_the_limit_and_those_without_work_are_told_when_to_come_again(
    opened: Open, acting: Acting
) -> None:
    opened.client().join("second")
    status, headers, _ = opened.ask("POST", "/v1/join", b"{}")
    assert status == 429 and int(headers["Retry-After"]) == 30
    began = time.monotonic()
    with pytest.raises(GatewayRefuses, match="no_ticket") as refused:
        acting.client.lease(0.3)
    assert refused.value.status == 503 and refused.value.retry_after_s >= 1
    assert 0.25 < time.monotonic() - began < 5


def test_a_long_poll_is_answered_when_a_ticket_comes_and_when_the_run_ends(opened: Open, acting: Acting) -> None:
    threading.Timer(0.2, opened.issue, [3]).start()
    assert acting.client.lease(20.0).ticket.header.ticket_id == 3
    other = opened.client()
    other.join("other")
    threading.Timer(0.2, opened.desk.close).start()
    with pytest.raises(RunOver):
        other.lease(20.0)


def test_a_body_beyond_the_bound_is_refused_unread(opened: Open, acting: Acting) -> None:
    opened.issue(0)
    lease = acting.client.lease(0.0)
    with socket.create_connection(opened.address, timeout=10) as connection:
        connection.sendall(opened.post_head(acting, lease, 99_999_999_999))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert opened.events() == []


def test_who_sends_a_byte_now_and_then_holds_no_connection(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "REQUEST_S", 0.5)
    began = time.monotonic()
    with socket.create_connection(opened.address, timeout=10) as connection:
        with contextlib.suppress(OSError):
            for byte in b"POST /v1/join HTTP/1.1\r\n" + 100 * b"X: y\r\n":
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b"", "it was closed"
    assert time.monotonic() - began < 5


def test_a_post_that_breaks_off_leaves_the_lease_as_it_was(opened: Open, acting: Acting) -> None:
    opened.issue(0)
    leased = acting.client.lease(0.0)
    experience = acting.experience(leased)
    data = to_bytes(experience)
    with socket.create_connection(opened.address, timeout=10) as connection:
        connection.sendall(opened.post_head(acting, leased, len(data)) + data[: len(data) // 2])
    deadline = time.monotonic() + 10
    while not any(kind == "trajectory" for kind, _, _ in opened.counted):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert opened.events() == []
    acting.client.post(leased.secret, experience)
    assert [type(event) for event in opened.events()] == [TicketProduced]


PATHS = ("/v1/join", "/v1/leave", "/v1/lease", "/v1/renew", "/v1/trajectory", "/v1/weights", "/v1/x", "/")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "BREW"]),
    path=st.sampled_from(PATHS),
    body=st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("wait_s"),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["wait_s", "name"]), inner, max_size=2)
        ),
        max_leaves=5,
    ).map(lambda tree: json.dumps(tree).encode()),
    as_actor=st.booleans(),
    data=st.data(),
)
def test_whatever_comes_is_answered_in_one_line_and_nothing_is_booked(
    opened: Open, acting: Acting, method: str, path: str, body: bytes, as_actor: bool, data: st.DataObject
) -> None:
    for session in list(opened.desk._sessions.values()):
        opened.desk.leave(session)
    acting.client.join("again")
    opened.events()
    if path == "/v1/trajectory" and as_actor:  # under a true lease, what is nearly a record
        opened.issue(0)
        lease = acting.client.lease(0.0)
        whole = bytearray(to_bytes(OutsideExperience(GOOD[0])) if GOOD else b"")
        at = data.draw(st.integers(0, max(0, min(len(whole) - 1, 1500))))
        body = bytes(whole[:at]) + body
    else:
        lease = None
    headers = {"Rollcall_Actor": acting.client._actor[protocol.ACTOR_HEADER]} if as_actor else {}
    headers |= {"Rollcall_Lease": lease.secret} if lease is not None else {}
    status, _, answer = opened.ask(method, path, body, **headers)
    assert status == 200 or 400 <= status < 500 or status == 503, (status, answer)
    if status != 200:
        one_line(answer)
        assert b"Traceback" not in answer
    assert status == 422 or opened.events() == []
    assert not [what for what in opened.counted if what[1] == 500]


# What is a record, and a lie.

GOOD: list[GymTrajectory] = []
Lie = Callable[[GymTrajectory], GymTrajectory]


@pytest.fixture(scope="module", autouse=True)
def good(factory: ControlFactory) -> None:
    weights = factory.learner(Collective()).weights(epoch=1, version=0)

    class Here:
        def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
            return weights

    _, trajectory = factory.actor("gym-0", Here()).produce(ticket(0))
    assert isinstance(trajectory, GymTrajectory)
    GOOD[:] = [trajectory]


def with_steps(**arrays: Callable[[Any], Any]) -> Lie:
    def lie(item: GymTrajectory) -> GymTrajectory:
        steps = item.unroll.steps
        changed = {name: change(getattr(steps, name)) for name, change in arrays.items()}
        return replace(item, unroll=replace(item.unroll, steps=replace(steps, **changed)))

    return lie


def put(value: float, at: Any = (0, 0)) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        copy = array.copy()
        copy[at] = value
        return copy

    return change


LIES: dict[str, Lie] = {
    "was not given policy version 1": lambda item: replace(item, policy_version=1),
    "was not given policy version -1": lambda item: replace(item, policy_version=-1),
    "of another attempt": lambda item: replace(item, header=replace(item.header, attempt=2)),
    "of another shard": lambda item: replace(item, incarnation=7),
    "schema_version": lambda item: replace(item, schema_version=9),
    "reward service's to give": lambda item: replace(item, reward_model_version="mine"),
    "T is 16": lambda item: replace(item, unroll=replace(item.unroll, steps=item.steps.map(lambda a: a[:16].copy()))),
    "B is 1": lambda item: replace(item, unroll=replace(item.unroll, steps=item.steps.map(lambda a: a[:, :1].copy()))),
    "rewards is not finite": with_steps(rewards=put(np.nan)),
    "behaviour_logprobs is not finite": with_steps(behaviour_logprobs=put(-np.inf)),
    "log-probability is above 0": with_steps(behaviour_logprobs=put(0.5)),
    "actions are counted from 0": with_steps(actions=put(2)),
    "actions is int32": with_steps(actions=lambda a: a.astype(np.int32)),
    "rewards is float64": with_steps(rewards=lambda a: a.astype(np.float64)),
    "mask leaves no experience": with_steps(mask=np.zeros_like),
    "observations must be observation": with_steps(observations=lambda o: {"other": o["observation"]}),
    "observations.observation is float32[32, 2, 3]": with_steps(
        observations=lambda o: {"observation": o["observation"][..., :3].copy()}
    ),
    "observations.observation is not finite": with_steps(
        observations=lambda o: {"observation": put(np.nan, (3, 1, 2))(o["observation"])}
    ),
    "final_index": lambda item: replace(
        item, unroll=replace(item.unroll, final_index=np.zeros((len(item.unroll.final_index) + 1, 2), np.int64))
    ),
    "action_mask goes with an env that masks actions": lambda item: replace(
        item, unroll=replace(item.unroll, steps=replace(item.steps, action_mask=np.ones((32, 2, 2), bool)))
    ),
    "recurrent policy": lambda item: replace(
        item, unroll=replace(item.unroll, initial_recurrent_state=np.zeros((1, 2, 8), np.float32))
    ),
}


@pytest.mark.parametrize("reason", LIES)
def test_a_lie_is_dropped_and_booked_with_its_reason(opened: Open, acting: Acting, reason: str) -> None:
    opened.issue(0)
    leased = acting.client.lease(0.0)
    honest = acting.experience(leased)
    with pytest.raises(GatewayRefuses) as refused:
        acting.client.post(leased.secret, OutsideExperience(LIES[reason](honest.trajectory)))
    assert refused.value.status == 422 and reason in str(refused.value)
    (event,) = opened.events()
    assert isinstance(event, TicketFailed) and event.reason == "invalid" and reason in event.detail
    assert event.state_lost


@pytest.mark.parametrize(
    "episodes", [100 * (EpisodeStats(1.0, 1),), (EpisodeStats(float("nan"), 1),), (EpisodeStats(1.0, 0),)]
)
def test_episodes_that_cannot_have_ended_are_a_lie_too(
    opened: Open, acting: Acting, episodes: tuple[EpisodeStats, ...]
) -> None:
    for number in range(0, 400, 4):  # until one has ended
        opened.issue(number)
        leased = acting.client.lease(0.0)
        experience = acting.experience(leased)
        if experience.episodes:
            break
        acting.client.post(leased.secret, experience)
    with pytest.raises(GatewayRefuses, match="episode"):
        acting.client.post(leased.secret, replace(experience, episodes=episodes))


def test_who_lies_three_times_in_a_row_is_sent_away(opened: Open, acting: Acting) -> None:
    for number in (0, 4, 8):
        opened.issue(number)
        leased = acting.client.lease(0.0)
        lie = replace(GOOD[0], header=leased.ticket.header, incarnation=99)
        with pytest.raises(GatewayRefuses, match="of another shard"):
            acting.client.post(leased.secret, OutsideExperience(lie))
    with pytest.raises(GatewayRefuses, match="actor_unknown"):
        acting.client.lease(0.0)


def test_a_run_whose_modules_are_not_here_is_refused_in_one_line(factory: ControlFactory) -> None:
    assert factory.outside is not None
    told = dict(factory.outside.told)
    told["modules"] = ["envs_of_another_machine"]
    with pytest.raises(BadInput, match="needs its own module 'envs_of_another_machine' here") as refused:
        config_told(told)
    assert "\n" not in str(refused.value)
