"""The Workers of a simulated run: what the coordinator asks of a runtime, put together of simulated members and a real
parameter server, which is lost now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

from rollcall.cluster.errors import StaleEpoch
from rollcall.cluster.messages.attempt import Produced, Ticket
from rollcall.cluster.messages.events import EvalDone, Event, Handle, LearnerLost, ShardStates
from rollcall.cluster.messages.reports import EvalReport, StepOrder
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.parameter_server import ParameterServer
from tests.simulation.actors import LATENCY_S, Actors, Rollout, Scorers
from tests.simulation.learner import SimulatedLearner
from tests.simulation.referee import Referee
from tests.simulation.schedule import Chances, Shape
from tests.simulation.world import Violation, World


class SimulatedWorkers:
    """All that a driver started; they are gone with it."""

    have_started = True

    def __init__(
        self, world: World, chances: Chances, referee: Referee, shape: Shape, log: Path, *, max_polls: int
    ) -> None:
        self._world, self._chances, self._referee, self._shape = world, chances, referee, shape
        self._server: ParameterServer | None = ParameterServer()
        self._servers = 1
        self._newest: Weights | None = None
        self._to_publish: list[tuple[Weights, Callable[[], None]]] = []  # until the server is there again
        self._actors = Actors(world, chances, referee, shape, server=lambda: self._server)
        self._scorers = Scorers(world, chances, shape)
        self.learner = SimulatedLearner(world, chances, referee, log, self._publish)
        self._later: deque[Event] = deque()
        self._polls = max_polls
        self._in_vain = False  # whether the last poll was
        self.evals_pending = 0
        self._evals = 0

    @property
    def restarts(self) -> int:
        return self._actors.restarts

    @property
    def restarts_by_role(self) -> Mapping[str, int]:
        return {"actor": self._actors.restarts}

    def start(self, *, epoch: int, version: int) -> None:
        self.learner.start(epoch=epoch, version=version)

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        self._referee.on_tickets(tickets)
        self._actors.submit(tickets)

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        self._scorers.submit(produced, cast(Rollout, handle))

    def submit_step(self, order: StepOrder, handles: Sequence[Handle]) -> None:
        rollouts = [cast(Rollout, handle) for handle in handles]
        self._referee.on_step(order, rollouts)
        self.learner.submit(order, rollouts)

    def submit_eval(self, *, step: int, env_steps: int) -> None:
        self._evals += 1
        here = (step, self._evals)
        fails = self._chances.happens("eval_fails", *here)
        report = None if fails else EvalReport("return", 1.0, 0.0, 1, (1.0,), (5,), step, 0)
        self.evals_pending += 1

        def done() -> None:
            self.evals_pending -= 1
            self._world.events.append(EvalDone(step, env_steps, report, "it failed" if fails else ""))

        self._world.after(3.0 * self._chances.pareto(1.1, "evaluates", *here), done)

    def poll(self, timeout_s: float) -> list[Event]:
        """Time moves to the next event, however far it is; but once nothing comes in time."""
        self._polls -= 1
        if self._polls < 0:
            raise Violation("no progress", f"the loop goes round and round, at {self._world.now:.0f} s")
        if not self._later and not self._in_vain and not self._world.comes_within(timeout_s):
            self._in_vain = True
            return []
        if not self._later:
            self._later.extend(self._world.advance(self._shape.gathers_s))
        self._in_vain = False
        events: list[Event] = []
        while self._later:
            events.append(self._later.popleft())
            if isinstance(events[-1], LearnerLost):  # what comes after it is of an epoch that has ended
                break
        self._referee.on_told(events)
        return events

    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None:
        self.learner.save(directory, epoch=epoch, version=version)

    def submit_shard_states(self, undone: Collection[int] = ()) -> None:
        self._world.tell(ShardStates(({}, {"undone": len(undone)})), LATENCY_S)

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int) -> None:
        self._referee.on_begun(epoch, version)
        self.learner.start(epoch=epoch, version=version)

    def interrupt_learner(self) -> None:
        self.learner.interrupt()

    def waiting_for(self) -> str:
        return f"{self._actors.doing()}; {self.learner.doing()}"

    # The parameter server.

    def _publish(self, weights: Weights, then: Callable[[], None]) -> None:
        if self._server is None:
            self._to_publish.append((weights, then))
            return
        if self._newest is None or weights.epoch >= self._newest.epoch:
            self._newest = weights  # not those of a learner that was given up: its successor publishes its own again
        self._take(weights)
        then()
        here = (weights.epoch, weights.version)
        if self._chances.happens("server_lost", *here):
            self._world.after(self._chances.between(0.0, 3.0, "server", *here), self._lose_server)

    def _take(self, weights: Weights) -> None:
        assert self._server is not None
        try:
            self._server.publish(weights)
        except StaleEpoch:
            return  # of a learner that was given up
        except ValueError as error:
            raise Violation("versions go back", str(error)) from error
        self._referee.on_published(self._servers, weights.epoch, weights.version)
        self._actors.published()

    def _lose_server(self) -> None:
        if self._server is None:
            return
        self._server = None
        self._actors.server_lost()
        self._world.after(self._chances.between(0.1, 5.0, "server back", self._servers), self._server_back)

    def _server_back(self) -> None:
        """With the newest weights, and those that came meanwhile."""
        self._server, self._servers = ParameterServer(), self._servers + 1
        if self._newest is not None:
            self._take(self._newest)
        waiting, self._to_publish = self._to_publish, []
        for weights, then in waiting:
            self._publish(weights, then)
