"""What waits to be scored, and which of it makes the next batch: a data structure without threads or clocks."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scheduling.refusals import Refused
from rollcall.reward_service.scorer import Outcome

Ending = Outcome | Refused  # refused: it was not even tried


class BatchingConfig(Strict):
    """How items of several requests become batches."""

    max_batch_tokens: int = Field(
        default=8192, ge=1, description="of a batch with its padding; an item that alone has more is a batch of its own"
    )
    max_batch_items: int = Field(default=256, ge=1, description="of a batch")
    max_padding: float = Field(default=1.15, ge=1.0, description="tokens of a batch with padding / without, at most")
    max_wait_ms: float = Field(default=5.0, ge=0.0, description="how long an idle model waits for more items")
    max_queue_items: int = Field(default=4096, ge=1, description="that wait for one model; beyond them: 429")
    max_queue_tokens: int = Field(default=524_288, ge=1, description="that wait for one model; beyond them: 429")
    stuck_after_s: float = Field(
        default=120.0, gt=0, description="a model that computes one batch for longer takes no more work: 503"
    )


@dataclass(eq=False, slots=True)
class Job:
    """One item on its way to a score, for everyone who waits for it."""

    item: ScoreItem
    cost: int
    deadline: float  # monotonic; later when somebody with more patience joins
    arrived: float
    future: asyncio.Future[Ending]
    key: str | None = None  # of the cache; None: this item is not shared
    num_waiters: int = 1
    claimed: bool = False  # whether we hold the cache's lock on it
    withdraw: Callable[[Job], None] | None = None  # takes it out of the queue that it is in


class BatchQueue:
    """Bounded in items and tokens. A batch is the most urgent item and, of the next ones in urgency, those nearest to
    it in length. They are looked for among one batch's worth of items only: who waits is overtaken by few, and never
    once it is the most urgent."""

    def __init__(self, config: BatchingConfig) -> None:
        self.tokens = 0
        self._config = config
        self._jobs: OrderedDict[int, Job] = OrderedDict()  # by number, in order of arrival
        self._entries: dict[Job, tuple[float, int]] = {}
        self._by_deadline: list[tuple[float, int]] = []  # (deadline on arrival, number), sorted
        self._next = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def fits(self, jobs: Sequence[Job]) -> bool:
        """Whether they may be added. An empty queue takes anything that is within the number of items."""
        tokens = sum(job.cost for job in jobs)
        within = self.tokens + tokens <= self._config.max_queue_tokens or not self._jobs
        return within and len(self._jobs) + len(jobs) <= self._config.max_queue_items

    def add(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            entry = (job.deadline, self._next)
            self._jobs[self._next] = job
            self._entries[job] = entry
            insort(self._by_deadline, entry)
            self._next += 1
            self.tokens += job.cost

    def discard(self, job: Job) -> bool:
        """Takes a job out; False if it is not there (any more)."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return False
        del self._by_deadline[bisect_left(self._by_deadline, entry)]
        del self._jobs[entry[1]]
        self.tokens -= job.cost
        return True

    def ready_in(self, now: float) -> float | None:
        """Seconds until the next batch should be cut: none is wanted (None), now (<= 0), or after waiting for more."""
        if not self._jobs:
            return None
        if self.tokens >= self._config.max_batch_tokens or len(self._jobs) >= self._config.max_batch_items:
            return 0.0
        oldest = next(iter(self._jobs.values()))
        return oldest.arrived + self._config.max_wait_ms / 1e3 - now

    def take(self, now: float) -> tuple[list[Job], list[Job]]:
        """The next batch, and those whose deadline has passed; both are gone from the queue."""
        expired: list[Job] = []
        while self._by_deadline and self._by_deadline[0][0] <= now:
            job = self._jobs[self._by_deadline[0][1]]
            self.discard(job)
            if job.deadline <= now:
                expired.append(job)
            else:
                self.add([job])  # it was given more time since
        batch = self._batch()
        for job in batch:
            self.discard(job)
        return batch, expired

    def _batch(self) -> list[Job]:
        """The most urgent one's neighbours in length, whichever adds the least padding first."""
        candidates, tokens = [], 0
        for _, number in self._by_deadline:
            candidates.append(self._jobs[number])
            tokens += candidates[-1].cost
            if tokens >= self._config.max_batch_tokens:
                break
        if not candidates:
            return []
        first = candidates[0]
        candidates.sort(key=lambda job: job.cost)  # stable: of equal ones the more urgent comes first
        low = high = candidates.index(first)
        longest = tokens = max(1, first.cost)
        while True:
            options = []
            if low > 0:
                shorter = candidates[low - 1].cost
                options.append((longest - shorter, longest, shorter, True))
            if high + 1 < len(candidates):
                longer = candidates[high + 1].cost
                options.append(((longer - longest) * (high - low + 1), max(longest, longer), longer, False))
            for _, width, cost, downwards in sorted(options):
                if self._allowed(high - low + 2, width, tokens + cost):
                    low, high = (low - 1, high) if downwards else (low, high + 1)
                    longest, tokens = width, tokens + cost
                    break
            else:
                return candidates[low : high + 1]

    def _allowed(self, size: int, width: int, tokens: int) -> bool:
        config, padded = self._config, size * width
        return (
            size <= config.max_batch_items
            and padded <= config.max_batch_tokens
            and padded <= config.max_padding * tokens
        )
