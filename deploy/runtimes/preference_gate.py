"""What a run from preferences produced waits here until the reward model has learnt from the labels that are due. Keeps
one preference trainer at work, in whichever process it is; nothing here waits or asks Ray."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from rollcall.cluster.errors import RewardTimeout
from rollcall.cluster.loop.supervision import Clock, RestartBudget
from rollcall.cluster.messages.attempt import Produced
from rollcall.cluster.messages.events import Handle
from rollcall.deploy.kinds.preference_trainer import TrainerReport

SILENT_S = 300.0  # a trainer at work that was not heard of for so long hangs; starting one may take as long
BEATS_EVERY_S = 5.0

_log = logging.getLogger("rollcall")


class TrainerLost(Exception):
    """A trainer has died. `raised`: by an exception of its own code."""

    def __init__(self, detail: str, *, raised: bool = False) -> None:
        super().__init__(detail)
        self.raised = raised


class TrainerCalls(Protocol):
    """A PreferenceTrainer somewhere. Nothing here waits, unless it is in this very process."""

    def start(self) -> None:
        """A new one; what an earlier one was offered or asked is forgotten."""

    def offer(self, trajectory: Handle) -> None: ...
    def advance(self, due: int) -> None: ...
    def report(self) -> TrainerReport | None:
        """Of the `advance` that was asked for last; None while it is under way.

        Raises:
          TrainerLost: it has died.
          RollcallError: it cannot go on, and another one could not either.
        """

    def beats(self) -> int:
        """Grows for as long as it gets work done; the newest that is known here."""

    def end(self) -> None:
        """At once, wherever it hangs."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    produced: Produced
    trajectory: Handle
    due: int  # labels
    since: float


class PreferenceGate:
    """Lets trajectories through to be scored, the oldest first."""

    def __init__(
        self,
        trainer: TrainerCalls,
        *,
        due: Callable[[int], int],
        patience_s: float,
        budget: RestartBudget,
        clock: Clock = time.monotonic,
    ) -> None:
        """`due`: how many labels, at a policy version. `patience_s`: with whoever labels."""
        self._trainer = trainer
        self._due = due
        self._patience_s = patience_s
        self._budget = budget
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._state: Literal["down", "idle", "busy"] = "down"
        self._start_at = 0.0  # when it is to be started again
        self._report = TrainerReport(num_labels=0, learnt=0)
        self._beats = (0, 0.0)  # the newest, and when it was new
        self._next_beats = 0.0
        self.restarts = 0

    def __len__(self) -> int:
        """Trajectories that wait."""
        return len(self._waiting)

    def start(self) -> None:
        """The trainer, offered again what waits for it."""
        self._trainer.start()
        self._state = "idle"
        for item in self._waiting:
            self._trainer.offer(item.trajectory)

    def hold(self, produced: Produced, trajectory: Handle) -> None:
        """Takes what is to be scored, and offers it for comparison."""
        self._waiting.append(_Waiting(produced, trajectory, self._due(produced.min_policy_version), self._clock()))
        if self._state != "down":
            self._trainer.offer(trajectory)

    def tend(self) -> list[tuple[Produced, Handle]]:
        """What may be scored now; has the trainer go on.

        Raises:
          RewardTimeout: labels did not come within the patience.
          BudgetSpent: the trainer has failed too often.
          RollcallError: it cannot go on.
        """
        now = self._clock()
        if self._state == "down" and now >= self._start_at:
            self.restarts += 1
            self.start()
        elif self._state == "busy":
            self._look(now)
        learnt = self._report.learnt
        passed = [(item.produced, item.trajectory) for item in self._waiting if item.due <= learnt]
        self._waiting = deque(item for item in self._waiting if item.due > learnt)
        if self._waiting:
            self._check_patience(now)
            if self._state == "idle":
                self._trainer.advance(max(item.due for item in self._waiting))
                self._state, self._beats, self._next_beats = "busy", (self._beats[0], now), now
        return passed

    def doing(self) -> list[str]:
        """In words, what is waited for."""
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        goal = f"{self._report.num_labels} of {oldest.due} labels and the reward model that learns from them"
        trainer = "the preference trainer, which is started again" if self._state == "down" else goal
        return [f"{trainer} for {self._clock() - oldest.since:.0f} s"]

    def _look(self, now: float) -> None:
        try:
            report = self._trainer.report()
        except TrainerLost as lost:
            self._lose(str(lost), now, raised=lost.raised)
            return
        if report is None:
            self._listen(now)
            return
        before, self._state = self._report, "idle"
        self._report = TrainerReport(report.num_labels, max(report.learnt, before.learnt))
        if self._report != before:
            self._budget.came_through()

    def _listen(self, now: float) -> None:
        if now < self._next_beats:
            return
        self._next_beats = now + BEATS_EVERY_S
        beats = self._trainer.beats()
        if beats != self._beats[0]:
            self._beats = (beats, now)
        elif now - self._beats[1] > SILENT_S:
            self._trainer.end()
            self._lose(f"the preference trainer hangs: nothing was heard of it for {SILENT_S:.0f} s", now)

    def _lose(self, detail: str, now: float, *, raised: bool = False) -> None:
        """Labels and models are on the disk: another one goes on from them."""
        self._start_at = now + self._budget.next_delay_s(detail, raised=raised)
        self._state = "down"
        _log.warning("%s; it is started again", detail)

    def _check_patience(self, now: float) -> None:
        oldest = self._waiting[0]
        if now - oldest.since > self._patience_s:
            raise RewardTimeout(
                f"{self._report.num_labels} of {oldest.due} labels came within {self._patience_s:.0f} s: label "
                "at the run's page, or raise preferences.patience_s; then rollcall resume"
            )
