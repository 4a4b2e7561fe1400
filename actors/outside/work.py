"""What an outside actor does from joining to the run's end: a ticket, its weights, a trajectory, and again. Who acts is
given; a gateway that goes away is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rollcall.actors.outside.gateway_client import (
    LONG_POLL_S,
    GatewayAway,
    GatewayClient,
    GatewayRefuses,
    Heartbeat,
    HttpWeights,
    Leased,
    RunOver,
    patiently,
)
from rollcall.actors.outside.protocol import OutsideExperience
from rollcall.cluster.errors import BadInput, NonFinite, StaleEpoch, WeightsTimeout
from rollcall.cluster.messages.attempt import Produced, Ticket
from rollcall.cluster.messages.experience import GymExperience, GymTrajectory

PAUSE_S = 1.0  # before it joins or posts again


class Producer(Protocol):
    """Takes a ticket, hands back what it did."""

    def produce(self, ticket: Ticket) -> tuple[Produced, GymExperience]: ...
    def close(self) -> None: ...


MakeProducer = Callable[[Mapping[str, Any], str, HttpWeights], Producer]  # of what the run says, an id, its weights


class OutsideActor:
    """One actor of one run."""

    def __init__(
        self,
        gateway: GatewayClient,
        make: MakeProducer,
        *,
        name: str,
        patience_s: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`patience_s`: how long a gateway that is away is waited for; `tell`: what is worth a line."""
        self._gateway, self._make = gateway, make
        self._name, self._patience_s, self._tell = name, patience_s, tell
        self._run: Mapping[str, Any] | None = None
        self._producer: Producer | None = None
        self._lease_s = 0.0
        self.accepted = 0  # trajectories that were taken

    def work(self) -> None:
        """Until the run is over.

        Raises:
          BadInput: the gateway will not have this actor, or the actor cannot be made here.
          GatewayAway: it has not come back.
          EnvFailure: the env raised, as often as allowed.
        """
        try:
            while True:
                self._join()
                try:
                    while True:
                        self._one_ticket()
                except GatewayAway as away:
                    self._tell(str(away))
                except GatewayRefuses as refused:  # it has another driver, or took us for dead
                    self._tell(str(refused))
                time.sleep(PAUSE_S)
        except RunOver as over:
            self._tell(str(over))
        finally:
            if self._producer is not None:
                self._producer.close()

    def leave(self) -> None:
        """What was under way is made by another."""
        try:
            self._gateway.leave()
        except (GatewayAway, GatewayRefuses, RunOver):
            return

    def _join(self) -> None:
        joined = patiently(lambda: self._gateway.join(self._name), self._patience_s, self._tell)
        self._lease_s = joined.lease_s
        if self._run is not None and joined.run != self._run:
            raise BadInput(
                f"{self._gateway.url} serves another run now ({joined.run.get('run')}): start the actor anew"
            )
        if self._producer is None:
            self._producer = self._make(joined.run, joined.actor_id, HttpWeights(self._gateway))
            joined = self._gateway.join(self._name)  # making it may have taken longer than a lease
        self._run = joined.run
        self._tell(f"joined {joined.run.get('run')} as {joined.actor_id}")

    def _one_ticket(self) -> None:
        assert self._producer is not None
        leased = self._lease()
        if leased is None:
            return
        try:
            with Heartbeat(self._gateway, leased.secret, self._lease_s / 3) as heartbeat:
                produced, trajectory = self._producer.produce(leased.ticket)
        except (StaleEpoch, WeightsTimeout, NonFinite) as error:  # the lease is given back by leaving
            self._tell(f"ticket {leased.ticket.header.ticket_id}: {error}")
            self._gateway.leave()
            raise GatewayAway("left, to join again") from None
        if heartbeat.lost:
            self._tell(f"ticket {leased.ticket.header.ticket_id} is not ours any more: {heartbeat.lost}")
            return
        assert isinstance(trajectory, GymTrajectory), "a run that learns from gradients has no outside actors"
        self._post(leased, OutsideExperience(trajectory, produced.episodes, produced.timing, produced.env_restarts))

    def _lease(self) -> Leased | None:
        try:
            return self._gateway.lease(min(LONG_POLL_S, self._lease_s / 2))
        except GatewayRefuses as refused:
            if refused.status == 503:
                return None
            raise

    def _post(self, leased: Leased, experience: OutsideExperience) -> None:
        """Again where the answer was lost: it counts once."""
        for tries_left in (2, 1, 0):
            try:
                self._gateway.post(leased.secret, experience)
                self.accepted += 1
                return
            except GatewayAway:
                if not tries_left:
                    raise
            except GatewayRefuses as refused:
                if refused.status == 503 and tries_left:
                    time.sleep(min(refused.retry_after_s, PAUSE_S))
                    continue
                self._tell(f"ticket {leased.ticket.header.ticket_id} was refused: {refused}")
                if refused.status in (409, 422, 503):
                    return
                raise
