"""What waits to be scored, and which of it makes the next batch: a data structure without threads or clocks.
Must never know what a score is."""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.refusals import Refused
from rollcall.reward_service.scorer import Outcome

Ending = Outcome | Refused  # refused: it was not even tried


class BatchingConfig(BaseModel):
    """How items of several requests become batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch_tokens: int = Field(
        default=8192, ge=1, description="of a batch with its padding; an item that alone has more is a batch of its own"
    )
    max_batch_items: int = Field(default=256, ge=1, description="of a batch")
    max_padding: float = Field(default=1.5, ge=1.0, description="tokens of a batch with padding / without, at most")
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
    """Bounded in items and tokens. The most urgent item is in the next batch; the rest of the batch are those nearest
    to it in length, so that little is padded and nobody starves."""

    def __init__(self, config: BatchingConfig) -> None:
        self.tokens = 0
        self._config = config
        self._jobs: OrderedDict[int, Job] = OrderedDict()  # by number, in order of arrival
        self._numbers: dict[Job, int] = {}
        self._by_cost: list[tuple[int, int]] = []  # (cost, number), sorted
        self._by_deadline: list[tuple[float, int]] = []  # a heap; those that left are found out when they come up
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
            number, self._next = self._next, self._next + 1
            self._jobs[number] = job
            self._numbers[job] = number
            insort(self._by_cost, (job.cost, number))
            heapq.heappush(self._by_deadline, (job.deadline, number))
            self.tokens += job.cost

    def discard(self, job: Job) -> bool:
        """Takes a job out; False if it is not there (any more)."""
        number = self._numbers.pop(job, None)
        if number is None:
            return False
        del self._jobs[number]
        del self._by_cost[bisect_left(self._by_cost, (job.cost, number))]
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
        while self._by_deadline:
            deadline, number = self._by_deadline[0]
            job = self._jobs.get(number)
            if job is not None and job.deadline > now and job.deadline <= deadline:
                return self._around(job, number), expired
            heapq.heappop(self._by_deadline)
            if job is None:
                continue
            if job.deadline > now:  # it was given more time since
                heapq.heappush(self._by_deadline, (job.deadline, number))
            else:
                self.discard(job)
                expired.append(job)
        return [], expired

    def _around(self, job: Job, number: int) -> list[Job]:
        """The batch around one job: its neighbours in length, whichever adds the least padding first."""
        low = high = bisect_left(self._by_cost, (job.cost, number))
        longest = tokens = max(1, job.cost)
        while True:
            size = high - low + 1
            options = []
            if low > 0:
                shorter = self._by_cost[low - 1][0]
                options.append((longest - shorter, longest, shorter, True))
            if high + 1 < len(self._by_cost):
                longer = self._by_cost[high + 1][0]
                options.append((max(0, longer - longest) * size, max(longest, longer), longer, False))
            for _, width, cost, downwards in sorted(options):
                if self._allowed(size + 1, width, tokens + cost):
                    low, high = (low - 1, high) if downwards else (low, high + 1)
                    longest, tokens = width, tokens + cost
                    break
            else:
                break
        batch = [self._jobs[number] for _, number in self._by_cost[low : high + 1]]
        for taken in batch:
            self.discard(taken)
        return batch

    def _allowed(self, size: int, width: int, tokens: int) -> bool:
        config, padded = self._config, size * width
        return (
            size <= config.max_batch_items
            and padded <= config.max_batch_tokens
            and padded <= config.max_padding * tokens
        )
