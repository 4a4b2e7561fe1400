"""Requests of an engine: what one is under way, what it is when it is finished, and how busy they keep the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import EngineLoad


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished request."""

    request_id: str
    token_ids: Array  # int32 [n]
    logprobs: Array  # float32 [n]: under the distribution really sampled from
    version_spans: tuple[tuple[int, int, int], ...]  # (begin, end, policy version) over 0..n
    finish_reason: Literal["stop", "length"]


@dataclass(slots=True)
class Running:
    """A request under way."""

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    begun: list[tuple[int, int]] = field(default_factory=list)  # (first token, version of the weights it began with)
    prompt_logprobs: Array | None = None  # float32 [n - 1], where they are asked for: of all its tokens but the first

    def take(self, output: Any, version: int) -> None:
        """What one step gave it: one token, or none while its prompt is read in portions."""
        if output.new_prompt_logprobs_tensors is not None:
            self.prompt_logprobs = output.new_prompt_logprobs_tensors.logprobs[:, 0].float().numpy()
        new = output.new_token_ids
        if not new:
            return
        if not self.begun or self.begun[-1][1] != version:
            self.begun.append((len(self.token_ids), version))
        self.token_ids += new
        rows = output.new_logprobs.logprobs  # [tokens, 1 or 2]: the sampled token's comes first
        if len(new) == 1:
            self.logprobs.append(rows.item(0))  # of hundreds of requests in each step
        else:
            self.logprobs += rows[:, 0].tolist()

    def completion(self, finish_reason: Literal["stop", "length"]) -> Completion:
        ends = [*(first for first, _ in self.begun[1:]), len(self.token_ids)]
        return Completion(
            request_id=self.request_id,
            token_ids=np.array(self.token_ids, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            version_spans=tuple((first, end, version) for (first, version), end in zip(self.begun, ends, strict=True)),
            finish_reason=finish_reason,
        )


@dataclass(slots=True)
class LoadSums:
    """Sums over steps, straight from the scheduler: 32 us of a step of 90 ms with 512 requests. vLLM's own statistics
    reach Prometheus only through Ray's metrics agent, a process that a private cluster does without."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    cached_tokens: int = 0
    computed_tokens: int = 0

    def add(self, scheduler: Any, outputs: Sequence[Any], num_finished: int) -> None:
        self.steps += 1
        self.running += len(scheduler.running) + num_finished
        self.waiting += len(scheduler.waiting)
        self.kv_cache_usage = max(self.kv_cache_usage, scheduler.kv_cache_manager.usage)
        for prefill in [output.prefill_stats for output in outputs]:
            if prefill is not None:  # a request's first step
                self.cached_tokens += prefill.num_cached_tokens
                self.computed_tokens += prefill.num_computed_tokens

    def mean(self) -> EngineLoad:
        """Per step, where it is not a count of tokens or the highest."""
        steps = max(1, self.steps)
        return EngineLoad(
            steps=self.steps,
            running=self.running / steps,
            waiting=self.waiting / steps,
            kv_cache_usage=self.kv_cache_usage,
            cached_tokens=self.cached_tokens,
            computed_tokens=self.computed_tokens,
        )
