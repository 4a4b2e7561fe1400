"""A service on a real port, with hand-written scorers that do what a test wants: count, wait, fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.client import ClientConfig, RewardClient
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scheduling.registry import Makers
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.service.config import ServiceConfig
from rollcall.reward_service.service.server import Server, reward_model_at

TOKEN = "a-token-for-tests"
Behaviour = Callable[[ScoreItem], Outcome]


class ScriptedScorer:
    """The score is the response as a number, plus an offset that belongs to the version."""

    takes = frozenset({"text", "segment"})

    def __init__(self, offset: float = 0.0, *, cacheable: bool = True, delay_s: float = 0.0) -> None:
        self.offset, self.cacheable, self.delay_s = offset, cacheable, delay_s
        self.batches: list[list[ScoreItem]] = []
        self.gate = threading.Event()  # nothing is scored until it is set
        self.gate.set()
        self.computing = threading.Event()
        self.closed = threading.Event()

    @property
    def version(self) -> str:
        return f"scripted-{self.offset:g}"

    @property
    def num_scored(self) -> int:
        return sum(map(len, self.batches))

    def cost(self, item: ScoreItem) -> int:
        return int(str(item.metadata.get("cost", 1)))

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        assert not self.closed.is_set(), "scored after it was closed"
        self.batches.append(list(items))
        self.computing.set()
        assert self.gate.wait(60)
        time.sleep(self.delay_s)
        return [self.one(item) for item in items]

    def one(self, item: ScoreItem) -> Outcome:
        if item.response == "raise":
            raise RuntimeError("this item is poison")
        if item.response == "unsupported":
            return Failure("unsupported", "not this one")
        value = float(item.response or 0)
        return Score(value + self.offset, {"raw": value})

    def close(self) -> None:
        self.closed.set()


class Scorers:
    """Builds what a test has laid out by name, and for a path the scorer whose offset is written there."""

    def __init__(self, **by_name: ScriptedScorer) -> None:
        self.by_name: dict[str, ScriptedScorer] = dict(by_name)
        self.built: list[ScriptedScorer] = []
        self.gate = threading.Event()  # nothing is built until it is set
        self.gate.set()
        self.building = threading.Event()

    def build(self, config: Any, name: str) -> Any:
        self.building.set()
        assert self.gate.wait(60)
        path = Path(getattr(config, "path", "/nowhere"))
        if path.is_dir():
            if not (path / "offset").exists():
                raise BadInput(f"{path} holds no model: give a directory that does")
            scorer = ScriptedScorer(float((path / "offset").read_text()))
        else:
            scorer = self.by_name[name]
        self.built.append(scorer)
        return scorer

    @property
    def makers(self) -> Makers:
        return Makers(self.build, reward_model_at)


@contextmanager
def serving(scorers: Scorers, *, token: str | None = None, **settings: Any) -> Iterator[Server]:
    """A server in a thread of this process, on a free port; ended afterwards."""
    models = {name: {"kind": "reward_model", "path": f"/nowhere/{name}"} for name in scorers.by_name}
    config = ServiceConfig.model_validate({"port": 0, "models": models, "drain_timeout_s": 5, **settings})
    server = Server(config, token=None if token is None else SecretStr(token), makers=scorers.makers)
    thread = threading.Thread(target=server.run, kwargs={"signals": False})
    thread.start()
    try:
        yield server
    finally:
        for scorer in scorers.built:
            scorer.gate.set()
        scorers.gate.set()
        server.end()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def ready(scorers: Scorers, *, token: str | None = None, **settings: Any) -> Iterator[tuple[Server, httpx.Client]]:
    """And a plain HTTP client of it, once it is ready."""
    with serving(scorers, token=token, **settings) as server:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False) as http:
            with client_of(server, token) as client:
                client.wait_ready(20)
            yield server, http


def client_of(server: Server, token: str | None = None, **settings: Any) -> RewardClient:
    return RewardClient(server.url, token, ClientConfig(**settings))


def item(response: object, *, name: str = "", **fields: Any) -> ScoreItem:
    return ScoreItem(id=name or f"i{response}", prompt="p", response=str(response), **fields)


def body(*responses: object, **fields: Any) -> dict[str, Any]:
    """Of POST /v1/score."""
    items = [{"id": f"{i}", "prompt": "p", "response": str(r)} for i, r in enumerate(responses)]
    return {"request_id": "r", "items": items, **fields}


def metric(http: httpx.Client, line: str) -> float:
    """The value of a sample of /metrics; 0 where there is none."""
    for text in http.get("/metrics").text.splitlines():
        if text.startswith(f"{line} "):
            return float(text.rpartition(" ")[2])
    return 0.0
