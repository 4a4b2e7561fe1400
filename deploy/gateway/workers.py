"""The coordinator's Workers of a run with actors outside Ray: the tickets of their shards go to the gateway, all other
work to the runtime. Knows neither HTTP nor Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.messages.attempt import Produced, ShardPayload, Ticket
from rollcall.cluster.messages.events import Event, Handle, States, TicketProduced, Workers
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.gateway.desk import Desk

FAREWELL_S = 0.5
SLICE_S = 0.01  # how long one of the two is waited for before the other is looked at


class Runtime(Workers, Protocol):
    """A runtime whose weights can be had in the driver, and which takes trajectories that others made."""

    def prepared(self, reward: RewardEndpoint | None) -> None: ...
    def start(self, checkpoint: Path | None, *, shard_state: States | None) -> None: ...
    def publish_initial(self, *, epoch: int, version: int) -> None: ...
    def close(self) -> None: ...
    @property
    def evals_pending(self) -> bool: ...
    @property
    def weights_hash(self) -> str: ...
    @property
    def newest(self) -> Handle | None:
        """The newest weights, or a reference to them."""

    def weights_of(self, newest: Handle) -> Weights | None:
        """Without waiting; None while they cannot be had."""

    def adopt(self, trajectory: GymTrajectory) -> Handle:
        """As what its own actors make is passed."""


class OutsideWorkers:
    """A runtime and the gateway, as one. `serve` takes each new version of the weights, before it may be acted with."""

    def __init__(
        self,
        inner: Runtime,
        desk: Desk,
        *,
        first_shard: int,
        serve: Callable[[Weights], None],
        shut: Callable[[], None],
    ) -> None:
        """Shards from `first_shard` on are the outside actors'. `shut`: at the end, when all have been told."""
        self._inner = inner
        self._desk = desk
        self._first_shard = first_shard
        self._serve = serve
        self._shut = shut
        self._seen: Handle | None = None

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        outside = [ticket for ticket in tickets if self._is_outside(ticket)]
        inside = [ticket for ticket in tickets if not self._is_outside(ticket)]
        if outside:
            self._desk.submit(outside)
        if inside:
            self._inner.submit_tickets(inside)

    def poll(self, timeout_s: float) -> list[Event]:
        """One of the two is waited for at a time, in turn."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._desk.tend()
            self._offer_weights()
            events = self._arrived(0.0) or self._inner.poll(min(SLICE_S, timeout_s)) or self._arrived(SLICE_S)
            if events or time.monotonic() >= deadline:
                self._offer_weights()
                return events

    def _arrived(self, timeout_s: float) -> list[Event]:
        return [self._adopted(event) for event in self._desk.take(timeout_s)]

    def _adopted(self, event: Event) -> Event:
        if not isinstance(event, TicketProduced):
            return event
        assert isinstance(event.handle, GymTrajectory)
        return TicketProduced(event.produced, self._inner.adopt(event.handle))

    def _offer_weights(self) -> None:
        newest = self._inner.newest
        if newest is None or newest is self._seen:
            return
        weights = self._inner.weights_of(newest)
        if weights is not None:
            self._seen = newest
            self._serve(weights)
            self._desk.published(weights.epoch, weights.version)

    def _is_outside(self, ticket: Ticket) -> bool:
        return isinstance(ticket.payload, ShardPayload) and ticket.payload.shard >= self._first_shard

    def submit_shard_states(self, undone: Collection[int] = ()) -> None:
        raise AssertionError("what outside actors keep cannot be had: such a run has no exact checkpoints")

    def waiting_for(self) -> str:
        return ", ".join([*self._desk.doing(), self._inner.waiting_for()])

    def close(self) -> None:
        self._desk.close()
        try:
            self._inner.close()
        finally:
            time.sleep(FAREWELL_S)  # whoever waits for a ticket is told that the run is over
            self._shut()

    # As the runtime does it.

    def prepared(self, reward: RewardEndpoint | None) -> None:
        self._inner.prepared(reward)

    def start(self, checkpoint: Path | None, *, shard_state: States | None) -> None:
        self._inner.start(checkpoint, shard_state=None)

    def publish_initial(self, *, epoch: int, version: int) -> None:
        self._inner.publish_initial(epoch=epoch, version=version)

    def submit_scoring(self, produced: Produced, handle: Handle) -> None:
        self._inner.submit_scoring(produced, handle)

    def submit_step(self, order: StepOrder, handles: Sequence[Handle]) -> None:
        self._inner.submit_step(order, handles)

    def submit_eval(self, *, step: int, env_steps: int) -> None:
        self._inner.submit_eval(step=step, env_steps=env_steps)

    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None:
        self._inner.submit_save(directory, epoch=epoch, version=version)

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int) -> None:
        self._inner.restart_learner(checkpoint, epoch=epoch, version=version)

    def interrupt_learner(self) -> None:
        self._inner.interrupt_learner()

    @property
    def have_started(self) -> bool:
        return self._inner.have_started

    @property
    def evals_pending(self) -> bool:
        return self._inner.evals_pending

    @property
    def weights_hash(self) -> str:
        return self._inner.weights_hash

    @property
    def restarts(self) -> int:
        return self._inner.restarts

    @property
    def restarts_by_role(self) -> Mapping[str, int]:
        return self._inner.restarts_by_role
