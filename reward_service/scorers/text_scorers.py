"""What the scorers of texts share: their versions, their costs, and how a function over one item becomes a scorer, in
this process or in killable ones. Must never know what the function looks for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, JsonValue

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken
from rollcall.reward_service.workers.pool import Done, WorkerPool

_CHARACTERS_PER_TOKEN = 4
Judge = Callable[[str, dict[str, JsonValue]], Outcome]  # of a response and the item's metadata


def version_of(config: BaseModel, *content: bytes | str) -> str:
    """The scorer's kind and a digest of its settings, and of what else its scores depend on."""
    digest = hashlib.sha256(config.model_dump_json(exclude={"workers"}).encode())
    for part in content:
        digest.update(b"\0" + (part.encode() if isinstance(part, str) else part))
    return f"{config.model_dump()['kind']}-{digest.hexdigest()[:16]}"


def text_cost(item: ScoreItem) -> int:
    """Roughly its tokens, without a tokenizer."""
    prompt = len(item.prompt or "") + sum(len(message.content) for message in item.messages or ())
    return 1 + (prompt + len(item.response or "")) // _CHARACTERS_PER_TOKEN + len(item.token_ids or ())


class TextScorer:
    """A judge that always ends, called where it stands."""

    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, version: str, judge: Judge) -> None:
        self.version = version
        self._judge = judge

    def cost(self, item: ScoreItem) -> int:
        return text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._score(item) for item in items]

    def close(self) -> None:
        pass

    def _score(self, item: ScoreItem) -> Outcome:
        if item.response is None:
            return Failure("unsupported", "this scorer takes responses, not segments")
        try:
            return self._judge(item.response, dict(item.metadata))
        except Exception as error:
            return Failure("scorer_failed", f"{type(error).__name__}: {error}"[:500])


class WorkerTextScorer:
    """A judge that may never end, called in processes that are killed if it does not."""

    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, version: str, pool: WorkerPool) -> None:
        self.version = version
        self._pool = pool

    def cost(self, item: ScoreItem) -> int:
        return text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        texts = [item for item in items if item.response is not None]
        jobs: list[JsonValue] = [{"response": item.response, "metadata": dict(item.metadata)} for item in texts]
        results = dict(zip((item.id for item in texts), self._pool.map(jobs), strict=True))
        return [
            outcome_of(results[item.id])
            if item.response is not None
            else Failure("unsupported", "this scorer takes responses, not segments")
            for item in items
        ]

    def close(self) -> None:
        self._pool.close()


def in_worker(judge: Judge) -> Callable[[dict[str, Any]], JsonValue]:
    """The judge as a worker's function."""

    def work(job: dict[str, Any]) -> JsonValue:
        outcome = judge(job["response"], job["metadata"])
        if isinstance(outcome, Failure):
            return {"kind": outcome.kind, "message": outcome.message}
        return {"value": outcome.value, "components": dict(outcome.components)}

    return work


def outcome_of(result: Done | Failure) -> Outcome:
    if isinstance(result, Failure):
        return result
    if "kind" in result.value:
        return Failure(result.value["kind"], result.value["message"])
    steps = result.value.get("step_values")
    return Score(result.value["value"], result.value["components"], None if steps is None else tuple(steps))
