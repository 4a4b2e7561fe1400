"""From a request to its response: which model, what is cached already, what somebody else is computing just now, and
the rest to the batcher. Must never know HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.protocol import (
    MAX_DEADLINE_MS,
    ItemError,
    ItemResult,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    cache_key,
)
from rollcall.reward_service.scheduling.batch_queue import Ending, Job
from rollcall.reward_service.scheduling.batcher import Finished
from rollcall.reward_service.scheduling.cache import ScoreCache
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scheduling.refusals import Refused
from rollcall.reward_service.scheduling.registry import Registry, Served
from rollcall.reward_service.scorer import Failure, Outcome, Score

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.01, 0.2  # between looks at what another service computes


class RequestLimits(Strict):
    """What one request may ask for."""

    max_items: int = Field(default=1024, ge=1, description="of one request; beyond them: 413")
    max_tokens: int = Field(default=262_144, ge=1, description="(or steps) of one request; beyond them: 413")
    default_deadline_s: float = Field(
        default=60.0, gt=0, le=MAX_DEADLINE_MS / 1e3, description="of requests that name none"
    )


class Dispatcher:
    """Lives on the event loop."""

    def __init__(self, registry: Registry, cache: ScoreCache, limits: RequestLimits, metrics: ServiceMetrics) -> None:
        self._registry, self._cache, self._limits, self._metrics = registry, cache, limits, metrics
        self._in_flight: dict[str, Job] = {}  # by cache key: what is being computed, for all who ask
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(
        self, request: ScoreRequest, *, arrived: float, gone: Callable[[], Coroutine[Any, Any, None]]
    ) -> ScoreResponse:
        """`arrived` is monotonic; what `gone` begins ends when the client leaves.

        Raises:
          Refused: there is no response to this request.
        """
        served = self._registry.find(request.model)
        budget_s = self._limits.default_deadline_s if request.deadline_ms is None else request.deadline_ms / 1e3
        admitted = self._admit(served, request.items)
        leaving = asyncio.get_running_loop().create_task(gone())
        try:
            with served.pinned():
                endings = await self._endings(served, admitted, arrived, arrived + budget_s, leaving)
        finally:
            leaving.cancel()
        results = [_result(item, ending) for item, ending in zip(request.items, endings, strict=True)]
        self._count(served, results)
        return ScoreResponse(
            request_id=request.request_id, model=served.name, model_version=served.version, results=tuple(results)
        )

    async def close(self) -> None:
        """What is still to be kept is kept, for a moment."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cache.close()

    def _admit(self, served: Served, items: Sequence[ScoreItem]) -> list[tuple[ScoreItem, int] | Failure]:
        """Each with its cost, or why this scorer does not score it."""
        if len(items) > self._limits.max_items:
            text = f"{len(items)} items in one request, at most {self._limits.max_items} are taken: send fewer"
            raise Refused("too_many_items", text)
        admitted: list[tuple[ScoreItem, int] | Failure] = []
        for item in items:
            what = "segment" if item.segment is not None else "text"
            if what not in served.scorer.takes:
                admitted.append(Failure("unsupported", f"model {served.name} takes no {what}"))
                continue
            try:
                admitted.append((item, max(1, int(served.scorer.cost(item)))))
            except Exception as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                admitted.append(Failure("scorer_failed", text))
        tokens = sum(each[1] for each in admitted if isinstance(each, tuple))
        if tokens > self._limits.max_tokens:
            text = f"{tokens} tokens in one request, at most {self._limits.max_tokens} are taken: send fewer items"
            raise Refused("too_many_tokens", text)
        return admitted

    async def _endings(
        self,
        served: Served,
        admitted: Sequence[tuple[ScoreItem, int] | Failure],
        arrived: float,
        deadline: float,
        leaving: asyncio.Task[None],
    ) -> list[Outcome]:
        """One for each, in their order; all by one version, because `served` is one."""
        endings: dict[int, Ending] = {i: each for i, each in enumerate(admitted) if isinstance(each, Failure)}
        while True:
            jobs: dict[int, Job] = {}
            new: list[Job] = []
            for index, each in enumerate(admitted):
                if index not in endings and isinstance(each, tuple):
                    jobs[index] = self._join(served, *each, arrived, deadline, new)
            try:
                self._start(served, new)
                await _all_done([job.future for job in jobs.values()], deadline, leaving)
            finally:
                for job in jobs.values():
                    self._leave(job)
            endings |= {index: job.future.result() for index, job in jobs.items()}
            for index, ending in list(endings.items()):
                if not isinstance(ending, Refused):
                    continue
                if ending.kind != "deadline" or time.monotonic() >= deadline:
                    raise Refused(ending.kind, ending.message, retry_after_s=ending.retry_after_s)
                del endings[index]  # it was joined at the end of another's deadline: ours is not over
            if len(endings) == len(admitted):
                return [ending for _, ending in sorted(endings.items()) if not isinstance(ending, Refused)]

    def _join(self, served: Served, item: ScoreItem, cost: int, arrived: float, deadline: float, new: list[Job]) -> Job:
        """The job that scores such an item already, or one that is added to `new`."""
        key = cache_key(served.version, item) if served.scorer.cacheable else None
        job = self._in_flight.get(key) if key is not None else None
        if job is not None:
            self._metrics.cache.labels("joined").inc()
            job.num_waiters += 1
            job.deadline = max(job.deadline, deadline)
            return job
        job = Job(item, cost, deadline, arrived, asyncio.get_running_loop().create_future(), key)
        if key is not None:
            self._in_flight[key] = job
        new.append(job)
        return job

    def _leave(self, job: Job) -> None:
        """Nobody computes what nobody waits for."""
        job.num_waiters -= 1
        if job.num_waiters == 0 and not job.future.done():
            self._end(job, Refused("client_gone", "nobody waits for it"))
            if job.withdraw is not None:
                job.withdraw(job)
            self._release([job])

    def _end(self, job: Job, ending: Ending) -> None:
        if job.key is not None and self._in_flight.get(job.key) is job:
            del self._in_flight[job.key]
        if not job.future.done():
            job.future.set_result(ending)

    def finish(self, finished: Finished) -> None:
        """What a batcher has done, whoever still waits for it: a score is kept all the same."""
        scores: dict[str, Score] = {}
        for job, ending in finished:
            self._end(job, ending)
            if job.key is not None and isinstance(ending, Score):
                scores[job.key] = ending
        if scores:
            self._spawn(self._cache.put(scores))
        self._release([job for job, ending in finished if not isinstance(ending, Score)])

    def _release(self, jobs: Collection[Job]) -> None:
        claimed = [job.key for job in jobs if job.claimed and job.key is not None]
        if claimed:
            self._spawn(self._cache.release(claimed))

    def _start(self, served: Served, jobs: list[Job]) -> None:
        """Cached ones in a task of its own: whoever joins a job does not depend on who began it."""
        if jobs and served.scorer.cacheable:
            self._spawn(self._resolve(served, jobs))
        elif jobs:
            self._submit(served, jobs)

    def _submit(self, served: Served, jobs: Sequence[Job]) -> None:
        wanted = [job for job in jobs if not job.future.done()]
        try:
            if wanted:
                served.batcher.submit(wanted, time.monotonic())
        except Refused as refused:
            for job in wanted:
                self._end(job, refused)
            self._release(wanted)
        self._release([job for job in jobs if job.num_waiters == 0])

    async def _resolve(self, served: Served, jobs: list[Job]) -> None:
        """From the cache, from another service that computes it just now, or from the model."""
        look_s = _FIRST_LOOK_S
        with served.pinned():
            while True:
                jobs = await self._from_cache(jobs)
                if not jobs:
                    return
                claimed = await self._cache.claim([job.key or "" for job in jobs])
                mine = [job for job, ours in zip(jobs, claimed, strict=True) if ours]
                for job in mine:
                    job.claimed = True
                self._submit(served, mine)
                jobs = [job for job in jobs if not job.claimed]
                await asyncio.sleep(look_s if jobs else 0.0)  # not for ever: another service's locks run out
                look_s = min(2 * look_s, _LONGEST_LOOK_S)

    async def _from_cache(self, jobs: Sequence[Job]) -> list[Job]:
        """Ends those that the cache has. Returns the others, where somebody still waits for them."""
        jobs = [job for job in jobs if not job.future.done()]
        if not jobs:
            return []
        found = await self._cache.get([job.key or "" for job in jobs])
        for job, score in zip(jobs, found, strict=True):
            if score is not None:
                self._end(job, score)
        return [job for job in jobs if not job.future.done()]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count(self, served: Served, results: Sequence[ItemResult]) -> None:
        counts = Counter("scored" if result.error is None else result.error.kind for result in results)
        for outcome, count in counts.items():
            self._metrics.items.labels(served.name, outcome).inc(count)


async def _all_done(futures: Sequence[asyncio.Future[Ending]], deadline: float, leaving: asyncio.Task[None]) -> None:
    """Raises:
    Refused: the deadline passed first, or the client left.
    """
    waiting: set[asyncio.Future[Any]] = {future for future in futures if not future.done()}
    while waiting:
        rest_s = deadline - time.monotonic()
        if rest_s <= 0:
            raise Refused("deadline", "the deadline passed before every item had its score")
        done, _ = await asyncio.wait({*waiting, leaving}, timeout=rest_s, return_when=asyncio.FIRST_COMPLETED)
        if leaving in done:
            raise Refused("client_gone", "the client left before it had its scores")
        waiting -= done


def _result(item: ScoreItem, outcome: Outcome) -> ItemResult:
    if isinstance(outcome, Failure):
        return ItemResult(id=item.id, error=ItemError(kind=outcome.kind, message=outcome.message))
    return ItemResult(id=item.id, score=outcome.value, components=outcome.components, step_scores=outcome.step_values)
