"""The service over a real port: every status that it has, and that it goes on answering after each."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ErrorBody, ScoreResponse
from rollcall.reward_service.service.server import Server
from rollcall.reward_service.service.service_config import ServiceConfig
from tests.reward_service.live_service import (
    TOKEN,
    Scorers,
    ScriptedScorer,
    body,
    client_of,
    metric,
    ready,
    serving,
)
from tests.waiting import eventually

Live = tuple[Server, httpx.Client]
SEGMENT = {
    "observations": {"dtype": "float32", "shape": [2, 1], "content": "AAAAAAAAAAA="},
    "actions": {"dtype": "int64", "shape": [2], "content": "AAAAAAAAAAAAAAAAAAAAAA=="},
}


@pytest.fixture(scope="module")
def scorer() -> ScriptedScorer:
    return ScriptedScorer()


@pytest.fixture(scope="module")
def live(scorer: ScriptedScorer) -> Iterator[Live]:
    limits = {"intake": {"max_body_bytes": 20_000}, "requests": {"max_items": 50, "max_tokens": 500}}
    with ready(Scorers(main=scorer, second=ScriptedScorer(100)), token=TOKEN, default_model="main", **limits) as found:
        yield found


def is_refused(response: httpx.Response, status: int, kind: str) -> str:
    """An ErrorBody, whatever went wrong; says the message."""
    assert response.status_code == status, response.text
    found = ErrorBody.model_validate_json(response.content)
    assert found.kind == kind
    return found.message


def one(**fields: Any) -> dict[str, Any]:
    return {"request_id": "r", "items": [{"id": "x", "prompt": "p", "response": "1", **fields}]}


def test_items_are_scored_in_their_order_by_the_model_asked_for_or_by_the_default(live: Live) -> None:
    _, http = live
    answer = ScoreResponse.model_validate_json(http.post("/v1/score", json=body(3, 1, 2)).content)
    assert [(result.id, result.score) for result in answer.results] == [("0", 3.0), ("1", 1.0), ("2", 2.0)]
    assert (answer.request_id, answer.model, answer.model_version) == ("r", "main", "scripted-0")
    assert answer.results[0].components == {"raw": 3.0}
    second = http.post("/v1/score", json=body(3, model="second")).json()
    assert second["results"][0]["score"] == 103.0 and second["model_version"] == "scripted-100"


def test_what_is_wrong_with_one_item_is_that_items_error_and_never_a_score(live: Live, scorer: ScriptedScorer) -> None:
    """The poisoned one spoils its batch; its neighbours are tried again, each alone, once."""
    _, http = live
    before = metric(http, 'rollcall_reward_batch_retries_total{model="main"}')
    results = http.post("/v1/score", json=body(41, "raise", 42, "unsupported", "nan", "inf")).json()["results"]
    assert [result["score"] for result in results] == [41.0, None, 42.0, None, None, None]
    assert [(result["error"] or {}).get("kind") for result in results] == [
        *(None, "scorer_failed", None, "unsupported", "non_finite", "non_finite")
    ]
    assert "poison" in results[1]["error"]["message"]
    assert metric(http, 'rollcall_reward_batch_retries_total{model="main"}') == before + 1
    assert metric(http, 'rollcall_reward_items_total{model="main",outcome="non_finite"}') == 2


def test_errors_are_not_remembered(live: Live, scorer: ScriptedScorer) -> None:
    _, http = live
    for _ in range(2):
        before = scorer.num_scored
        assert http.post("/v1/score", json=body("unsupported")).json()["results"][0]["error"]
        assert scorer.num_scored == before + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"request_id": "\\ud800", "items": []}',
        b'{"request_id": "r", "items": [{"id": "x", "prompt": "p", "response": "1", "metadata": {"a": NaN}}]}',
        b'{"request_id": "r", "items": [{"id": "x", "prompt": "p", "response": "1", "metadata": {"a": [-Infinity]}}]}',
        b'{"request_id": "r", "items": [{"id": "x", "prompt": "p", "response": "1", "metadata": {"a": 1e999}}]}',
        b'{"request_id": ' + b"[" * 9000,
        b'{"request_id": ' + b'{"a":' * 3000,
        b'{"request_id": ' + b"9" * 9000 + b"}",
    ],
    ids=["empty", "cut", "bytes", "surrogate", "nan", "infinity", "overflow", "nested", "nested-object", "huge-number"],
)
def test_what_is_no_json_is_refused(live: Live, content: bytes) -> None:
    _, http = live
    is_refused(http.post("/v1/score", content=content), 422, "malformed")
    assert http.post("/v1/score", json=body(1)).status_code == 200


def array(dtype: str = "float32", shape: object = (1, 1), content: str = "AAAAAA==") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "content": content}


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ([], "body: Input should be an object"),
        ({"request_id": "r", "items": []}, "items: "),
        ({"items": one()["items"]}, "request_id: "),
        (one() | {"deadline_ms": 0}, "deadline_ms: "),
        (one() | {"surprise": 1}, "surprise: "),
        (one(token_ids=[1]), "items.0: one of prompt, messages, token_ids and segment"),
        (one(response=None), "items.0: a response is needed"),
        ({"request_id": "r", "items": one()["items"] * 2}, "items: two items have the same id"),
        (one(prompt=None, response=None, segment=SEGMENT | {"actions": array("complex64")}), "segment.actions.dtype"),
        (one(prompt=None, response=None, segment=SEGMENT | {"actions": array("int64")}), "segment.actions"),
        (one(prompt=None, response=None, segment=SEGMENT | {"actions": array("int32", [1])}), "begin with the same"),
        (
            one(
                prompt=None,
                response=None,
                segment={"observations": array(), "actions": array("int32", [1], "!!!!!!==")},
            ),
            "not base64",
        ),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_and_the_place_is_named(live: Live, wrong: object, where: str) -> None:
    _, http = live
    assert where in is_refused(http.post("/v1/score", json=wrong), 422, "schema")


def test_a_refusal_does_not_repeat_what_was_sent(live: Live) -> None:
    _, http = live
    message = is_refused(http.post("/v1/score", json=one(prompt=["secret" * 1000])), 422, "schema")
    assert "secret" not in message


def test_segments_are_scored_like_texts(live: Live) -> None:
    _, http = live
    answer = http.post("/v1/score", json=one(prompt=None, response=None, segment=SEGMENT))
    assert answer.json()["results"][0]["score"] == 0.0


def test_an_unknown_model_is_named_with_those_that_there_are(live: Live) -> None:
    _, http = live
    assert "main, second" in is_refused(http.post("/v1/score", json=body(1, model="mian")), 404, "unknown_model")


def test_unknown_paths_and_methods_have_an_error_body_too(live: Live) -> None:
    _, http = live
    is_refused(http.get("/v1/nothing"), 404, "not_found")
    is_refused(http.get("/v1/score"), 405, "method_not_allowed")


def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(live: Live) -> None:
    _, http = live
    is_refused(http.post("/v1/score", content=b"{" * 20_001), 413, "too_large")
    is_refused(http.post("/v1/score", content=b"{" * 5_000_000), 413, "too_large")
    assert http.post("/v1/score", json=body(1)).status_code == 200


def test_a_body_without_a_length_is_measured_as_it_comes(live: Live) -> None:
    _, http = live
    is_refused(http.post("/v1/score", content=(b"{" * 1000 for _ in range(30))), 413, "too_large")
    whole = json.dumps(body(1)).encode()
    assert http.post("/v1/score", content=(whole[i : i + 10] for i in range(0, len(whole), 10))).status_code == 200


def test_too_many_items_or_tokens_are_refused_as_too_large(live: Live) -> None:
    _, http = live
    is_refused(http.post("/v1/score", json=body(*range(51))), 413, "too_many_items")
    is_refused(http.post("/v1/score", json=one(metadata={"cost": 501})), 413, "too_many_tokens")


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer", ""])
def test_a_missing_or_wrong_token_is_refused(live: Live, header: str | None) -> None:
    server, _ = live
    headers = {} if header is None else {"authorization": header}
    for method, path in (("POST", "/v1/score"), ("GET", "/v1/models"), ("POST", "/v1/models/main:load")):
        response = httpx.request(method, server.url + path, json=body(1), headers=headers)
        is_refused(response, 401, "unauthorised")
        assert response.headers["www-authenticate"] == "Bearer"


def test_health_metrics_and_documents_need_no_token(live: Live) -> None:
    server, _ = live
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert httpx.get(server.url + path).status_code == 200


def test_metrics_are_behind_the_token_where_the_operator_wants_it() -> None:
    with ready(Scorers(main=ScriptedScorer()), token=TOKEN, open_metrics=False) as (server, http):
        assert http.get("/metrics").status_code == 200
        is_refused(httpx.get(server.url + "/metrics"), 401, "unauthorised")


def test_without_a_token_only_loopback_is_served_and_pages_of_other_origins_are_not() -> None:
    with pytest.raises(BadInput, match="a token is needed"):
        Server(ServiceConfig.model_validate({"host": "0.0.0.0", "port": 0}))
    with ready(Scorers(main=ScriptedScorer())) as (server, http):
        assert http.post("/v1/score", json=body(1)).status_code == 200
        is_refused(http.post("/v1/score", json=body(1), headers={"origin": "http://evil.example"}), 403, "forbidden")
        is_refused(http.post("/v1/score", json=body(1), headers={"host": "evil.example"}), 403, "forbidden")
        assert http.post("/v1/score", json=body(1), headers={"origin": server.url}).status_code == 200


def test_the_models_are_listed_with_what_they_take(live: Live) -> None:
    _, http = live
    models = {model["name"]: model for model in http.get("/v1/models").json()["models"]}
    assert models["main"] == {
        **{"name": "main", "kind": "reward_model", "version": "scripted-0"},
        **{"takes": ["text", "segment"], "is_default": True},
    }
    assert not models["second"]["is_default"]


def test_the_document_describes_every_route_and_its_page_loads_nothing_from_elsewhere(live: Live) -> None:
    _, http = live
    document = http.get("/openapi.json").json()
    assert {"/v1/score", "/v1/models", "/v1/models/{name}:load", "/healthz", "/readyz"} <= document["paths"].keys()
    score = document["paths"]["/v1/score"]["post"]
    assert score["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ScoreRequest"
    }
    assert {"200", "401", "404", "413", "422", "429", "503", "504"} <= score["responses"].keys()
    references = set(_references(document))
    assert references and all(ref.rpartition("/")[2] in document["components"]["schemas"] for ref in references)
    page = http.get("/docs")
    assert "ScoreItem" in page.text and "http://" not in page.text and "https://" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_a_full_queue_answers_429_and_when_to_come_again() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    with ready(Scorers(main=scorer), batching={"max_queue_items": 2, "max_batch_items": 1}) as (server, http):
        threads = [threading.Thread(target=httpx.post, args=(f"{server.url}/v1/score",), kwargs={"json": body(i)})
                   for i in range(3)]  # fmt: skip
        for thread in threads:
            thread.start()
        eventually(lambda: metric(http, 'rollcall_reward_queue_items{model="main"}') == 2)
        response = http.post("/v1/score", json=body(99))
        is_refused(response, 429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        scorer.gate.set()
        for thread in threads:
            thread.join(10)
        assert http.post("/v1/score", json=body(99)).json()["results"][0]["score"] == 99.0
        assert metric(http, 'rollcall_reward_requests_total{outcome="queue_full",route="score"}') == 1


def test_what_could_only_be_late_is_refused_at_once() -> None:
    """The speed is known from the first batches: 0.05 s an item. Ten wait, so 0.2 s is too little, and 5 s is not."""
    scorer = ScriptedScorer(delay_s=0.05)
    with ready(Scorers(main=scorer), batching={"max_batch_items": 1}) as (server, http):
        assert http.post("/v1/score", json=body(*range(3))).status_code == 200
        crowd = threading.Thread(
            target=httpx.post, args=(f"{server.url}/v1/score",), kwargs={"json": body(*range(10, 30)), "timeout": 20}
        )
        crowd.start()
        eventually(lambda: metric(http, 'rollcall_reward_queue_items{model="main"}') > 10)
        is_refused(http.post("/v1/score", json=body(98, deadline_ms=200)), 429, "queue_full")
        assert http.post("/v1/score", json=body(99, deadline_ms=15_000)).status_code == 200
        crowd.join(20)


def test_past_its_deadline_a_request_gets_504_and_its_items_are_not_computed() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    with ready(Scorers(main=scorer), batching={"max_batch_items": 1}) as (server, http):
        first = threading.Thread(target=httpx.post, args=(f"{server.url}/v1/score",), kwargs={"json": body(0)})
        first.start()
        assert scorer.computing.wait(10)
        began = time.monotonic()
        is_refused(http.post("/v1/score", json=body(1, 2, deadline_ms=150)), 504, "deadline")
        assert 0.1 < time.monotonic() - began < 5
        scorer.gate.set()
        first.join(10)
        assert http.post("/v1/score", json=body(3)).status_code == 200
        assert [item.response for batch in scorer.batches for item in batch] == ["0", "3"]


def test_what_a_client_that_has_left_wanted_is_not_computed() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    with ready(Scorers(main=scorer), batching={"max_batch_items": 1}) as (server, http):
        first = threading.Thread(target=httpx.post, args=(f"{server.url}/v1/score",), kwargs={"json": body(0)})
        first.start()
        assert scorer.computing.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/score", json=body(1, 2), timeout=0.3)
        eventually(lambda: metric(http, 'rollcall_reward_requests_total{outcome="client_gone",route="score"}') == 1)
        assert metric(http, 'rollcall_reward_queue_items{model="main"}') == 0
        scorer.gate.set()
        first.join(10)
        assert http.post("/v1/score", json=body(3)).status_code == 200
        assert [item.response for batch in scorer.batches for item in batch] == ["0", "3"]


def test_a_model_that_hangs_takes_no_more_work_while_the_others_answer() -> None:
    stuck = ScriptedScorer()
    stuck.gate.clear()
    scorers = Scorers(stuck=stuck, well=ScriptedScorer())
    with ready(scorers, batching={"stuck_after_s": 0.2}) as (_, http):
        is_refused(http.post("/v1/score", json=body(1, model="stuck", deadline_ms=100)), 504, "deadline")
        eventually(lambda: http.get("/readyz").status_code == 503)
        assert "stuck: stuck" in http.get("/readyz").text
        response = http.post("/v1/score", json=body(2, model="stuck"))
        is_refused(response, 503, "stuck")
        assert "retry-after" in response.headers
        assert http.post("/v1/score", json=body(1, model="well")).json()["results"][0]["score"] == 1.0
        stuck.gate.set()
        eventually(lambda: http.get("/readyz").status_code == 200)
        assert http.post("/v1/score", json=body(2, model="stuck")).json()["results"][0]["score"] == 2.0


def test_a_service_whose_models_are_loading_says_so() -> None:
    scorers = Scorers(main=ScriptedScorer())
    scorers.gate.clear()
    with serving(scorers) as server, client_of(server) as client, httpx.Client(base_url=server.url) as http:
        assert http.get("/healthz").status_code == 200
        for response in (http.get("/readyz"), http.post("/v1/score", json=body(1))):
            is_refused(response, 503, "loading")
            assert "retry-after" in response.headers
        scorers.gate.set()
        client.wait_ready(10)
        assert http.post("/v1/score", json=body(1)).status_code == 200


def test_a_scorer_that_ends_its_thread_or_answers_nonsense_fails_its_items_only() -> None:
    class Wild(ScriptedScorer):
        def score(self, items: Any) -> Any:
            wish = items[0].response
            if wish == "exit":
                raise SystemExit(3)
            if wish == "few":
                return []
            if wish == "text":
                return [type("Odd", (), {"value": "high", "components": {}, "step_values": None})()]
            return super().score(items)

    with ready(Scorers(main=Wild())) as (_, http):
        for wish in ("exit", "few", "text"):
            result = http.post("/v1/score", json=body(wish)).json()["results"][0]
            assert result["score"] is None and result["error"]["kind"] == "scorer_failed"
        assert http.post("/v1/score", json=body(1)).json()["results"][0]["score"] == 1.0


def test_a_head_without_end_and_a_body_that_never_comes_are_not_waited_for() -> None:
    with ready(Scorers(main=ScriptedScorer()), intake={"body_timeout_s": 0.3}) as (server, http):
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=10) as wire:
            wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 40_000)
            assert wire.recv(100).startswith(b"HTTP/1.1 400")
        with socket.create_connection(address, timeout=10) as wire:
            wire.sendall(b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            assert wire.recv(100).startswith(b"HTTP/1.1 408")
        assert http.post("/v1/score", json=body(1)).status_code == 200


def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollcall.reward_service.service.auth import find_token

    path = tmp_path / "token"
    path.write_text("abc\n")
    path.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        find_token(path)
    path.chmod(0o600)
    found = find_token(path)
    assert found is not None and found.get_secret_value() == "abc" and "abc" not in repr(found)
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN", "from-environment")
    found = find_token(None)
    assert found is not None and found.get_secret_value() == "from-environment"
    assert find_token(None) is None, "children would inherit it"
    path.write_text("\n")
    with pytest.raises(BadInput, match="holds no token"):
        find_token(path)
