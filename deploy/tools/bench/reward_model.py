"""The model of `rollcall bench reward`: written to disk, and its forward pass alone, without a service around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rollcall.deploy.tools.bench.reward_load import ALPHABET, LONGEST, item_of, length_of, texts_of
from rollcall.learners.models.language.tiny_model import HEAD_DIM, character_tokenizer
from rollcall.reward_service.scheduling.batch_queue import BatchingConfig, BatchQueue, Job

_HIDDEN, _LAYERS, _HEADS = 384, 6, 12  # 9.7 million parameters


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
        self._loop = asyncio.new_event_loop()  # only jobs' futures want one
        self._loop.close()

    def __call__(self, what: str, *arguments: Any) -> Any:
        with torch.inference_mode():
            return getattr(self, what)(*arguments)

    def throughput(self, seconds: float) -> tuple[float, float]:
        """Tokens per second, and per second of CPU time; padding is not counted."""
        tokens, began, cpu_s = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            while len(self._queue) < self._num_waiting:
                cost, self._next = length_of(-1 - self._next), self._next + 1
                self._queue.add([Job(item_of(0), cost, float(self._next), 0.0, self._loop.create_future())])
            batch, _ = self._queue.take(-1.0)
            lengths = torch.tensor([job.cost for job in batch])
            self._rewards(torch.randint(3, 20, (len(batch), int(lengths.max()))), lengths)
            tokens += int(lengths.sum())
        return tokens / (time.perf_counter() - began), tokens / (time.process_time() - cpu_s)

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
