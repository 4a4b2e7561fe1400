"""What the scorers of texts share: their versions, their costs, and how a rule over one text becomes a scorer, in this
process or in killable ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypedDict

from pydantic import BaseModel, JsonValue

from rollcall.reward_service.protocol import ItemErrorKind, ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken
from rollcall.reward_service.workers.pool import Done, WorkerPool

_CHARACTERS_PER_TOKEN = 4
_NO_TEXT = Failure("unsupported", "this scorer takes responses, not segments")
Rule = Callable[[str, dict[str, JsonValue]], Outcome]  # of a response and the item's metadata


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
    """A rule that always ends, called where it stands."""

    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, version: str, rule: Rule) -> None:
        self.version = version
        self._rule = rule

    def cost(self, item: ScoreItem) -> int:
        return text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._score(item) for item in items]

    def close(self) -> None:
        pass

    def _score(self, item: ScoreItem) -> Outcome:
        if item.response is None:
            return _NO_TEXT
        try:
            return self._rule(item.response, dict(item.metadata))
        except Exception as error:
            return Failure("scorer_failed", f"{type(error).__name__}: {error}"[:500])


class WorkerTextScorer:
    """A rule that may never end, called in processes that are killed if it does not."""

    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, version: str, pool: WorkerPool) -> None:
        self.version = version
        self._pool = pool

    def cost(self, item: ScoreItem) -> int:
        return text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        texts = [item for item in items if item.response is not None]
        results = iter(self._pool.map([{"response": item.response, "metadata": dict(item.metadata)} for item in texts]))
        return [_NO_TEXT if item.response is None else outcome_of(next(results)) for item in items]

    def close(self) -> None:
        self._pool.close()


class Said(TypedDict, total=False):
    """An outcome as a worker sends it: a score, or kind and message of a failure."""

    value: float
    components: dict[str, float]
    step_values: Sequence[float] | None
    kind: ItemErrorKind
    message: str


class TextJob(TypedDict):
    """What a worker is sent."""

    response: str
    metadata: dict[str, JsonValue]


def in_worker(rule: Rule) -> Callable[[TextJob], Said]:
    """The rule as a worker's function."""
    return lambda job: said(rule(job["response"], job["metadata"]))


def said(outcome: Outcome) -> Said:
    if isinstance(outcome, Failure):
        return {"kind": outcome.kind, "message": outcome.message}
    return {"value": outcome.value, "components": dict(outcome.components), "step_values": outcome.step_values}


def outcome_of(result: Done | Failure) -> Outcome:
    if isinstance(result, Failure):
        return result
    found: Said = result.value
    if "kind" in found:
        return Failure(found["kind"], found["message"])
    steps = found.get("step_values")
    return Score(found["value"], found["components"], None if steps is None else tuple(steps))
