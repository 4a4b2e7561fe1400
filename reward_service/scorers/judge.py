"""Scores and preferences by a language model that serves the OpenAI protocol (vLLM does), by principles in the manner
of constitutional AI (Bai et al., 2022, arXiv:2212.08073). A reply that cannot be read is an error, no score of 0."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rollcall.cluster.errors import BadInput, RewardError, RewardTimeout, RewardUnavailable
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken
from rollcall.reward_service.scorers import judge_prompts
from rollcall.reward_service.scorers.chat import Chat, NoReply, text_of
from rollcall.reward_service.scorers.judge_config import JudgeConfig
from rollcall.reward_service.scorers.text_scorers import text_cost, version_of

_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class BothOrders:
    """How likely the first of two responses is the better one to a judge."""

    shown_first: float
    shown_second: float

    @property
    def probability(self) -> float:
        """The mean of both, in which a liking for either place cancels."""
        return (self.shown_first + self.shown_second) / 2

    @property
    def bias(self) -> float:
        return self.shown_first - self.shown_second

    @property
    def turned(self) -> bool:
        """Whether the two orders have opposite verdicts."""
        return (self.shown_first - 0.5) * (self.shown_second - 0.5) < 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one question judges by."""

    name: str  # of its part of the score; empty: the judge's own idea
    text: str | None
    weight: float


class Judge:
    takes: frozenset[Taken] = frozenset({"text"})

    def __init__(self, config: JudgeConfig) -> None:
        """Raises BadInput: where nobody serves the model."""
        if config.url is None:
            raise BadInput(
                f"judge: no url, and the model {config.model!r} is served by runs and by rollcall reward label judge "
                "alone: give the url of a server (vllm serve)"
            )
        self._config = config
        self.version = version_of(config)
        self.cacheable = config.temperature == 0
        self._chat = Chat(
            url=config.url,
            model=config.model,
            timeout_s=config.timeout_s,
            tries=config.tries,
            concurrency=config.concurrency,
        )
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")

    def cost(self, item: ScoreItem) -> int:
        return text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return list(self._threads.map(self._score, items))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._chat.close()

    def preference(self, prompt: str, a: str, b: str) -> float:
        """How likely `a` is better than `b` to the judge, in [0, 1]; both orders are asked, so that a liking for the
        first or the second one cancels. Raises as `both_orders`."""
        return self.both_orders(prompt, a, b).probability

    def both_orders(self, prompt: str, a: str, b: str) -> BothOrders:
        """How likely `a` is better than `b`, where it is shown first and where it is shown second.

        Raises:
          RewardUnavailable, RewardTimeout: the judge does not answer.
          RewardError: its reply cannot be read.
        """
        try:
            return self._compare(prompt, a, b, time.monotonic() + self._config.deadline_s)
        except NoReply as error:
            kinds: dict[str, type[RewardError]] = {"unavailable": RewardUnavailable, "timeout": RewardTimeout}
            raise kinds.get(error.failure.kind, RewardError)(error.failure.message) from None

    def _score(self, item: ScoreItem) -> Outcome:
        prompt = _conversation(item)
        if item.response is None or prompt is None:
            return Failure("unsupported", "a judge takes texts: a prompt or messages, and a response")
        deadline = time.monotonic() + self._config.deadline_s
        try:
            if self._config.mode == "graded":
                return Score(*self._grade(prompt, item.response, deadline))
            other = item.metadata.get("other_response")
            if not isinstance(other, str):
                return Failure("unsupported", 'metadata["other_response"] must be the text to compare with')
            both = self._compare(prompt, item.response, other, deadline)
            return Score(both.probability, {"shown_first": both.shown_first, "shown_second": both.shown_second})
        except NoReply as error:
            return error.failure

    def _grade(self, prompt: str, response: str, deadline: float) -> tuple[float, dict[str, float]]:
        config = self._config
        grades: list[float] = []
        asked = self._asked(prompt, response)
        for one in asked:
            messages = judge_prompts.graded(
                prompt=prompt,
                response=response,
                principle=one.text,
                low=config.low,
                high=config.high,
                chain_of_thought=config.chain_of_thought,
            )
            reply = text_of(self._ask(messages, deadline))
            grade = judge_prompts.read_grade(reply, low=config.low, high=config.high)
            if grade is None:
                raise NoReply("scorer_failed", f"no grade in the judge's reply: {reply[-200:]!r}")
            grades.append(grade)
        return _weighted(asked, grades), {one.name: g for one, g in zip(asked, grades, strict=True) if one.name}

    def _compare(self, prompt: str, ours: str, other: str, deadline: float) -> BothOrders:
        """Averaged over the principles or criteria asked."""
        asked = self._asked(prompt, *sorted((ours, other)))
        firsts = [self._prefers_first(prompt, ours, other, one.text, deadline) for one in asked]
        seconds = [1 - self._prefers_first(prompt, other, ours, one.text, deadline) for one in asked]
        return BothOrders(_weighted(asked, firsts), _weighted(asked, seconds))

    def _prefers_first(self, prompt: str, first: str, second: str, principle: str | None, deadline: float) -> float:
        config = self._config
        letter_only = config.soft and not config.chain_of_thought
        messages = judge_prompts.pairwise(
            prompt=prompt,
            first=first,
            second=second,
            principle=principle,
            chain_of_thought=config.chain_of_thought,
            letter_only=letter_only,
        )
        choice = self._ask(messages, deadline)
        reply = text_of(choice)
        verdict = judge_prompts.read_better(reply, letter_only=letter_only)
        if config.soft and (tokens := (choice.get("logprobs") or {}).get("content")):
            soft = judge_prompts.soft_label(tokens)
            verdict = soft if soft is not None and (letter_only or verdict in (0.0, 1.0)) else verdict
        if verdict is None:
            raise NoReply("scorer_failed", f"no verdict in the judge's reply: {reply[-200:]!r}")
        return verdict

    def _asked(self, *texts: str) -> list[_Asked]:
        """What to judge by: the same whenever the same thing is judged."""
        config = self._config
        if config.rubric:
            return [_Asked(name, criterion.text, criterion.weight) for name, criterion in config.rubric.items()]
        if not config.principles:
            return [_Asked("", None, 1.0)]
        every = [_Asked(f"principle_{number}", text, 1.0) for number, text in enumerate(config.principles)]
        if config.ask == "all":
            return every
        digest = hashlib.sha256("\0".join((str(config.seed), *texts)).encode(errors="replace")).digest()
        return [every[int.from_bytes(digest[:8], "big") % len(every)]]

    def _ask(self, messages: list[dict[str, str]], deadline: float) -> dict[str, Any]:
        config = self._config
        settings: dict[str, object] = {
            "temperature": config.temperature,
            "max_tokens": config.max_tokens if config.chain_of_thought else min(16, config.max_tokens),
        }
        if config.soft:
            settings |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        return self._chat.ask(messages, deadline=deadline, **settings)


def _weighted(asked: Sequence[_Asked], values: Sequence[float]) -> float:
    total = sum(one.weight for one in asked)
    return sum(one.weight * value for one, value in zip(asked, values, strict=True)) / total


def _conversation(item: ScoreItem) -> str | None:
    if item.messages is not None:
        return "\n\n".join(f"{message.role}: {message.content}" for message in item.messages)
    return item.prompt
