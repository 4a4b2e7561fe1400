"""The learner processes of a run on Ray, as one member: started, given steps, interrupted, saved, and lost. A step ends
when its weights are published, and the steps end in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.events import Event, Handle, LearnerLost, LearnerSaved, StepDone, VersionMade
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.deploy.rundir.storage_faults import storage_fault
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.deaths import Deaths
from rollcall.deploy.runtimes.on_ray.faults import (
    BLAMELESS_DELAY_S,
    CONTROL_TIMEOUT_S,
    START_TIMEOUT_S,
    cause_of,
    death_of,
    is_raised,
    no_room_for,
    node_of,
)
from rollcall.deploy.runtimes.on_ray.parameter_server import RayParameterServer


@dataclass(slots=True, eq=False)
class _Step:
    order: StepOrder
    handles: Sequence[Handle]
    weights: Any = None
    report: StepReport | None = None
    done_at: float = 0.0


class RayLearner:
    """All processes of one learner. What is asked of them before they are up is asked once they are."""

    def __init__(
        self,
        spawn: Callable[[], list[Any]],
        budget: RestartBudget,
        calls: Calls,
        server: RayParameterServer,
        *,
        device: str,
        sends_weights: bool,
        tell_up: Callable[[str, float], None],
        tell_failed: Callable[[str], None],
        deaths: Deaths | None = None,
    ) -> None:
        """`sends_weights`: to engines, from process 0, beside what the parameter server keeps. `tell_up`: that it
        is up, after so many seconds; `tell_failed`: why it did not start."""
        self._spawn = spawn
        self._budget = budget
        self._calls = calls
        self._server = server
        self._device = device
        self._sends_weights = sends_weights
        self._tell_up = tell_up
        self._tell_failed = tell_failed
        self.processes: list[Any] = spawn()  # these import meanwhile what they need
        self._deaths = deaths or Deaths()
        self.is_up = False
        self._node_id = ""
        self._newest_step = -1  # that was ever done here
        self._steps: deque[_Step] = deque()
        self._once_up: list[Callable[[], None]] = []
        self._checkpoint: Path | None = None  # that it starts from
        self._start_at: float | None = None  # again: it was killed while it started
        self._interrupted = False
        self.failed_starts = 0

    def start(self, checkpoint: Path | None) -> None:
        self._checkpoint, self._start_at = checkpoint, None
        self.processes = self.processes or self._spawn()
        if len(self.processes) == 1:
            self._meet_at("")
        else:
            self._expect([self.processes[0].address.remote()], self._on_address, START_TIMEOUT_S)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        """The weights that it starts from."""
        if not self._is_asked_later(partial(self.publish_initial, epoch=epoch, version=version)):
            replies = [process.weights.remote(epoch, version) for process in self.processes]
            self._publish(replies[0], list)

    def submit(self, order: StepOrder, handles: Sequence[Handle]) -> None:
        step = _Step(order, handles)
        self._steps.append(step)
        self._send(step)

    def save(self, directory: Path, *, epoch: int, version: int) -> None:
        """Answered by LearnerSaved."""
        if not self._is_asked_later(partial(self.save, directory, epoch=epoch, version=version)):
            replies = [process.save.remote(directory, epoch, version) for process in self.processes]
            self._expect(replies, self._on_saved, START_TIMEOUT_S)

    def interrupt(self) -> None:
        self._interrupted = True
        for process in self.processes:
            process.interrupt.remote()

    def check(self) -> None:
        """Finds out whether it lives: while it has no step to do nobody else does, and actors that fetch their weights
        from it fail until it is replaced."""
        if self.is_up:
            self._expect([self.processes[0].is_here.remote()], self._on_here)

    def tend(self) -> list[Event]:
        """Starts one again that was killed while it started. Of an interrupted learner, the steps end that wait for
        something else than the learner itself."""
        if self._start_at is not None and self._calls.clock() >= self._start_at:
            self.start(self._checkpoint)
        if not self._interrupted or not self._steps:
            return []
        first = self._steps[0]
        if first.report is not None:  # a run that stops needs its weights nowhere
            return self._end(first)
        if self.is_up:
            return []
        steps, self._steps = self._steps, deque()
        return [StepDone(_interrupted(step.order)) for step in steps]

    def doing(self) -> list[str]:
        """In words: what it works on."""
        if not self.is_up:
            return ["the learner to start" if self._start_at is None else "the learner to be started again"]
        return [f"the learner on step {self._steps[0].order.step}"] if self._steps else []

    # Start.

    def _on_address(self, answer: Answer) -> list[Event]:
        try:
            (address,) = answer()
        except RayError as error:
            return self._did_not_start(error)
        self._meet_at(address)
        return []

    def _meet_at(self, address: str) -> None:
        replies = [process.start.remote(address, self._device, self._checkpoint) for process in self.processes]
        self._expect(replies, partial(self._on_started, self._calls.clock()), START_TIMEOUT_S)

    def _on_started(self, since: float, answer: Answer) -> list[Event]:
        try:
            self._node_id = answer()[0]
        except RayTaskError as error:
            if len(self.processes) == 1:
                return self._did_not_start(error)
            # Another one may be gone that it was to meet, of which Ray has not told yet: that is asked for first.
            here = [process.is_here.remote() for process in self.processes]
            self._expect(here, partial(self._on_all_here, error), CONTROL_TIMEOUT_S)
            return []
        except RayError as error:
            return self._did_not_start(error)
        self.is_up = True
        self._tell_up("the learner", self._calls.clock() - since)
        once_up, self._once_up = self._once_up, []
        for ask in once_up:
            ask()
        return []

    def _on_all_here(self, raised: RayTaskError, answer: Answer) -> list[Event]:
        try:
            answer()
        except RayActorError as error:
            return self._did_not_start(error)
        except RayError:
            pass
        return self._did_not_start(raised)

    def _did_not_start(self, error: RayError) -> list[Event]:
        """One that was killed is started again, from where it was to start; what it is to be asked then waits.

        Raises:
          RollcallError: why another one would not start either, or that it was started too often.
        """
        if isinstance(error, GetTimeoutError):
            raise RollcallError(no_room_for("the learner")) from None
        cause = cause_of(error)
        if isinstance(cause, RollcallError):
            raise cause from None
        if why := storage_fault(cause) or self._deaths.at_start("the learner", "learner", error):
            raise RollcallError(why) from error
        detail = f"the learner was killed while it started: {death_of(error)}"
        self._tell_failed(detail)
        with_node = isinstance(error, RayActorError) and node_of(error, "", self._calls.api.nodes())
        delay_s = BLAMELESS_DELAY_S if with_node else self._budget.next_delay_s(detail)
        self.failed_starts += 1
        self._end_processes()
        self._start_at = self._calls.clock() + delay_s
        return []

    # Steps.

    def _send(self, step: _Step) -> None:
        if self._is_asked_later(partial(self._send, step)):
            return
        replies = [process.step.options(num_returns=2).remote(step.order, *step.handles) for process in self.processes]
        step.weights = replies[0][1]
        self._expect([reply[0] for reply in replies], partial(self._on_reports, step))

    def _on_reports(self, step: _Step, answer: Answer) -> list[Event]:
        try:
            step.report = answer()[0]
        except RayError as error:
            return [self._lose(error)]
        step.done_at = self._calls.clock()
        if step.order.step > self._newest_step:  # a step done again, after a restore, is no sign that the next can be
            self._newest_step = step.order.step
            self._budget.came_through()
        made = [] if step.report.interrupted else [VersionMade(step.order.epoch, step.order.step + 1)]
        return [*(self._advance() if step is self._steps[0] else []), *made]  # publishes before anybody asks

    def _advance(self) -> list[Event]:
        """Publishes what the first step learnt, if it is done."""
        if not self._steps or (report := self._steps[0].report) is None:
            return []
        first = self._steps[0]
        if report.interrupted:
            return self._end(first)
        self._publish(first.weights, partial(self._end, first))
        return []

    def _end(self, step: _Step) -> list[Event]:
        if not self._steps or step is not self._steps[0]:  # it was lost with the learner, or has ended already
            return []
        assert step.report is not None
        self._steps.popleft()
        return [StepDone(step.report, self._calls.clock() - step.done_at), *self._advance()]

    def _publish(self, weights: Any, then: Callable[[], list[Event]]) -> None:
        self._server.publish(weights, self.processes[0] if self._sends_weights else None, then)

    def _on_saved(self, answer: Answer) -> list[Event]:
        try:
            answer()
        except RayError as error:
            return [self._lose(error)]
        return [LearnerSaved()]

    # Inside.

    def _is_asked_later(self, ask: Callable[[], None]) -> bool:
        if not self.is_up:
            self._once_up.append(ask)
        return not self.is_up

    def _expect(
        self, replies: list[Any], then: Callable[[Answer], list[Event]], timeout_s: float = float("inf")
    ) -> None:
        self._calls.expect_all(replies, then, owner=self, timeout_s=timeout_s)

    def _on_here(self, answer: Answer) -> list[Event]:
        try:
            answer()
        except RayActorError as error:
            return [self._lose(error)]
        return []

    def _lose(self, error: RayError) -> Event:
        """The driver is to start it again, from a checkpoint.

        Raises:
          RollcallError: when another one would end the same way, or has to be started too often.
        """
        cause = cause_of(error)
        if isinstance(cause, RollcallError):
            raise cause
        if refused := storage_fault(cause):
            raise RollcallError(f"the learner cannot write: {refused}: make room, and resume the run") from error
        blameless = False
        if isinstance(error, RayActorError):
            detail = self._deaths.of("the learner", "learner", error)
            blameless = node_of(error, self._node_id, self._calls.api.nodes())
        else:
            detail = self._deaths.raised("the learner", "learner", error, "logs/learner-0.log")
        if not blameless:
            self._budget.next_delay_s(detail, raised=is_raised(error))
        self._steps.clear()
        self._once_up.clear()
        self._end_processes()
        return LearnerLost(detail)

    def _end_processes(self) -> None:
        self._calls.forget(self)
        self.is_up = False
        for process in self.processes:
            self._calls.api.kill(process)
        self.processes = []


def _interrupted(order: StepOrder) -> StepReport:
    """Of a step that never began."""
    return StepReport(order.step, order.epoch, False, 0.0, 0.0, 0.0, interrupted=True)
