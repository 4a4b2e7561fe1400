"""A model's place is taken by another while requests are under way, and a service ends while they are."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from rollcall.reward_service.client import RewardClient
from tests import ROOT
from tests.reward_service.live_service import Scorers, ScriptedScorer, body, client_of, item, metric, ready
from tests.waiting import eventually

Start = Callable[..., tuple[subprocess.Popen[str], str]]


def model(root: Path, offset: float) -> str:
    """A directory that a scripted scorer is built from; its name."""
    folder = root / f"offset-{offset:g}"
    folder.mkdir(parents=True)
    (folder / "offset").write_text(str(offset))
    return folder.name


def load(http: httpx.Client, path: str, name: str = "main") -> httpx.Response:
    return http.post(f"/v1/models/{name}:load", json={"path": path})


def test_under_load_every_score_is_of_the_version_that_it_names_and_no_request_fails(tmp_path: Path) -> None:
    """The offset is in the version: a score of another version than it says would be off by it."""
    names = [model(tmp_path, offset) for offset in (1000, 2000, 3000, 4000)]
    scorers = Scorers(main=ScriptedScorer(delay_s=0.002))
    wrong: list[object] = []
    seen: set[str] = set()
    stop = threading.Event()

    def ask(client: RewardClient, thread: int) -> None:
        number = 0
        while not stop.is_set():
            values = [thread * 100_000 + number + i for i in range(3)]
            number += 3
            answer = client.score([item(value) for value in values])
            offset = float(answer.model_version.removeprefix("scripted-"))
            seen.add(answer.model_version)
            if [result.score for result in answer.results] != [value + offset for value in values]:
                wrong.append(answer)

    with ready(scorers, model_roots=[tmp_path]) as (server, http), client_of(server) as client:
        threads = [threading.Thread(target=ask, args=(client, thread)) for thread in range(6)]
        for thread in threads:
            thread.start()
        try:
            for index, name in enumerate(names):
                eventually(lambda wanted=index: len(seen) > wanted)  # type: ignore[misc]
                assert load(http, name).json()["version"] == f"scripted-{1000 * (index + 1)}"
            eventually(lambda: len(seen) == 5)
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
        assert not wrong
        eventually(lambda: [scorer.closed.is_set() for scorer in scorers.built] == [True] * 4 + [False])
        lines = [line for line in http.get("/metrics").text.splitlines() if "model_info{" in line]
        assert len(lines) == 1 and "scripted-4000" in lines[0]
        assert metric(http, 'rollcall_reward_requests_total{outcome="ok",route="load"}') == 4
        assert metric(http, 'rollcall_reward_model_loads_total{model="main",outcome="done"}') == 4


def test_what_was_admitted_before_a_swap_is_scored_by_the_old_one_which_is_closed_after_it(tmp_path: Path) -> None:
    old = ScriptedScorer()
    old.gate.clear()
    scorers = Scorers(main=old)
    answers: dict[str, float] = {}
    with ready(scorers, model_roots=[tmp_path], batching={"max_batch_items": 1}) as (server, http):

        def ask(value: int) -> None:
            result = httpx.post(f"{server.url}/v1/score", json=body(value), timeout=20).json()
            answers[result["model_version"]] = result["results"][0]["score"]

        first = threading.Thread(target=ask, args=(7,))
        first.start()
        assert old.computing.wait(10)
        assert load(http, model(tmp_path, 50)).status_code == 200
        ask(7)
        assert answers == {"scripted-50": 57.0}
        assert not old.closed.is_set()
        old.gate.set()
        first.join(10)
        assert answers == {"scripted-50": 57.0, "scripted-0": 7.0}
        assert old.closed.wait(10)


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_in_place(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "empty").mkdir(parents=True)
    model(outside, 5)
    (root / "file").write_text("x")
    (root / "link").symlink_to(outside / "offset-5")
    (root / "circle").symlink_to(root / "circle")
    scorers = Scorers(main=ScriptedScorer())
    with ready(scorers, model_roots=[root]) as (_, http):
        wrong = ["empty", "nowhere", "file", "link", "circle", "..", "../outside/offset-5", str(outside / "offset-5")]
        for path in [*wrong, "x" * 5000, "nul\0"]:
            response = load(http, path)
            assert (response.status_code, response.json()["kind"]) == (422, "load_failed"), path
        assert load(http, "empty").json()["message"].endswith("empty holds no model: give a directory that does")
        assert "outside" not in load(http, "link").text, "what lies elsewhere is not told from what does not exist"
        assert http.post("/v1/models/main:load", json={}).json()["kind"] == "schema"
        assert load(http, "empty", name="bad name").status_code == 422
        assert http.post("/v1/score", json=body(1)).json()["model_version"] == "scripted-0"
        assert metric(http, 'rollcall_reward_model_loads_total{model="main",outcome="failed"}') == 2
        assert not scorers.by_name["main"].closed.is_set()


def test_without_model_roots_nothing_is_loaded(tmp_path: Path) -> None:
    model(tmp_path, 1)
    with ready(Scorers(main=ScriptedScorer())) as (_, http):
        assert load(http, str(tmp_path / "offset-1")).json()["kind"] == "load_failed"


def test_two_loads_of_one_name_at_once_are_a_conflict(tmp_path: Path) -> None:
    name = model(tmp_path, 1)
    scorers = Scorers(main=ScriptedScorer())
    with ready(scorers, model_roots=[tmp_path]) as (server, http):
        scorers.gate.clear()
        scorers.building.clear()
        with client_of(server) as client:
            first = threading.Thread(target=client.load, args=("main", name))
            first.start()
            assert scorers.building.wait(10)
            response = load(http, name)
            assert (response.status_code, response.json()["kind"]) == (409, "load_conflict")
            assert http.post("/v1/score", json=body(1)).json()["model_version"] == "scripted-0", "it serves meanwhile"
            scorers.gate.set()
            first.join(10)
        assert http.post("/v1/score", json=body(1)).json()["model_version"] == "scripted-1"


def test_a_client_that_asks_for_a_load_while_one_is_under_way_has_its_own_after_it(tmp_path: Path) -> None:
    """Whoever asked for the first may have been killed meanwhile, and its successor asks again."""
    names = [model(tmp_path, 1), model(tmp_path, 2)]
    scorers, loaded = Scorers(main=ScriptedScorer()), []
    with ready(scorers, model_roots=[tmp_path]) as (server, http), client_of(server) as client:
        scorers.gate.clear()
        scorers.building.clear()
        first = threading.Thread(target=load, args=(http, names[0]))
        first.start()
        assert scorers.building.wait(10)
        second = threading.Thread(target=lambda: loaded.append(client.load("main", names[1]).version))
        second.start()
        eventually(lambda: metric(http, 'rollcall_reward_requests_total{outcome="load_conflict",route="load"}') >= 1)
        scorers.gate.set()
        for thread in (first, second):
            thread.join(20)
        assert loaded == ["scripted-2"]


def test_a_new_name_is_a_new_model(tmp_path: Path) -> None:
    with ready(Scorers(main=ScriptedScorer()), model_roots=[tmp_path], default_model="main") as (_, http):
        assert load(http, model(tmp_path, 9), name="second").json()["is_default"] is False
        assert http.post("/v1/score", json=body(1, model="second")).json()["results"][0]["score"] == 10.0
        assert http.post("/v1/score", json=body(1)).json()["results"][0]["score"] == 1.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Services as processes; those that still live at the end are killed."""
    processes = []

    def begin(port: int = 0, delay_s: float = 0.0) -> tuple[subprocess.Popen[str], str]:
        program = [sys.executable, "-m", "tests.reward_service.service.service_process"]
        command = [*program, str(port), str(tmp_path), str(delay_s)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_sigterm_lets_work_under_way_end_and_refuses_new_work_and_exits_0(start: Start) -> None:
    process, url = start(delay_s=0.3)
    with RewardClient(url) as client:
        client.wait_ready(30)
        answers: list[float | None] = []

        def ask() -> None:
            answers.extend(result.score for result in client.score([item(i) for i in range(6)]).results)

        asking = threading.Thread(target=ask)
        asking.start()
        with httpx.Client(base_url=url) as http:
            eventually(lambda: metric(http, 'rollcall_reward_queue_items{model="main"}') > 0)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: http.get("/readyz").json().get("kind") == "draining", 5)
            refused = http.post("/v1/score", json=body(1))
            assert (refused.status_code, refused.json()["kind"]) == (503, "draining")
            assert "retry-after" in refused.headers
            assert http.get("/healthz").status_code == 200
        asking.join(20)
    assert answers == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert process.wait(20) == 0
    assert process.stdout is not None and process.stdout.read().split() == ["closed"]


def test_a_killed_service_that_is_started_again_gives_a_waiting_client_its_scores(start: Start) -> None:
    """kill -9 in the middle of a request. The client waits, tries again, and every score is the right one."""
    process, url = start(delay_s=0.2)
    port = int(url.rpartition(":")[2])
    with RewardClient(url) as client, httpx.Client(base_url=url) as http:
        client.wait_ready(30)
        scores: list[float | None] = []

        def ask() -> None:
            scores.extend(
                result.score for result in client.score([item(i + 1) for i in range(8)], deadline_s=60).results
            )

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: metric(http, 'rollcall_reward_queue_items{model="main"}') > 0)
        process.kill()
        process.wait()
        assert asking.is_alive() and not scores
        _, again = start(port=port)
        assert again == url
        asking.join(60)
    assert scores == [float(i + 1) for i in range(8)]
