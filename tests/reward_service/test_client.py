"""The client against a service that misbehaves: what is tried again, when, with what, and what is never made up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from rollcall.cluster.errors import RewardRefused, RewardTimeout, RewardUnavailable, VersionsMixed
from rollcall.reward_service.client import ClientConfig, RewardClient
from tests.reward_service.live_service import TOKEN, Scorers, ScriptedScorer, client_of, item, ready

Answer = Callable[["Flaky", dict[str, Any]], None]


class Flaky(BaseHTTPRequestHandler):
    """Answers by a script: one entry for each request, the last one again and again."""

    protocol_version = "HTTP/1.1"
    script: list[Answer]
    seen: list[tuple[float, dict[str, Any]]]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((time.monotonic(), asked))
        answer = self.script[min(len(self.seen), len(self.script)) - 1]
        answer(self, asked)

    def say(self, status: int, content: object, **headers: str) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def refuse(status: int, **headers: str) -> Answer:
    return lambda handler, _: handler.say(status, {"kind": "k", "message": "because"}, **headers)


def score(version: str = "v1", value: float = 1.0) -> Answer:
    def answer(handler: Flaky, asked: dict[str, Any]) -> None:
        results = [{"id": each["id"], "score": value} for each in asked["items"]]
        handler.say(
            200, {"request_id": asked["request_id"], "model": "m", "model_version": version, "results": results}
        )

    return answer


def hang_up(handler: Flaky, _: object) -> None:
    handler.close_connection = True
    handler.connection.close()


def never(handler: Flaky, _: object) -> None:
    time.sleep(1.5)


@pytest.fixture
def flaky() -> Iterator[Callable[..., tuple[RewardClient, list[tuple[float, dict[str, Any]]]]]]:
    """A client of a server with a script, and what the server sees."""
    servers, clients = [], []

    def start(*script: Answer, **settings: Any) -> tuple[RewardClient, list[tuple[float, dict[str, Any]]]]:
        seen: list[tuple[float, dict[str, Any]]] = []
        handler = type("Scripted", (Flaky,), {"script": list(script), "seen": seen})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        client = RewardClient(f"http://127.0.0.1:{server.server_port}", config=ClientConfig(**settings))
        servers.append(server)
        clients.append(client)
        return client, seen

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("failure", [refuse(429), refuse(503), refuse(500), refuse(502), hang_up])
def test_what_may_pass_is_tried_again_under_the_same_request_id(flaky: Any, failure: Answer) -> None:
    client, seen = flaky(failure, failure, score())
    assert client.score([item(1)]).results[0].score == 1.0
    assert len(seen) == 3 and len({asked["request_id"] for _, asked in seen}) == 1
    deadlines = [asked["deadline_ms"] for _, asked in seen]
    assert deadlines == sorted(deadlines, reverse=True) and deadlines[0] > deadlines[-1], "what is left of the deadline"


def test_retry_after_is_honoured_and_the_pauses_differ(flaky: Any) -> None:
    client, seen = flaky(refuse(429, retry_after="1"), refuse(503), refuse(503), score())
    client.score([item(1)])
    times = [at for at, _ in seen]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] >= 1.0
    assert 0.05 <= pauses[1] < 2 and 0.1 <= pauses[2] < 2, "exponential, with jitter: 0.1 and 0.2 s, times 0.5 to 1.5"


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 302])
def test_what_will_never_be_taken_is_not_tried_again(flaky: Any, status: int) -> None:
    client, seen = flaky(refuse(status))
    with pytest.raises(RewardRefused, match=f"answers {status}: because"):
        client.score([item(1)])
    assert len(seen) == 1


def test_the_deadline_is_never_passed(flaky: Any) -> None:
    client, _ = flaky(refuse(503, retry_after="30"))
    began = time.monotonic()
    with pytest.raises(RewardUnavailable, match="503"):
        client.score([item(1)], deadline_s=5)
    assert time.monotonic() - began < 2, "30 s are more than there are: it gives up at once"
    client, _ = flaky(refuse(503))
    began = time.monotonic()
    with pytest.raises(RewardUnavailable):
        client.score([item(1)], deadline_s=0.5)
    assert time.monotonic() - began < 2


def test_a_service_that_does_not_answer_in_time_is_a_timeout_and_one_that_is_not_there_is_unavailable(
    flaky: Any,
) -> None:
    client, _ = flaky(never)
    with pytest.raises(RewardTimeout):
        client.score([item(1)], deadline_s=0.3)
    client, _ = flaky(refuse(504))
    with pytest.raises(RewardTimeout):
        client.score([item(1)], deadline_s=0.3)
    with RewardClient("http://127.0.0.1:9") as nobody, pytest.raises(RewardUnavailable, match=r"127\.0\.0\.1:9"):
        nobody.score([item(1)], deadline_s=0.3)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"request_id": "another", "model": "m", "model_version": "v", "results": [{"id": "i1", "score": 0.0}]},
        {"model": "m", "model_version": "v", "results": [{"id": "i2", "score": 0.0}]},
        {"model": "m", "model_version": "v", "results": []},
        {"model": "m", "model_version": "v", "results": [{"id": "i1"}]},
        {"model": "m", "model_version": "v", "results": [{"id": "i1", "score": None}]},
    ],
)
def test_an_answer_to_something_else_is_no_score(flaky: Any, content: Any) -> None:
    def answer(handler: Flaky, asked: dict[str, Any]) -> None:
        handler.say(200, {"request_id": asked["request_id"]} | content if isinstance(content, dict) else content)

    client, _ = flaky(answer)
    with pytest.raises(RewardUnavailable):
        client.score([item(1)], deadline_s=1)


def test_a_long_call_is_cut_into_requests_and_put_together_in_order() -> None:
    scorer = ScriptedScorer()
    with ready(Scorers(main=scorer), token=TOKEN) as (server, _), client_of(server, TOKEN, max_items=7) as client:
        answer = client.score([item(value) for value in range(50)])
        assert [(r.id, r.score) for r in answer.results] == [(f"i{value}", float(value)) for value in range(50)]
        assert {result.components["raw"] for result in answer.results} == set(map(float, range(50)))


def test_what_the_service_finds_too_large_is_halved_until_it_fits() -> None:
    limits: dict[str, Any] = {"requests": {"max_items": 4, "max_tokens": 100}}
    with ready(Scorers(main=ScriptedScorer()), **limits) as (server, _), client_of(server) as client:
        answer = client.score([item(value) for value in range(30)])
        assert [result.score for result in answer.results] == list(map(float, range(30)))
        with pytest.raises(RewardRefused, match="'big' alone is too large"):
            client.score([item(0), item(1, name="big", metadata={"cost": 101}), item(2)])


def test_a_group_torn_apart_by_a_swap_is_scored_again_once_and_then_refused(flaky: Any) -> None:
    client, seen = flaky(score("v1"), score("v2"), score("v2"), max_items=1, max_connections=1)
    answer = client.score_group([item(1), item(2)])
    assert answer.model_version == "v2" and len(answer.results) == 2 and len(seen) == 4
    client, _ = flaky(score("v1"), score("v2"), max_items=1, max_connections=1)
    with pytest.raises(VersionsMixed, match="v1 and v2"):
        client.score([item(1), item(2)])
    client, _ = flaky(score("v1"), score("v2"), score("v2"), score("v3"), max_items=1, max_connections=1)
    with pytest.raises(VersionsMixed, match="v2 and v3"):
        client.score_group([item(1), item(2)])


def test_models_are_listed_and_a_wrong_token_is_refused() -> None:
    with ready(Scorers(main=ScriptedScorer()), token=TOKEN) as (server, _):
        with client_of(server, TOKEN) as client:
            assert [model.name for model in client.models()] == ["main"]
        with client_of(server, "wrong") as client, pytest.raises(RewardRefused, match="401"):
            client.score([item(1)])
        assert "wrong" not in repr(client) and TOKEN not in repr(server)


def test_nothing_and_twice_the_same_id_are_not_asked() -> None:
    with RewardClient("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="items are empty"):
            client.score([])
        with pytest.raises(ValueError, match="same id"):
            client.score([item(1), item(1)])
    with pytest.raises(ValueError, match="must begin with http"):
        RewardClient("localhost:8470")


def test_waiting_for_readiness_ends_at_its_deadline_and_says_why() -> None:
    scorers = Scorers(main=ScriptedScorer())
    scorers.gate.clear()
    from tests.reward_service.live_service import serving

    with serving(scorers) as server, client_of(server) as client:
        with pytest.raises(RewardUnavailable, match="loading main"):
            client.wait_ready(0.4)
        scorers.gate.set()
        client.wait_ready(10)
