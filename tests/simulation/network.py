"""The network between the driver and a real Redis: it goes away, loses answers, and Redis comes back without its last
writes. The driver can die at each call. Counts what goes over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import redis

from rollcall.cluster.errors import StoreUnavailable
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store
from tests.simulation.schedule import Chances
from tests.simulation.world import World

PATIENCE_S = 60.0  # of the driver with a Redis that is away

T = TypeVar("T")


class DriverKilled(BaseException):
    """SIGKILL: nobody may catch it."""


class SimulatedStore(Store):
    """A store at a real Redis; its calls go over a simulated network."""

    def __init__(self, run_id: str, client: redis.Redis, world: World, chances: Chances) -> None:
        super().__init__(run_id, RedisConfig(), client)
        self._world, self._chances = world, chances
        self.driver = 0  # number of drivers before this one
        self.calls = 0  # of this driver
        self.all_calls = 0
        self.forgot = False  # Redis lost writes, and the driver that remembered them is gone
        self._forgets_at = -1
        self._has_forgotten = False  # since this driver began
        self._away_until = 0.0
        self.restoring = (
            False  # between the reading of a restore and its writing nothing is forgotten: nobody would see
        )
        self.mortal = True  # whether drivers die, and Redis fails, at all

    def call(self, operation: Callable[[redis.Redis], T]) -> T:
        self.calls += 1
        self.all_calls += 1
        if not self.mortal:
            return super().call(operation)
        here, chances = (self.driver, self.calls), self._chances
        if chances.happens("redis_away", *here):
            self._away_until = self._world.now + chances.between(0.1, 1.3 * PATIENCE_S, "away", *here)
        if chances.happens("driver_killed", *here, "before"):
            raise DriverKilled
        self._remember_or_forget(here)
        lost = [chances.happens("answer_lost", *here)]

        def over_the_network(client: redis.Redis) -> T:
            if self._world.now < self._away_until:
                raise redis.ConnectionError("away")
            answer = operation(client)
            if lost.pop() if lost else False:
                raise redis.TimeoutError("its answer was lost")
            return answer

        answer = super().call(over_the_network)
        if chances.happens("driver_killed", *here, "after"):
            raise DriverKilled
        return answer

    def _wait(self, backoff: Any, error: redis.RedisError) -> Any:
        """As the real one, on the simulated clock. `backoff`: when patience ends."""
        deadline = self._world.now + PATIENCE_S if backoff is None else backoff
        self._world.now += 0.5
        if self._world.now >= deadline or (backoff is not None and self.waits_no_longer()):
            self._away_until = 0.0  # the next driver finds it
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        return deadline

    # Redis comes back without its last writes.

    def _remember_or_forget(self, here: tuple[int, int]) -> None:
        if self._forgets_at < 0 and not self.restoring and self._chances.happens("redis_forgets", *here):
            self._copy(self._all_keys(), "", "kept:")
            self._forgets_at = self.calls + 1 + int(self._chances.between(0, 6, "forgets", *here))
        elif 0 <= self._forgets_at <= self.calls and not self.restoring:
            self._forget()

    def _forget(self) -> None:
        kept = [str(key).removeprefix("kept:") for key in cast(list[str], self.client.keys(f"kept:{self.key('')}*"))]
        for key in self._all_keys():
            self.client.delete(key)
        self._copy(kept, "kept:", "")
        self.client.delete(*(f"kept:{key}" for key in kept)) if kept else None
        self._forgets_at = -1
        self._has_forgotten = True

    def driver_gone(self) -> None:
        """With what it remembered."""
        if self._forgets_at >= 0:
            self._forget()
        self.forgot |= self._has_forgotten  # perhaps it had not noticed yet
        self._has_forgotten = False
        self.driver, self.calls = self.driver + 1, 0

    def _all_keys(self) -> list[str]:
        return list(cast(list[str], self.client.keys(f"{self.key('')}*")))

    def _copy(self, keys: list[str], out_of: str, into: str) -> None:
        for key in keys:
            self.client.execute_command("COPY", out_of + key, into + key, "REPLACE")
