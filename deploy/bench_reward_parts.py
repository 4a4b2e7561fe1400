"""The parts of `rollcall bench reward`: the model on disk, its forward pass alone, and the clients that ask the
service. Each runs in a process of its own; the clients are the production client."""

from __future__ import annotations

import asyncio
import random
import string
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import safetensors.torch
import torch

from rollcall.cluster.errors import RewardError
from rollcall.learners.tiny_model import HEAD_DIM, character_tokenizer
from rollcall.reward_service.batch_queue import BatchingConfig, BatchQueue, Job
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.protocol import ScoreItem, ScoreRequest, ScoreResponse

MODEL = "bench"
ALPHABET = string.ascii_lowercase + " .,"
SHORTEST, LONGEST = 64, 512  # tokens, log-uniform
CALL_DEADLINE_S = 120.0
_HIDDEN, _LAYERS, _HEADS = 384, 6, 12  # 9.7 million parameters


@dataclass(frozen=True)
class Asked:
    """One request with one item, and what came of it. The number makes the item."""

    number: int
    status: int  # 200, or what the service refused it with; 0: no answer
    score: float | None
    latency_s: float


def write_classifier(directory: Path) -> int:
    """A Qwen3 sequence classifier with one label, one token a letter; returns its number of parameters."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = character_tokenizer(ALPHABET)
    config: Any = Qwen3Config(  # type: ignore[call-arg]
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS // 2,
        head_dim=HEAD_DIM,
        intermediate_size=1024,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=1,
        dtype="float32",
        architectures=["Qwen3ForSequenceClassification"],
    )
    torch.manual_seed(0)
    model: Any = Qwen3ForSequenceClassification(config)  # type: ignore[no-untyped-call]
    torch.nn.init.normal_(model.score.weight, std=1.0)  # scores that differ widely: a mixed-up one is seen
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict(), metadata={"format": "pt"}))
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    sizes: list[int] = [tensor.numel() for tensor in model.state_dict().values()]
    return sum(sizes)


def length_of(number: int) -> int:
    """Tokens of the numbered item, with the end of the sequence."""
    return round(SHORTEST * (LONGEST / SHORTEST) ** random.Random(number).random())


def texts_of(number: int) -> tuple[str, str]:
    """(prompt, response) of the numbered item: a letter is a token, and one token ends the sequence."""
    rng = random.Random(number)
    rng.random()  # the length
    letters = "".join(rng.choices(ALPHABET, k=length_of(number) - 1))
    return letters[: len(letters) // 2], letters[len(letters) // 2 :]


def item_of(number: int) -> ScoreItem:
    prompt, response = texts_of(number)
    return ScoreItem(id="item", prompt=prompt, response=response)


class Forward:
    """The model alone: batches as the service makes them, of as many waiting items as there are clients."""

    def __init__(self, directory: Path, threads: int, batching: BatchingConfig, num_waiting: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(threads)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(str(directory), dtype=torch.float32)
        self._model.eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))
        self._batching, self._num_waiting = batching, num_waiting
        self._queue = BatchQueue(batching)
        self._next = 0
        self._loop = asyncio.new_event_loop()
        self._rng = random.Random(0)

    def __call__(self, what: str, *arguments: Any) -> Any:
        with torch.inference_mode():
            return getattr(self, what)(*arguments)

    def throughput(self, seconds: float) -> float:
        """Tokens per second, padding not counted."""
        tokens, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            while len(self._queue) < self._num_waiting:
                cost, self._next = length_of(-1 - self._next), self._next + 1
                self._queue.add([Job(item_of(0), cost, float(self._next), 0.0, self._loop.create_future())])
            batch, _ = self._queue.take(-1.0)
            lengths = torch.tensor([job.cost for job in batch])
            self._rewards(torch.randint(3, 20, (len(batch), int(lengths.max()))), lengths)
            tokens += int(lengths.sum())
        return tokens / (time.perf_counter() - began)

    def full_batch_s(self) -> float:
        """Seconds of one batch that fills the budget with the longest items; the median of three."""
        size = max(1, self._batching.max_batch_tokens // LONGEST)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            self._rewards(torch.randint(3, 20, (size, LONGEST)), torch.full((size,), LONGEST))
            seconds.append(time.perf_counter() - began)
        return sorted(seconds)[1]

    def scores(self, numbers: Sequence[int]) -> list[float]:
        """Each item's, alone, without padding, by Hugging Face's own reading of the last token."""
        torch.set_num_threads(1)
        found = []
        for number in numbers:
            ids = [i for text in texts_of(number) for i in self._tokenizer.encode(text, add_special_tokens=False)]
            found.append(float(self._model(input_ids=torch.tensor([[*ids, self._tokenizer.eos_token_id]])).logits))
        return found

    def _rewards(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states = self._model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        rewards: torch.Tensor = self._model.score(states[torch.arange(len(states)), lengths - 1])
        return rewards


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
