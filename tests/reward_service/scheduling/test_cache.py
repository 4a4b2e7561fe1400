"""Scores are computed once: within a service, between services, with a Redis that dies in the middle."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.cluster.store.redis_server import PrivateRedis
from rollcall.reward_service.protocol import ScoreItem, cache_key
from rollcall.reward_service.scheduling.cache import CacheConfig, LocalCache, RedisCache, _decoded, _encoded, open_cache
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scorer import Score
from tests.reward_service.live_service import Scorers, ScriptedScorer, body, client_of, item, metric, ready
from tests.waiting import eventually


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis(tmp_path / "redis", tmp_path / "redis.log", start_timeout_s=20)
    server.start()
    yield server
    server.stop()


def url_of(server: PrivateRedis) -> str:
    return server.url


def score_of(http: httpx.Client, *values: object) -> list[float]:
    return [result["score"] for result in http.post("/v1/score", json=body(*values)).json()["results"]]


def test_what_was_scored_is_not_computed_again_whatever_it_is_called() -> None:
    scorer = ScriptedScorer()
    with ready(Scorers(main=scorer)) as (_, http):
        assert score_of(http, 1, 2) == [1, 2] and scorer.num_scored == 2
        assert score_of(http, 2, 1, 3) == [2, 1, 3] and scorer.num_scored == 3
        assert metric(http, 'rollcall_reward_cache_total{outcome="hit"}') == 2
        assert metric(http, 'rollcall_reward_cache_total{outcome="miss"}') == 3


def test_the_same_item_asked_for_by_many_at_once_is_computed_once() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    scores: list[float | None] = []
    with ready(Scorers(main=scorer)) as (server, http), client_of(server) as client:

        def ask() -> None:
            answer = client.score([item(7, name="a"), item(7, name="b")])
            scores.extend(result.score for result in answer.results)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: metric(http, 'rollcall_reward_cache_total{outcome="joined"}') == 15)
        scorer.gate.set()
        for thread in threads:
            thread.join(10)
    assert scores == [7.0] * 16 and scorer.num_scored == 1


def test_who_joins_an_item_gets_its_score_though_the_one_who_asked_first_has_left() -> None:
    scorer = ScriptedScorer()
    scorer.gate.clear()
    with ready(Scorers(main=scorer), batching={"max_batch_items": 1}) as (server, http), client_of(server) as client:
        blocker = threading.Thread(target=client.score, args=([item(0)],))
        blocker.start()
        assert scorer.computing.wait(10)
        impatient: list[int] = []

        def hurry() -> None:
            url = f"{server.url}/v1/score"
            impatient.append(httpx.post(url, json=body(7, deadline_ms=400), timeout=20).status_code)

        first = threading.Thread(target=hurry)
        first.start()
        eventually(lambda: metric(http, 'rollcall_reward_queue_items{model="main"}') == 1)
        patient: list[float | None] = []
        second = threading.Thread(target=lambda: patient.append(client.score([item(7)]).results[0].score))
        second.start()
        first.join(10)
        assert impatient == [504]
        scorer.gate.set()
        second.join(10)
        blocker.join(10)
    assert patient == [7.0] and scorer.num_scored == 2


def test_a_scorer_that_says_another_thing_each_time_is_asked_each_time() -> None:
    scorer = ScriptedScorer(cacheable=False)
    with ready(Scorers(main=scorer)) as (_, http):
        assert score_of(http, 5) == score_of(http, 5) == [5]
        assert scorer.num_scored == 2


def test_the_least_recently_used_scores_are_forgotten_first_and_old_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        cache = LocalCache(CacheConfig(max_bytes=900, ttl_s=10), ServiceMetrics())
        await cache.put({"a": Score(1.0)})
        await cache.put({"b": Score(2.0)})
        assert await cache.get(["a"]) == [Score(1.0)]
        await cache.put({"c": Score(3.0)})
        assert await cache.get(["a", "b", "c"]) == [Score(1.0), None, Score(3.0)]
        later = time.monotonic() + 11
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert await cache.get(["a", "c"]) == [None, None]

    asyncio.run(check())


def test_two_services_share_scores_through_redis_and_compute_each_item_once(redis_server: PrivateRedis) -> None:
    """The second one waits while the first computes, instead of computing too."""
    first, second = ScriptedScorer(), ScriptedScorer()
    first.gate.clear()
    settings: dict[str, Any] = {"redis": {"url": url_of(redis_server)}}
    with (
        ready(Scorers(main=first), **settings) as (one, http_one),
        ready(Scorers(main=second), **settings) as (two, http),
    ):
        scores: list[float | None] = []
        with client_of(one) as client_one, client_of(two) as client_two:
            asking = [
                threading.Thread(target=lambda c=c: scores.append(c.score([item(7)]).results[0].score))  # type: ignore[misc]
                for c in (client_one, client_two)
            ]
            asking[0].start()
            assert first.computing.wait(10)
            asking[1].start()
            eventually(lambda: metric(http, 'rollcall_reward_cache_total{outcome="miss"}') > 2)
            first.gate.set()
            for thread in asking:
                thread.join(10)
        assert scores == [7.0, 7.0]
        assert score_of(http, 7) == score_of(http_one, 7) == [7.0]
        assert (first.num_scored, second.num_scored) == (1, 0)


def test_a_service_that_died_while_it_computed_is_not_waited_for_longer_than_its_lock(
    redis_server: PrivateRedis,
) -> None:
    scorer = ScriptedScorer()
    thing = ScoreItem(id="0", prompt="p", response="7")
    client = redis_server.client(1.0)
    settings: dict[str, Any] = {"redis": {"url": url_of(redis_server)}, "cache": {"lock_s": 0.5}}
    with ready(Scorers(main=scorer), **settings) as (_, http):
        key = cache_key("scripted-0", thing)
        assert client.set(f"rollcall:reward:lock:{key}", "1", px=500)
        began = time.monotonic()
        assert score_of(http, 7) == [7.0]
        assert 0.3 < time.monotonic() - began < 5
    assert not client.exists(f"rollcall:reward:lock:{key}")
    client.close()


def test_a_redis_that_dies_fails_nothing_and_slows_nothing_and_is_used_again_when_it_is_back(
    redis_server: PrivateRedis,
) -> None:
    scorer = ScriptedScorer()
    with ready(Scorers(main=scorer), redis={"url": url_of(redis_server)}) as (_, http):
        assert score_of(http, 1) == score_of(http, 1) == [1] and scorer.num_scored == 1
        os.kill(redis_server.pid, 9)
        began = time.monotonic()
        for value in range(10, 40):
            assert score_of(http, value) == [value]
        without_s = time.monotonic() - began
        assert without_s < 30 * 0.1, "30 requests would take 30 timeouts"
        assert metric(http, 'rollcall_reward_cache_total{outcome="error"}') >= 1
        eventually(lambda: not redis_server.alive())
        redis_server.start()

        def kept() -> bool:
            time.sleep(0.2)
            before = scorer.num_scored
            return score_of(http, 500) == score_of(http, 500) == [500] and scorer.num_scored == before

        eventually(kept, 20)


def test_a_redis_that_never_answers_costs_one_timeout_and_not_one_per_request() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        scorer = ScriptedScorer()
        with ready(Scorers(main=scorer), redis={"url": url}, cache={"timeout_s": 0.2}) as (_, http):
            began = time.monotonic()
            for value in range(15):
                assert score_of(http, value) == [value]
            assert time.monotonic() - began < 15 * 0.2


@pytest.mark.parametrize(
    "text",
    [b"", b"nonsense", b"[1]", b"7", b"[NaN, {}, null]", b"[1e999, {}, null]", b'["x", {}, null]', b"[1, [], null]",
     b'[1, {"a": NaN}, null]', b"[1, {}, [Infinity]]", b"[1, {}, 3]", b"\x80\x04K\x01."],
)  # fmt: skip
def test_what_is_no_score_in_redis_is_not_one_for_us(text: bytes) -> None:
    assert _decoded(text) is None


def test_a_score_comes_back_from_redis_as_it_was() -> None:
    for score in (Score(0.1 + 0.2), Score(-1e-300, {"a": 1.5}, (0.25, 1e17))):
        assert _decoded(_encoded(score)) == score


def test_rubbish_under_a_key_is_computed_again_and_counted(redis_server: PrivateRedis) -> None:
    scorer = ScriptedScorer()
    key = cache_key("scripted-0", ScoreItem(id="0", prompt="p", response="7"))
    client = redis_server.client(1.0)
    client.set(f"rollcall:reward:score:{key}", "[NaN, {}, null]")
    with ready(Scorers(main=scorer), redis={"url": url_of(redis_server)}) as (_, http):
        assert score_of(http, 7) == [7.0] and scorer.num_scored == 1
        assert metric(http, 'rollcall_reward_cache_total{outcome="invalid"}') >= 1
        eventually(lambda: client.get(f"rollcall:reward:score:{key}") == '[7.0, {"raw": 7.0}, null]')
    client.close()


def test_a_wrong_password_is_the_users_to_fix_and_is_not_shown(redis_server: PrivateRedis) -> None:
    async def check() -> None:
        await open_cache(CacheConfig(), f"unix://:wrong@{redis_server.socket_path}", ServiceMetrics())

    with pytest.raises(BadInput, match="refuses us") as caught:
        asyncio.run(check())
    assert "wrong@" not in str(caught.value)
    with pytest.raises(BadInput, match="not a Redis url"):
        RedisCache("http://nowhere", CacheConfig(), ServiceMetrics())


def test_components_and_steps_survive_the_cache() -> None:
    class Stepwise(ScriptedScorer):
        def one(self, item: ScoreItem) -> Any:
            return Score(3.0, {"a": 1.0}, (1.0, 2.0))

    with ready(Scorers(main=Stepwise())) as (_, http):
        first, second = (http.post("/v1/score", json=body(1)).json()["results"][0] for _ in range(2))
        assert first == second and first["step_scores"] == [1.0, 2.0] and first["components"] == {"a": 1.0}
