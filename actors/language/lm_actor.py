"""The producer of language experience: owns a generation engine's step loop, and between two steps admits tickets and
loads newer weights, so that generation never drains. Plain Python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import numpy as np

from rollcall.actors.engine.published_weights import WeightsOffer
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.conversations import Conversations, Sample
from rollcall.actors.language.repetition import digest, repeated_ngrams
from rollcall.actors.policy import WeightsSource
from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.errors import StaleEpoch
from rollcall.cluster.messages.attempt import Produced, PromptPayload, SampleStats, Ticket, Timing
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed

SampleKey = tuple[tuple[int, int], int]  # (ticket, which of its samples)
IDLE_POLL_S = 0.005  # between looks for weights or tickets, while there is nothing to generate


@dataclass(frozen=True, slots=True)
class Failure:
    """A ticket that this actor gave up."""

    ticket: Ticket
    reason: Literal["deadline", "weights_timeout", "stale_epoch"]
    detail: str


@dataclass(slots=True)
class _Work:
    """A ticket under way."""

    ticket: Ticket
    payload: PromptPayload
    since: float
    finished: dict[int, Sample] = field(default_factory=dict)


Outcome = tuple[Produced, LMTrajectory] | Failure


class LMActor:
    """Generates for the tickets it was given. `submit` and `advance` are called by one thread."""

    def __init__(
        self,
        *,
        actor_id: str,
        engine: VllmEngine,
        conversations: Conversations,
        rows: Sequence[Row],
        weights_source: WeightsSource[Weights | WeightsOffer],
    ) -> None:
        self.actor_id = actor_id
        self._engine = engine
        self._conversations = conversations
        self._rows = rows
        self._source = weights_source
        self._epoch = -1  # of the weights
        self._waiting: list[_Work] = []  # for weights that are new enough
        self._running: dict[tuple[int, int], _Work] = {}
        self._busy_s = 0.0  # since the last ticket was finished
        self._apply_s = 0.0  # of which loading weights

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Takes tickets that are to be generated together: all are admitted before the next engine step."""
        now = time.monotonic()
        for ticket in tickets:
            assert isinstance(ticket.payload, PromptPayload)
            self._waiting.append(_Work(ticket, ticket.payload, now))

    def advance(self) -> list[Outcome]:
        """Takes newer weights if there are any, admits what may begin, makes one engine step."""
        outcomes: list[Outcome] = [*self._drop_older_epochs()]
        try:
            self._take_weights()
        except StaleEpoch as error:
            outcomes += self._drop_epoch(str(error))
        self._admit()
        outcomes += self._overdue()
        if not self._conversations.num_running:
            if not self.is_idle:
                time.sleep(IDLE_POLL_S)
            return outcomes
        began = time.perf_counter()
        finished = self._conversations.advance()
        self._busy_s += time.perf_counter() - began
        for sample in finished:
            key, index = cast(SampleKey, sample.key)
            work = self._running[key]
            work.finished[index] = sample
            if len(work.finished) == work.payload.num_samples:
                del self._running[key]
                outcomes.append(self._produced(work))
        if self.is_idle:
            self._engine.rest()
        return outcomes

    def produce_all(self, tickets: Sequence[Ticket]) -> list[Outcome]:
        """Everything about these tickets, in one call: for the runtime without processes."""
        self.submit(tickets)
        outcomes: list[Outcome] = []
        while not self.is_idle:
            outcomes += self.advance()
        return outcomes

    def doing(self) -> str:
        """In words, what this actor is busy with."""
        return (
            f"{len(self._running)} tickets generating, {len(self._waiting)} waiting for weights newer than version "
            f"{self._engine.version}"
        )

    def _take_weights(self) -> None:
        """The newest weights there are; of the newest epoch that a ticket names."""
        epoch = self._newest_epoch()
        if epoch < 0:
            return
        newer_than = self._engine.version if epoch == self._epoch else -1
        weights = self._source.latest(epoch=epoch, newer_than=newer_than, timeout_s=0.0, reader=self.actor_id)
        if weights is not None:
            self._load(weights)

    def _load(self, weights: Weights | WeightsOffer) -> None:
        began = time.perf_counter()
        if isinstance(weights, Weights):
            self._engine.load(weights)
            self._epoch = weights.epoch
        else:
            self._epoch = self._engine.receive(weights)
        self._apply_s += time.perf_counter() - began
        self._busy_s += time.perf_counter() - began

    def _admit(self) -> None:
        able = [w for w in self._waiting if w.ticket.header.epoch == self._epoch and self._is_new_enough(w.ticket)]
        able = self._in_turn(able)
        if not able:
            return
        admitted = {work.ticket.header.key for work in able}
        self._waiting = [work for work in self._waiting if work.ticket.header.key not in admitted]
        for work in able:
            work.since = time.monotonic()
            self._running[work.ticket.header.key] = work
            row = self._rows[work.payload.row]
            for index in range(work.payload.num_samples):
                seed = derive_seed(work.ticket.seed, "sample", index)
                self._conversations.begin((work.ticket.header.key, index), row, seed=seed)

    def _in_turn(self, able: list[_Work]) -> list[_Work]:
        """Those that begin now. While an older batch is being finished, which is learnt from first, newer tickets begin
        in portions, and only once the older batch has left the engine room: see EngineConfig.admit_below."""
        engine = self._engine
        oldest = min((work.ticket.min_policy_version for work in able), default=0)
        busy = sum(
            work.payload.num_samples - len(work.finished)
            for work in self._running.values()
            if work.ticket.min_policy_version < oldest
        )
        if not busy or engine.admit_below >= 1:
            return able
        room = 0 if busy > engine.admit_below * engine.max_num_seqs else engine.max_num_seqs // 8
        chosen: list[_Work] = []
        for work in able:
            if (chosen and work.payload.num_samples > room) or room <= 0:
                break
            chosen.append(work)
            room -= work.payload.num_samples
        return chosen

    def _is_new_enough(self, ticket: Ticket) -> bool:
        return self._engine.version >= ticket.min_policy_version

    def _drop_older_epochs(self) -> list[Failure]:
        """After a restore, what was under way before it is of no use to anybody."""
        newest = max([self._epoch, *(work.ticket.header.epoch for work in self._waiting)])
        return self._drop_before(newest, f"its epoch has ended; epoch {newest} is under way")

    def _drop_epoch(self, detail: str) -> list[Failure]:
        """The weights source says that the newest epoch we know of has ended."""
        return self._drop_before(self._newest_epoch() + 1, detail)

    def _newest_epoch(self) -> int:
        works = (*self._waiting, *self._running.values())
        return max((work.ticket.header.epoch for work in works), default=self._epoch)

    def _drop_before(self, newest: int, detail: str) -> list[Failure]:
        old = [work for work in self._running.values() if work.ticket.header.epoch < newest]
        stale = [work for work in self._waiting if work.ticket.header.epoch < newest]
        self._give_up(old)
        self._waiting = [work for work in self._waiting if work not in stale]
        return [Failure(work.ticket, "stale_epoch", detail) for work in (*old, *stale)]

    def _overdue(self) -> list[Failure]:
        """Tickets past their deadline: their requests are aborted."""
        now = time.monotonic()
        late = [work for work in self._running.values() if now - work.since > work.ticket.deadline_s]
        self._give_up(late)
        failures = [
            Failure(
                work.ticket,
                "deadline",
                f"{self.actor_id}: {len(work.finished)} of {work.payload.num_samples} samples were finished within "
                f"{work.ticket.deadline_s:.0f} s",
            )
            for work in late
        ]
        starved = [work for work in self._waiting if now - work.since > work.ticket.deadline_s]
        self._waiting = [work for work in self._waiting if work not in starved]
        return failures + [
            Failure(
                work.ticket,
                "weights_timeout",
                f"{self.actor_id}: no weights of version {work.ticket.min_policy_version} or newer (epoch "
                f"{work.ticket.header.epoch}) came within {work.ticket.deadline_s:.0f} s; the newest seen is "
                f"{self._engine.version}",
            )
            for work in starved
        ]

    def _give_up(self, works: Sequence[_Work]) -> None:
        if not works:
            return
        for work in works:
            del self._running[work.ticket.header.key]
        self._conversations.abort(
            (work.ticket.header.key, index) for work in works for index in range(work.payload.num_samples)
        )

    def _produced(self, work: _Work) -> tuple[Produced, LMTrajectory]:
        samples = [work.finished[index] for index in range(work.payload.num_samples)]
        offsets = np.concatenate([[0], np.cumsum([len(sample.token_ids) for sample in samples])]).astype(np.int64)
        spans = [
            (begin + offset, end + offset, version)
            for sample, offset in zip(samples, offsets[:-1].tolist(), strict=True)
            for begin, end, version in sample.version_spans
        ]
        trajectory = LMTrajectory(
            header=replace(work.ticket.header, actor_id=self.actor_id),
            row=work.payload.row,
            sample_offsets=offsets,
            token_ids=np.concatenate([np.array(sample.token_ids, np.int32) for sample in samples]),
            loss_mask=np.concatenate([sample.loss_mask() for sample in samples]),
            tokens=SampledTokens(
                behaviour_logprobs=np.concatenate([sample.behaviour_logprobs() for sample in samples]),
                turn_rewards=(
                    np.concatenate([sample.token_rewards() for sample in samples])
                    if any(sample.turn_rewards for sample in samples)
                    else None
                ),
            ),
            version_spans=np.array(spans, np.int64).reshape(-1, 3),
            rewards=np.array([sample.reward for sample in samples], np.float32),
            finish_reasons=tuple(sample.finish_reason for sample in samples),
        )
        timing = Timing(act_s=self._busy_s, apply_weights_s=self._apply_s)
        self._busy_s = self._apply_s = 0.0
        return self._summary(trajectory, samples, timing), trajectory

    def _summary(self, trajectory: LMTrajectory, samples: Sequence[Sample], timing: Timing) -> Produced:
        tokens: dict[int, int] = {}
        for begin, end, version in trajectory.version_spans.tolist():
            tokens[version] = tokens.get(version, 0) + end - begin
        return Produced(
            header=trajectory.header,
            min_policy_version=trajectory.min_policy_version,
            num_tokens=int(trajectory.loss_mask.sum()),
            size_bytes=trajectory.size_bytes,
            timing=timing,
            samples=tuple(self._stats(sample, shown=index == 0) for index, sample in enumerate(samples)),
            version_tokens=tuple(sorted(tokens.items())),
            engine=self._engine.take_load(),
        )

    def _stats(self, sample: Sample, *, shown: bool) -> SampleStats:
        assert sample.judgement is not None
        sampled = sample.sampled_ids()
        return SampleStats(
            reward=sample.reward,
            correct=sample.judgement.correct,
            parsed=sample.judgement.parsed,
            num_tokens=sample.num_sampled,
            truncated=sample.finish_reason == "length",
            reward_components=sample.judgement.components,
            text=self._conversations.text(sample) if shown else "",
            prompt=sample.row.prompt if shown else "",
            repeated_ngrams=repeated_ngrams(sampled),
            digest=digest(sampled),
        )
