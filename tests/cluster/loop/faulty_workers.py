"""Workers that fail, repeat themselves, come late, and die, and a coordinator that they work for."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.cluster.books.consumption import LOG_NAME, ConsumptionLog
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.checkpoint import CheckpointWriter, write_state, write_weights
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.loop.supervision import FailureBudget, Watchdog
from rollcall.cluster.loop.task_source import ShardSource
from rollcall.cluster.messages.attempt import EpisodeStats, Header, Produced, Scoring, ShardPayload, Ticket, Timing
from rollcall.cluster.messages.events import (
    Event,
    LearnerLost,
    LearnerSaved,
    ShardStates,
    StepDone,
    TicketFailed,
    TicketProduced,
    TicketScored,
)
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import pack_weights
from rollcall.cluster.store.store import Store

BATCH = 3


@dataclass(frozen=True)
class Rollout:
    """What stands for a trajectory."""

    header: Header
    min_policy_version: int
    reward_model_version: str = ""

    def digest(self) -> str:
        return f"{self.header.ticket_id}-{self.header.attempt}"


def report(order: StepOrder, *, skipped: bool = False, interrupted: bool = False) -> StepReport:
    return StepReport(order.step, order.epoch, skipped, 0.01, 0.0, 1e-3, {"loss": 0.0}, interrupted)


class FaultyWorkers:
    """Workers that do their work in a random order and, with the given chances, badly."""

    def __init__(self, directory: Path, seed: int, **chances: float) -> None:
        self.random = random.Random(seed)
        self.chances = chances
        self.scores = False
        self.directory = directory
        self.log = ConsumptionLog(directory / "logs" / LOG_NAME)
        self.tickets: list[Ticket] = []
        self.unscored: list[TicketProduced] = []
        self.steps: deque[tuple[StepOrder, Sequence[Rollout]]] = deque()
        self.answers: list[Event] = []
        self.incarnations: dict[int, int] = {}
        self.restarts = 0
        self.restarts_by_role: dict[str, int] = {}
        self.learner_deaths = 0
        self.interrupted = False

    def happens(self, what: str) -> bool:
        return self.random.random() < self.chances.get(what, 0.0)

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            assert isinstance(ticket.payload, ShardPayload) and ticket.lane == ticket.payload.shard
            assert ticket.payload.incarnation >= self.incarnations.get(ticket.payload.shard, 0)
            self.incarnations[ticket.payload.shard] = ticket.payload.incarnation
        self.tickets += tickets

    def submit_scoring(self, produced: Produced, handle: Any) -> None:
        self.unscored.append(TicketProduced(produced, handle))

    def submit_step(self, order: StepOrder, handles: Sequence[Any]) -> None:
        assert all(rollout.reward_model_version for rollout in handles) == self.scores
        self.steps.append((order, handles))

    def submit_eval(self, *, step: int, env_steps: int) -> None: ...

    have_started = True

    def poll(self, timeout_s: float) -> list[Event]:
        if self.answers:
            return [self.answers.pop(0)]
        if self.unscored and self.random.random() < 0.5:
            return self._score(self.unscored.pop(self.random.randrange(len(self.unscored))))
        if self.tickets and (not self.steps or self.random.random() < 0.8):
            return self._produce(self.tickets.pop(self.random.randrange(len(self.tickets))))
        if self.steps:
            return [self._learn()]
        return []

    def _produce(self, ticket: Ticket) -> list[Event]:
        if self.happens("fail"):
            failed = TicketFailed(ticket.header, "actor_died", "it was killed", True)
            # The result of an attempt that was given up may still come, late.
            return [failed, self._produced(ticket)] if self.happens("late") else [failed]
        produced = self._produced(ticket)
        return [produced, produced] if self.happens("twice") else [produced]

    def _score(self, event: TicketProduced) -> list[Event]:
        produced = event.produced
        if self.happens("unscored"):
            return [TicketFailed(produced.header, "unscored", "the scorer raised", False)]
        assert isinstance(event.handle, Rollout)
        rewarded = replace(event.handle, reward_model_version="v1")
        scored = TicketScored(replace(produced, scoring=Scoring("v1", 0.5, 0.01)), rewarded)
        return [scored, scored] if self.happens("twice") else [scored]

    def _produced(self, ticket: Ticket) -> TicketProduced:
        version = ticket.min_policy_version
        rollout = Rollout(ticket.header, version)
        produced = Produced(
            header=replace(ticket.header, actor_id="actor"),
            min_policy_version=version,
            num_steps=5,
            size_bytes=0,
            episodes=(EpisodeStats(1.0, 5),),
            env_restarts=0,
            timing=Timing(act_s=0.01),
        )
        return TicketProduced(produced, rollout)

    def _learn(self) -> Event:
        order, rollouts = self.steps.popleft()
        if self.interrupted and not self.happens("finishes first"):
            return StepDone(report(order, interrupted=True))
        if self.happens("learner dies"):
            self.learner_deaths += 1
            if self.random.random() < 0.5:  # after it had written its log
                self.log.append(order.step, order.epoch, rollouts)
            self.steps.clear()
            return LearnerLost("it was killed")
        self.log.append(order.step, order.epoch, rollouts)
        if order.checkpoint_directory is not None:
            self._save(order.checkpoint_directory, order.step + 1)
        return StepDone(report(order, skipped=self.happens("skip")))

    def _save(self, directory: Path, version: int) -> None:
        write_weights(directory, pack_weights("policy", 1, version, {"w": np.array([version])}))
        write_state(directory, "learner", {}, {})

    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None:
        self._save(directory, version)
        self.answers.append(LearnerSaved())

    def submit_shard_states(self, undone: Collection[int] = ()) -> None:
        self.answers.append(ShardStates(None))

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int) -> None: ...

    def interrupt_learner(self) -> None:
        self.interrupted = True

    def waiting_for(self) -> str:
        return f"{len(self.tickets)} tickets"


class Recorder:
    """metrics.jsonl, as far as the audit reads it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "metrics.jsonl"
        self.events: list[str] = []

    def on_step(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def on_eval(self, record: dict[str, Any]) -> None: ...

    def on_event(self, kind: str, text: str) -> None:
        self.events.append(kind)
        if kind == "restored":
            step = int(text.split()[1])
            lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
            self.path.write_text("".join(lines[:step]))


def coordinate(
    directory: Path, store: Store, workers: FaultyWorkers, *, lag: int, steps: int = 25, scored: bool = False
) -> tuple[Coordinator, Recorder]:
    address: dict[str, Any] = store.client.get_connection_kwargs()
    (directory / "redis").mkdir(parents=True, exist_ok=True)
    (directory / "redis" / "run_id").write_text(store.run_id)
    (directory / "redis" / "url").write_text(f"unix://:{address['password']}@{address['path']}")
    (directory / "config.yaml").write_text(f"max_policy_lag: {lag}\n")
    plan = RunPlan(
        run_id=store.run_id,
        run_seed=0,
        policy_id="policy",
        config_hash="c",
        tickets_per_step=BATCH,
        max_policy_lag=lag,
        on_stale="wait",
        total_learner_steps=steps,
        total_env_steps=None,
        ticket_deadline_s=1,
        checkpoint_every_steps=4,
        eval_every_steps=None,
        prefetch_steps=1 if lag else 0,
        consumption_log=directory / "logs" / LOG_NAME,
        exact_checkpoints=False,
        scored=scored,
    )
    workers.scores = scored
    recorder = Recorder(directory)
    coordinator = Coordinator(
        plan,
        tasks=ShardSource(BATCH, "fragment"),
        workers=workers,
        ledger=Ledger(store, tickets_per_step=BATCH),
        checkpoints=CheckpointWriter(directory, keep=3),
        observers=[recorder],
        watchdog=Watchdog(warning_s=5, timeout_s=10),
        failures=FailureBudget(max_failures=100),
    )
    coordinator.begin()
    coordinator.checkpoint_now()
    return coordinator, recorder
