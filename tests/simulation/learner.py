"""A simulated learner: it keeps the real consumption log, writes the learner's part of real checkpoints and publishes
to the real parameter server; it dies before and after each, and may answer when it is long given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rollcall.cluster.books.consumption import ConsumptionLog
from rollcall.cluster.checkpoint import write_state, write_weights
from rollcall.cluster.messages.events import LearnerLost, LearnerSaved, StepDone, VersionMade
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import Weights, pack_weights
from tests.simulation.actors import LATENCY_S, Rollout
from tests.simulation.referee import Referee
from tests.simulation.schedule import Chances
from tests.simulation.world import World

Order = tuple[StepOrder, Sequence[Rollout]]


class SimulatedLearner:
    def __init__(
        self,
        world: World,
        chances: Chances,
        referee: Referee,
        log: Path,
        publish: Callable[[Weights, Callable[[], None]], None],
    ) -> None:
        """`publish`: the weights, and what follows once they can be had."""
        self._world, self._chances, self._referee, self._publish = world, chances, referee, publish
        self._log_path = log
        self._log = ConsumptionLog(log)
        self._steps: deque[Order] = deque()
        self._life = 0
        self._works = False
        self._interrupted = False
        self.is_up = False
        self.has_saved = False
        self.unlogged: Order | None = None  # the step that it is at, before its line is in the log

    def start(self, *, epoch: int, version: int) -> None:
        """Up after a while, with these weights."""
        self._life, life = self._life + 1, self._life + 1
        here = (epoch, version)

        def up() -> None:
            if life != self._life:
                return
            if self.has_saved and self._chances.happens("learner_dies_starting", *here):
                self._lose("it was killed while it started")
                return
            self.is_up = True
            self._log = ConsumptionLog(self._log_path)
            self._publish(weights(epoch, version), self._begin)

        self._world.after(self._chances.between(0.1, 4.0, "starts", *here), up)

    def submit(self, order: StepOrder, rollouts: Sequence[Rollout]) -> None:
        self._steps.append((order, rollouts))
        self._begin()

    def interrupt(self) -> None:
        self._interrupted = True
        if not self._works:
            self._begin()

    def save(self, directory: Path, *, epoch: int, version: int) -> None:
        life = self._life

        def saved() -> None:
            if life == self._life:
                self._write(directory, epoch, version)
                self._world.tell(LearnerSaved(), LATENCY_S)

        self._world.after(0.1, saved)

    def doing(self) -> str:
        return f"the learner (up: {self.is_up}) on {len(self._steps)} steps"

    def _begin(self) -> None:
        if not self.is_up or self._works or not self._steps:
            return
        order, _ = self._steps[0]
        here, life = (order.step, order.epoch), self._life
        if self._interrupted:
            self._steps.popleft()
            self._world.tell(StepDone(_report(order, interrupted=True)), LATENCY_S)
            self._begin()
            return
        self._works, self.unlogged = True, self._steps[0]
        takes_s = self._chances.between(0.3, 2.0, "learns", *here)
        if self._chances.happens("learner_dies_before", *here):
            self._world.after(takes_s / 2, lambda: self._dies(life, "before it had learnt"))
        else:
            self._world.after(takes_s, lambda: self._learnt(life))

    def _learnt(self, life: int) -> None:
        """Log, checkpoint, weights, answer: in that order."""
        if life != self._life:
            return
        order, rollouts = self._steps[0]
        here = (order.step, order.epoch)
        self._log.append(order.step, order.epoch, rollouts)
        self.unlogged = None
        if self._chances.happens("learner_dies_updated", *here):
            self._dies(life, "after its update")
            return
        if order.checkpoint_directory is not None:
            if self._chances.happens("learner_dies_saving", *here):
                write_weights(order.checkpoint_directory, weights(order.epoch, order.step + 1))
                self._dies(life, "while it saved")
                return
            self._write(order.checkpoint_directory, order.epoch, order.step + 1)
        if self._chances.unit("quiet", *here) > 0.2:  # that a version is made need not be said
            self._world.tell(VersionMade(order.epoch, order.step + 1), LATENCY_S)
        self._publish(weights(order.epoch, order.step + 1), lambda: self._published(life, order))

    def _published(self, life: int, order: StepOrder) -> None:
        if life != self._life:
            return
        here = (order.step, order.epoch)
        done = StepDone(_report(order, skipped=self._chances.happens("skipped", *here)), 0.01)
        if self._chances.happens("learner_dies_published", *here):
            self._dies(life, "after it had published")
            if self._chances.happens("late_step", *here):
                self._world.tell(done, 8.0 * self._chances.unit("late", *here) + LATENCY_S)
            return
        self._steps.popleft()
        self._works = False
        self._world.tell(done, LATENCY_S)
        if self._chances.happens("learner_dies_committed", *here):
            self._world.after(2 * LATENCY_S, lambda: self._dies(life, "after its step was committed"))
        self._begin()

    def _write(self, directory: Path, epoch: int, version: int) -> None:
        write_weights(directory, weights(epoch, version))
        write_state(directory, "learner", {}, {})
        self.has_saved = True

    def _dies(self, life: int, when: str) -> None:
        if life == self._life:
            self._lose(f"it was killed {when}")

    def _lose(self, detail: str) -> None:
        self._life += 1
        self._steps.clear()
        self._works, self.is_up, self.unlogged = False, False, None
        self._world.tell(LearnerLost(detail), self._chances.between(0.01, 3.0, "noticed", self._life))


def weights(epoch: int, version: int) -> Weights:
    return pack_weights("policy", epoch, version, {"w": np.array([version])})


def _report(order: StepOrder, *, skipped: bool = False, interrupted: bool = False) -> StepReport:
    return StepReport(order.step, order.epoch, skipped, 0.1, 0.0, 1e-3, {"loss": 0.0}, interrupted)
