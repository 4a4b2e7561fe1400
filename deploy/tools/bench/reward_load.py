"""What `rollcall bench reward` asks the service, and who asks: items by number, and clients in processes of their own.
They are the production client."""

from __future__ import annotations

import asyncio
import math
import random
import string
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from rollcall.cluster.errors import RewardError
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.protocol import ScoreItem, ScoreRequest, ScoreResponse

MODEL = "bench"
ALPHABET = string.ascii_lowercase + " .,"
SHORTEST, LONGEST = 64, 512  # tokens, log-uniform
CALL_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Asked:
    """One request with one item, and what came of it. The number makes the item."""

    number: int
    status: int  # 200, or what the service refused it with; 0: no answer
    score: float | None
    latency_s: float


def length_of(number: int) -> int:
    """Tokens of the numbered item, with the end of the sequence."""
    return round(SHORTEST * math.exp(math.log(LONGEST / SHORTEST) * random.Random(number).random()))


def texts_of(number: int) -> tuple[str, str]:
    """(prompt, response) of the numbered item: a letter is a token, and one token ends the sequence."""
    rng = random.Random(number)
    rng.random()  # the length
    letters = "".join(rng.choices(ALPHABET, k=length_of(number) - 1))
    return letters[: len(letters) // 2], letters[len(letters) // 2 :]


def item_of(number: int) -> ScoreItem:
    prompt, response = texts_of(number)
    return ScoreItem(id="item", prompt=prompt, response=response)


class Clients:
    """Some of the clients: threads that ask for one item at a time, each for the next as soon as it has its answer."""

    def __init__(self, url: str, token: str, numbers: range, num_clients: int) -> None:
        self._numbers = iter(numbers)
        self._lock = threading.Lock()
        self._clients = [RewardClient(url, token) for _ in range(num_clients)]

    def __call__(self, seconds: float) -> tuple[list[Asked], float]:
        """What became of every request, and the CPU seconds that asking took."""
        done: list[Asked] = []
        cpu = time.process_time()
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._ask, args=(client, end, done)) for client in self._clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return done, time.process_time() - cpu

    def each(self, numbers: Sequence[int]) -> list[Asked]:
        """These items, one after the other, by one client."""
        return [_asked(self._clients[0], number) for number in numbers]

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _ask(self, client: RewardClient, end: float, done: list[Asked]) -> None:
        while time.monotonic() < end:
            with self._lock:
                number = next(self._numbers)
            done.append(_asked(client, number))


def _asked(client: RewardClient, number: int) -> Asked:
    item = item_of(number)
    began = time.monotonic()
    try:
        result = client.score([item], model=MODEL, deadline_s=CALL_DEADLINE_S).results[0]
    except RewardError:
        return Asked(number, 0, None, time.monotonic() - began)
    return Asked(number, 200, result.score, time.monotonic() - began)


class OpenLoop:
    """Requests that come when they come (Poisson), whatever becomes of those before; none is tried again."""

    def __init__(self, url: str, token: str, numbers: range) -> None:
        self._url, self._token, self._numbers = url, token, iter(numbers)

    def __call__(self, seconds: float, per_second: float, deadline_s: float) -> list[Asked]:
        return asyncio.run(self._run(seconds, per_second, deadline_s))

    async def _run(self, seconds: float, per_second: float, deadline_s: float) -> list[Asked]:
        rng = random.Random(0)
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        timeout = httpx.Timeout(deadline_s + 30.0)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=False) as http:
            tasks: list[asyncio.Task[Asked]] = []
            due = began = time.monotonic()
            while due - began < seconds:
                tasks.append(asyncio.create_task(self._one(http, next(self._numbers), deadline_s)))
                due += rng.expovariate(per_second)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            return list(await asyncio.gather(*tasks))

    async def _one(self, http: httpx.AsyncClient, number: int, deadline_s: float) -> Asked:
        request = ScoreRequest(
            request_id=f"open-{number}", model=MODEL, deadline_ms=round(1e3 * deadline_s), items=(item_of(number),)
        )
        began = time.monotonic()
        try:
            response = await http.post(f"{self._url}/v1/score", content=request.model_dump_json())
        except httpx.HTTPError:
            return Asked(number, 0, None, time.monotonic() - began)
        latency_s = time.monotonic() - began
        if response.status_code != 200:
            return Asked(number, response.status_code, None, latency_s)
        score = ScoreResponse.model_validate_json(response.content).results[0].score
        return Asked(number, 200, score, latency_s)
