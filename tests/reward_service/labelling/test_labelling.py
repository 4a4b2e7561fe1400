"""Labelling over HTTP: every answer of the routes on a real port, clips, and raters that are programs."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from rollcall.cluster.errors import RewardRefused, RewardUnavailable
from rollcall.cluster.store.redis_server import PrivateRedis
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.preferences.clips import MAX_FRAMES, MAX_WIDTH, Clip, RecordedFrames, clip_of, draw
from rollcall.reward_service.preferences.files import PreferencePair, SegmentPair, read_preferences
from rollcall.reward_service.preferences.records import Comparison, SegmentCandidate
from rollcall.reward_service.protocol import ArrayField, Segment
from rollcall.reward_service.raters.rater import label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from tests.reward_service.labelling.label_service import (
    TOKEN,
    Service,
    clips,
    labelling_service,
    private_redis,
    swinging_pole,
    text,
)

ERRORS_OF_A_LABEL: tuple[tuple[dict[str, Any], str], ...] = (
    ({"choice": "up"}, "choice"),
    ({}, "one of choice and ranks"),
    ({"choice": "left", "ranks": [0, 1]}, "one of choice and ranks"),
    ({"ranks": [0, 1, 2]}, "3 ranks for 2"),
    ({"ranks": [0, 2]}, "gap"),
    ({"choice": "left", "duration_s": -1}, "duration_s"),
    ({"choice": "left", "duration_s": 1e9}, "duration_s"),
    ({"choice": "left", "rater": " "}, "rater"),
    ({"choice": "left", "rater": "a\nb"}, "rater"),
    ({"choice": "left", "token": "*"}, "token"),
    ({"choice": "left", "more": 1}, "more"),
)


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"{service.url}/v1/preferences/", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def client(service: Service) -> Iterator[LabelClient]:
    with LabelClient(service.url, TOKEN, deadline_s=20) as client:
        yield client


def lease(http: httpx.Client, rater: str = "ada", **more: Any) -> dict[str, Any]:
    response = http.post("lease", json={"rater": rater, **more})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["lease"]
    return found


def post_label(http: httpx.Client, token: str, /, **said: Any) -> httpx.Response:
    return http.post("labels", json={"token": token, "rater": "ada", "duration_s": 1.5} | said)


# The routes.


def test_a_label_goes_from_the_screen_to_the_file(http: httpx.Client, service: Service) -> None:
    service.store.add([text(1, question="Which is shorter?", secret="never shown")])
    shown = lease(http)
    assert shown["question"] == "Which is shorter?" and "never shown" not in json.dumps(shown)
    chosen = shown["candidates"][1]["response"]
    response = post_label(http, shown["token"], choice="right")
    assert response.json() == {"progress": {"comparisons": 1, "labels": 1, "waiting": 0, "today": 1}}
    lines = http.get("labelled").json()
    assert lines["next"] == 1
    [line] = lines["preferences"]
    assert (line["prompt"], line["chosen"], line["rater"], line["duration_s"]) == ("prompt 1", chosen, "ada", 1.5)
    exported = service.store.directory / "export.jsonl"
    exported.write_text(http.get("export").text)
    [preference] = read_preferences(exported)
    assert isinstance(preference, PreferencePair) and preference.chosen == chosen


def test_a_label_for_an_expired_foreign_or_used_lease_is_refused_with_409(redis: PrivateRedis, tmp_path: Path) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        labelling_service(redis, tmp_path, lease_ttl_s=0.3) as service,
        httpx.Client(base_url=f"{service.url}/v1/preferences/", headers=headers) as http,
    ):
        service.store.add([text(1), text(2)])
        late = lease(http)["token"]
        time.sleep(0.35)
        refused = post_label(http, late, choice="left")
        assert refused.status_code == 409 and refused.json()["kind"] == "lease_lost"
        mine = lease(http)["token"]
        assert post_label(http, mine, choice="left", rater="bob").status_code == 409
        assert post_label(http, mine, choice="left").status_code == 200
        assert post_label(http, mine, choice="left").status_code == 200  # an answer lost on its way is asked again
        assert post_label(http, mine, choice="right").status_code == 409
        assert post_label(http, "9-0123456789abcdef", choice="left").status_code == 409
        assert len(service.store.books().standing()) == 1


def test_what_is_no_label_is_refused_with_422_and_the_lease_stays(http: httpx.Client, service: Service) -> None:
    service.store.add([text(1)])
    token = lease(http)["token"]
    for wrong, why in ERRORS_OF_A_LABEL:
        refused = post_label(http, token, **wrong)
        assert refused.status_code == 422 and why in refused.json()["message"], (wrong, refused.text)
    assert post_label(http, token, choice="skip").status_code == 200


def test_nothing_is_said_without_the_token_but_the_page(service: Service) -> None:
    with httpx.Client(base_url=service.url) as http:
        page = http.get("/label")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy
        for method, path in (
            ("POST", "lease"),
            ("POST", "labels"),
            ("POST", "comparisons"),
            ("POST", "withdraw"),
            ("GET", "export"),
            ("GET", "labelled"),
            ("GET", "clips/1-0123456789abcdef/0"),
        ):
            assert http.request(method, f"/v1/preferences/{path}").status_code == 401, path


def test_a_comparison_that_cannot_be_compared_is_refused_and_nothing_is_queued(
    http: httpx.Client, service: Service
) -> None:
    good = text(1).model_dump(mode="json", exclude_none=True)["candidates"]
    segment = {"segment": swinging_pole(0).model_dump(mode="json"), "env_id": "CartPole-v1"}
    unknown_clip = [segment | {"clip": "0" * 32}, {**segment, "segment": swinging_pole(1).model_dump(mode="json")}]
    for candidates, why in (
        ([good[0], good[0]], "the same"),
        ([good[0]], "2"),
        ([good[0], {"prompt": "another", "response": "x"}], "different prompts"),
        (unknown_clip, "no clip"),
    ):
        refused = http.post("comparisons", json={"comparisons": [{"candidates": good}, {"candidates": candidates}]})
        assert refused.status_code == 422 and why in refused.json()["message"], refused.text
    assert http.get("progress", params={"rater": "ada"}).json()["comparisons"] == 0
    added = http.post("comparisons", json={"comparisons": [{"candidates": good}, {"candidates": good[::-1]}]})
    assert added.json() == {"ids": [text(1).id] * 2, "new": 1}


def test_a_redis_that_is_away_is_503_and_the_service_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with private_redis(tmp_path / "redis") as redis, labelling_service(redis, tmp_path) as service:
        service.store.add([text(1)])
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"{service.url}/v1/preferences/", headers=headers) as http:
            assert redis._process is not None
            redis._process.kill()
            redis._process.wait()
            away = http.post("lease", json={"rater": "ada"})
            assert away.status_code == 503 and int(away.headers["retry-after"]) > 0
            redis.start()
            assert post_label(http, lease(http)["token"], choice="tie").status_code == 200


# Clips.


def picture(clip: Clip) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(clip.image))).convert("RGB")


def frame(clip: Clip, index: int) -> np.ndarray[Any, Any]:
    x, y = index % clip.columns * clip.width, index // clip.columns * clip.height
    return np.asarray(picture(clip).crop((x, y, x + clip.width, y + clip.height)))


def test_a_clip_shows_the_states_that_were_seen() -> None:
    leaning = np.zeros((3, 4), np.float32)
    leaning[:, 0], leaning[:, 2] = [-2.0, 0.0, 2.0], [0.0, 0.0, 1.2]
    segment = Segment(observations=ArrayField.of(leaning), actions=ArrayField.of(np.zeros(3, np.int64)))
    clip = draw(segment, env_id="CartPole-v1")
    assert (clip.num_frames, clip.fps, clip.caption) == (2, 25.0, "CartPole-v1, 3 steps")  # 50 a second, every other
    carts = [np.argwhere((frame(clip, i) < 40).all(axis=-1))[:, 1].mean() / clip.width for i in range(2)]
    assert carts[0] == pytest.approx(0.5 - 2.0 / 4.8, abs=0.02) and carts[1] == pytest.approx(0.5 + 2.0 / 4.8, abs=0.02)


@pytest.mark.parametrize(
    ("env_id", "seen", "caption"),
    [
        ("Pendulum-v1", np.tile(np.array([0.6, 0.8, 1.0], np.float32), (4, 1)), "Pendulum-v1, 4 steps"),
        ("Acrobot-v1", np.tile(np.array([1, 0, 0.6, 0.8, 0, 1], np.float32), (4, 1)), "Acrobot-v1, 4 steps"),
        ("MountainCar-v0", np.tile(np.array([-0.5, 0.01], np.float32), (4, 1)), "MountainCar-v0, 4 steps"),
        ("CartPole-v1", np.zeros((4, 8), np.float32), "plot"),  # not the env's own observation
        ("os:system", np.zeros((4, 3), np.float32), "plot"),  # a name is never imported
        (None, np.zeros((4, 2, 5), np.float64), "plot"),
        (None, np.zeros((1, 1), np.int64), "plot"),
        ("ALE/Pong-v5", np.full((4, 4, 84, 84), 7, np.uint8), "what was seen"),
        (None, np.full((4, 64, 48, 3), 7, np.uint8), "what was seen"),
    ],
)
def test_every_segment_has_a_picture(env_id: str | None, seen: np.ndarray[Any, Any], caption: str) -> None:
    actions = np.zeros((len(seen), 1), np.float32)
    segment = Segment(observations=ArrayField.of(seen), actions=ArrayField.of(actions))
    clip = draw(segment, env_id=env_id, beside=[segment])
    assert caption in clip.caption and f"{len(seen)} steps" in clip.caption
    assert clip.width <= MAX_WIDTH and picture(clip).size[0] == clip.columns * clip.width
    drawn = frame(clip, clip.num_frames - 1)
    assert seen.dtype == np.uint8 or drawn.std() > 1  # something is drawn


def test_a_long_clip_keeps_its_length_in_seconds() -> None:
    clip = clip_of(np.zeros((1000, 40, 60, 3), np.uint8), fps=30.0, caption="")
    assert clip.num_frames <= MAX_FRAMES
    assert clip.num_frames / clip.fps == pytest.approx(1000 / 30.0, rel=0.02)


def test_the_clips_of_a_lease_are_those_of_its_places(http: httpx.Client, service: Service) -> None:
    service.store.add([clips(seed) for seed in range(3)])
    for _ in range(3):
        shown = lease(http)
        assert shown["candidates"] == [{"env_id": "CartPole-v1", "num_steps": 20, "candidate": None}] * 2
        found = service.store.leased(shown["token"])
        for place, index in enumerate(found.order):
            candidate = found.comparison.candidates[index]
            assert isinstance(candidate, SegmentCandidate)
            clip = Clip.model_validate_json(http.get(f"clips/{shown['token']}/{place}").content)
            assert clip == draw(candidate.segment, env_id="CartPole-v1")
        assert http.get(f"clips/{shown['token']}/2").status_code == 422
        post_label(http, shown["token"], choice="tie")
        assert http.get(f"clips/{shown['token']}/0").status_code == 409
    assert len(list((service.store.directory / "drawn").iterdir())) == 6


def test_recorded_frames_are_shown_where_a_candidate_names_them(client: LabelClient, http: httpx.Client) -> None:
    frames = np.zeros((3, 30, 40, 3), np.uint8)
    frames[:, :, :, 1] = np.array([10, 120, 240])[:, None, None]
    name = client.keep_frames(RecordedFrames(frames=ArrayField.of(frames), fps=10))
    pair = [SegmentCandidate(segment=swinging_pole(i), env_id="my:env", clip=name if i else None) for i in range(2)]
    assert client.add([Comparison.of(pair)]) == 1
    token = lease(http)["token"]
    found = [Clip.model_validate_json(http.get(f"clips/{token}/{place}").content) for place in range(2)]
    recorded = next(clip for clip in found if "recorded" in clip.caption)
    assert (recorded.num_frames, recorded.fps, recorded.width) == (3, 10.0, 40)
    assert [frame(recorded, i)[5, 5, 1] for i in range(3)] == pytest.approx([10, 120, 240], abs=8)


def test_frames_that_are_no_pictures_are_refused() -> None:
    for wrong in (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 3), np.uint8)):
        with pytest.raises(ValidationError, match="uint8"):
            RecordedFrames(frames=ArrayField.of(wrong))


# Raters that are programs.


def last_number(prompt: str, response: str) -> float:
    return float(response.rpartition(".")[2])


def most_upright(observations: np.ndarray[Any, Any], actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return -np.abs(observations[:, 2])


def test_synthetic_raters_over_http_and_beside_the_store_say_the_same(client: LabelClient, service: Service) -> None:
    service.store.add([text(number, responses=2 + number % 3) for number in range(12)])
    over_http = SyntheticRater("far", last_number, SyntheticRaterConfig())
    beside = SyntheticRater("near", last_number, SyntheticRaterConfig())
    assert label_all(over_http, client, limit=6) == 6
    assert label_all(beside, service.store) == 6
    found, next_ = client.labelled()
    assert next_ == 12 and client.labelled(next_) == ([], 12)
    assert {preference.rater for preference in found} == {"far", "near"}
    for preference in found:
        if isinstance(preference, PreferencePair):
            assert preference.chosen > preference.rejected
        else:
            assert not isinstance(preference, SegmentPair)
            ordered = sorted(zip(preference.ranks, preference.responses, strict=True))
            assert [response for _, response in ordered] == sorted(preference.responses, reverse=True)


def test_a_synthetic_rater_judges_segments_over_http(client: LabelClient) -> None:
    assert client.add(clips(seed) for seed in range(5)) == 5
    assert client.add(clips(seed) for seed in range(5)) == 0
    assert label_all(SyntheticRater("r", most_upright, SyntheticRaterConfig()), client) == 5
    for preference in client.labelled()[0]:
        assert isinstance(preference, SegmentPair) and preference.env == "CartPole-v1"
        left, right = (np.abs(segment.observations.array()[:, 2]).sum() for segment in preference.segments)
        assert preference.choice == ("left" if left < right else "right")
    assert client.progress("r").waiting == 0


def test_a_client_without_the_token_or_without_a_service_is_told_so(service: Service) -> None:
    with LabelClient(service.url, "wrong", deadline_s=5) as client, pytest.raises(RewardRefused, match="401"):
        client.lease("ada")
    with LabelClient("http://127.0.0.1:9", TOKEN, deadline_s=0.5) as client, pytest.raises(RewardUnavailable):
        client.lease("ada")
