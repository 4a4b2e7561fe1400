"""One model's worker: a thread that takes batches from the queue and has the scorer compute them, off the loop."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from rollcall.reward_service.scheduling.batch_queue import BatchingConfig, BatchQueue, Ending, Job
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scheduling.refusals import Refused
from rollcall.reward_service.scorer import Failure, Outcome, Score, Scorer, finite

_log = logging.getLogger(__name__)
_MEMORY = 0.9  # of the speed estimate, per batch
_LONGEST_RETRY_S = 30
_CAUTION = 1.3  # over the estimate: of what is taken in, all but a few in a thousand are then in time (simulated)

Finished = Sequence[tuple[Job, Ending]]


class Batcher:
    """Jobs in, endings out. `submit` is called on the event loop, and so is `finished`."""

    def __init__(
        self,
        name: str,
        scorer: Scorer,
        config: BatchingConfig,
        *,
        metrics: ServiceMetrics,
        finished: Callable[[Finished], None],
    ) -> None:
        self._name, self._scorer, self._config, self._metrics = name, scorer, config, metrics
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._queue = BatchQueue(config)
        self._changed = threading.Condition()
        self._closing = False
        self._batch_tokens, self._batch_began = 0, 0.0  # of the batch that is computed now
        self._speed_tokens, self._speed_s = 0.0, 0.0  # fading sums
        self._thread = threading.Thread(target=self._work, name=f"score-{name}", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job], now: float) -> None:
        """All of them, or none.

        Raises:
          Refused: the queue is full, or so long that they would be late.
        """
        with self._changed:
            wait_s = self._wait_s(sum(job.cost for job in jobs), now)
            late = wait_s is not None and now + wait_s > min((job.deadline for job in jobs), default=math.inf)
            if late or not self._queue.fits(jobs):
                again_s = min(_LONGEST_RETRY_S, max(1, math.ceil(wait_s or 0.0)))
                why = "its deadline is too near for what waits before it" if late else "its queue is full"
                raise Refused("queue_full", f"model {self._name}: {why}", retry_after_s=again_s)
            for job in jobs:
                job.withdraw = self._withdraw
            self._queue.add(jobs)
            self._changed.notify()
        self._show_queue()

    def close(self) -> None:
        """What waits is still computed; then the scorer is closed, in its own thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stuck_s(self, now: float) -> float | None:
        """For how long it has computed one batch, if that is too long."""
        began = self._batch_began
        return now - began if began and now - began > self._config.stuck_after_s else None

    def _withdraw(self, job: Job) -> None:
        """Nobody waits for it any more: it is not computed, unless it is already."""
        with self._changed:
            self._queue.discard(job)
        self._show_queue()

    def _wait_s(self, tokens: int, now: float) -> float | None:
        """How long new tokens may take at the speed of the last batches; None when nothing is before them.

        What waits is computed first, and about one batch of what comes later overtakes.
        """
        if not self._speed_s or not (len(self._queue) or self._batch_tokens):
            return None
        speed = self._speed_tokens / self._speed_s
        computing_s = max(0.0, self._batch_tokens / speed - (now - self._batch_began)) if self._batch_tokens else 0.0
        waiting = self._queue.tokens
        overtaking = min(waiting, self._config.max_batch_tokens)
        return _CAUTION * (computing_s + (waiting + overtaking + tokens) / speed)

    def _work(self) -> None:
        while True:
            batch, expired, ended = self._next_batch()
            if expired:
                self._deliver([(job, _too_late()) for job in expired])
            if batch:
                self._show_queue()
                self._deliver(self._compute(batch))
            if ended:
                break
        try:
            self._scorer.close()
        except Exception:
            _log.exception("model %s: its scorer did not close", self._name)

    def _next_batch(self) -> tuple[list[Job], list[Job], bool]:
        """Waits for one; (batch, expired, whether that was all)."""
        with self._changed:
            self._batch_tokens, self._batch_began = 0, 0.0
            while True:
                now = time.monotonic()
                wait_s = self._queue.ready_in(now)
                if wait_s is None and self._closing:
                    return [], [], True
                if wait_s is not None and (wait_s <= 0 or self._closing):
                    batch, expired = self._queue.take(now)
                    if batch:
                        self._batch_tokens, self._batch_began = sum(job.cost for job in batch), now
                    return batch, expired, False
                self._changed.wait(wait_s)

    def _compute(self, batch: list[Job]) -> Finished:
        began = time.perf_counter()
        outcomes = self._score(batch)
        endings: Sequence[Ending] = [outcomes] if isinstance(outcomes, Failure) else outcomes
        if isinstance(outcomes, Failure) and len(batch) > 1:
            self._metrics.retries.labels(self._name).inc()
            endings = [self._alone(job) for job in batch]
        self._measure(batch, time.perf_counter() - began)
        return list(zip(batch, endings, strict=True))

    def _alone(self, job: Job) -> Ending:
        """One item of a batch that failed: a neighbour may have been the reason."""
        if job.num_waiters == 0 or job.deadline <= time.monotonic():
            return _too_late()
        outcomes = self._score([job])
        return outcomes if isinstance(outcomes, Failure) else outcomes[0]

    def _score(self, batch: Sequence[Job]) -> list[Outcome] | Failure:
        """A failure is that of the batch as a whole."""
        try:
            outcomes = self._scorer.score([job.item for job in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(batch)} items")
            return [_plain(outcome) for outcome in outcomes]
        except BaseException as error:  # also SystemExit: nothing that a scorer does may end this thread
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            _log.warning("model %s failed on a batch of %d: %s", self._name, len(batch), text)
            return Failure("scorer_failed", text)

    def _measure(self, batch: Sequence[Job], seconds: float) -> None:
        tokens = sum(job.cost for job in batch)
        self._speed_tokens = _MEMORY * self._speed_tokens + tokens
        self._speed_s = _MEMORY * self._speed_s + seconds
        self._metrics.compute.labels(self._name).inc(seconds)
        self._metrics.batch_items.labels(self._name).observe(len(batch))
        self._metrics.tokens.labels(self._name, "real").inc(tokens)
        padding = max(job.cost for job in batch) * len(batch) - tokens
        self._metrics.tokens.labels(self._name, "padding").inc(padding)

    def _deliver(self, finished: Finished) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finished, finished)
        except RuntimeError:  # the loop is closed: the service ended while this was computed
            _log.warning("model %s: %d results came after the end", self._name, len(finished))

    def _show_queue(self) -> None:
        self._metrics.queue_items.labels(self._name).set(len(self._queue))
        self._metrics.queue_tokens.labels(self._name).set(self._queue.tokens)


def _too_late() -> Refused:
    return Refused("deadline", "the deadline passed while it waited")


def _plain(outcome: Outcome) -> Outcome:
    """With Python's own floats (a scorer may say numpy's), and a Failure where one is not finite."""
    if isinstance(outcome, Failure):
        return outcome
    steps = None if outcome.step_values is None else tuple(map(float, outcome.step_values))
    components = {str(name): float(value) for name, value in outcome.components.items()}
    return finite(Score(float(outcome.value), components, steps))
