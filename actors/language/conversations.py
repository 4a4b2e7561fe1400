"""Samples under way on one engine: a completion, or a conversation of several turns with an environment. What was
sampled is kept as tokens and never tokenised again. Must never know of tickets, nor where weights come from."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from rollcall.actors.engine.requests import Completion
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Judgement, Row, Task, TextEnv, opening_of
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.seeds import derive_seed


class Engine(Protocol):
    """What generates: vllm_engine.VllmEngine."""

    version: int
    max_model_len: int

    @property
    def num_unfinished(self) -> int: ...
    def add(
        self, request_id: str, prompt: Sequence[int], *, seed: int | None, max_tokens: int, greedy: bool = False
    ) -> None: ...
    def step(self) -> list[Completion]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...


@dataclass(slots=True)
class Sample:
    """One completion or conversation. Positions are those of `token_ids`, which begin with the prompt."""

    key: Hashable
    row: Row
    seed: int
    token_ids: list[int]
    prompt_length: int
    env: TextEnv | None
    turns: int = 0
    request_id: str = ""
    sampled: list[tuple[int, int]] = field(default_factory=list)  # (begin, end) of what the policy sampled
    logprobs: list[Array] = field(default_factory=list)  # one array per turn
    version_spans: list[tuple[int, int, int]] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "stop"
    reward: float = 0.0
    turn_rewards: list[tuple[int, float]] = field(default_factory=list)  # (last token, reward) of turns before the last
    judgement: Judgement | None = None  # set when the sample is finished

    @property
    def num_sampled(self) -> int:
        return sum(end - begin for begin, end in self.sampled)

    def loss_mask(self) -> Array:
        mask = np.zeros(len(self.token_ids), bool)
        for begin, end in self.sampled:
            mask[begin:end] = True
        return mask

    def sampled_ids(self) -> list[int]:
        """What the policy sampled, its turns one after another."""
        return [token for begin, end in self.sampled for token in self.token_ids[begin:end]]

    def token_rewards(self) -> Array:
        """float32: what turns before the last were given, at their last tokens."""
        rewards = np.zeros(len(self.token_ids), np.float32)
        for position, reward in self.turn_rewards:
            rewards[position] += reward
        return rewards

    def behaviour_logprobs(self) -> Array:
        logprobs = np.zeros(len(self.token_ids), np.float32)
        for (begin, end), values in zip(self.sampled, self.logprobs, strict=True):
            logprobs[begin:end] = values
        return logprobs


def opening(task: Task, codec: TextCodec, row: Row) -> list[int]:
    """The tokens that every sample of a row begins with."""
    return codec.prompt(opening_of(task, row), tools=row.columns.get("tools"))


class Conversations:
    """Runs samples side by side on an engine, one engine step at a time."""

    def __init__(self, engine: Engine, task: Task, codec: TextCodec, *, max_tokens: int, greedy: bool = False) -> None:
        self._engine = engine
        self._task = task
        self._codec = codec
        self._max_tokens = max_tokens
        self._greedy = greedy
        self._running: dict[str, Sample] = {}
        self._without_room: list[Sample] = []  # whose prompt fills the context: finished before they began
        self._count = 0
        # The newest prompt: a group's samples begin with the same one.
        self._opening: tuple[str | tuple[Mapping[str, Any], ...], list[int]] = ("", [])

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._without_room)

    def begin(self, key: Hashable, row: Row, *, seed: int) -> None:
        """Admits a sample of a row."""
        env = self._task.environment(row)
        asked = (row.messages or row.prompt) if env is None else env.reset()
        if asked != self._opening[0]:
            self._opening = asked, self._codec.prompt(asked, tools=row.columns.get("tools"))
        prompt = list(self._opening[1])
        sample = Sample(key, row, seed, prompt, len(prompt), env)
        self._request(sample)

    def advance(self) -> list[Sample]:
        """One engine step. Returns the samples that finished, judged."""
        finished, self._without_room = self._without_room, []
        if not self._running:
            return finished
        for completion in self._engine.step():
            sample = self._running.pop(completion.request_id, None)
            if sample is not None and self._take(sample, completion):
                finished.append(sample)
        return finished

    def text(self, sample: Sample) -> str:
        """What followed the prompt."""
        return self._codec.decode(sample.token_ids[sample.prompt_length :])

    def abort(self, keys: Iterable[Hashable]) -> None:
        """Ends samples; nothing more is heard of them."""
        gone = set(keys)
        self._without_room = [sample for sample in self._without_room if sample.key not in gone]
        requests = [request_id for request_id, sample in self._running.items() if sample.key in gone]
        self._engine.abort(requests)
        for request_id in requests:
            del self._running[request_id]

    def _request(self, sample: Sample) -> None:
        room = self._engine.max_model_len - len(sample.token_ids)
        if room < 1:
            sample.finish_reason = "length"
            sample.judgement = Judgement(sample.reward, correct=False, parsed=False)
            self._without_room.append(sample)
            return
        self._count += 1
        sample.request_id = str(self._count)
        self._running[sample.request_id] = sample
        self._engine.add(
            sample.request_id,
            sample.token_ids,
            seed=None if self._greedy else derive_seed(sample.seed, "turn", sample.turns),
            max_tokens=min(self._max_tokens, room),
            greedy=self._greedy,
        )

    def _take(self, sample: Sample, completion: Completion) -> bool:
        """Appends a turn. True when the sample is finished, and judged."""
        begin = len(sample.token_ids)
        sample.token_ids += completion.token_ids.tolist()
        sample.sampled.append((begin, len(sample.token_ids)))
        sample.logprobs.append(completion.logprobs)
        sample.version_spans += [(begin + a, begin + b, version) for a, b, version in completion.version_spans]
        sample.finish_reason = completion.finish_reason
        sample.turns += 1
        text = self._codec.decode(completion.token_ids.tolist())
        if sample.env is None:
            sample.judgement = self._task.judge(sample.row, text)
            sample.reward = sample.judgement.reward
            return True
        return self._answer(sample, sample.env, text)

    def _answer(self, sample: Sample, env: TextEnv, text: str) -> bool:
        """The environment's answer to a turn, and the next turn if there is one. A turn that was cut is no turn."""
        if sample.finish_reason == "length":
            sample.judgement = Judgement(sample.reward, correct=False, parsed=False)
            return True
        step = env.step(text)
        sample.reward += step.reward
        if step.terminated:
            sample.judgement = Judgement(sample.reward, step.correct, step.parsed, step.components)
            return True
        begin, end = sample.sampled[-1]
        if step.reward and end > begin:
            sample.turn_rewards.append((end - 1, step.reward))
        sample.token_ids += self._codec.encode(step.text)
        self._request(sample)
        return False
