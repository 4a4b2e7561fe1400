"""The parameter server as a Ray actor, and its readers in other processes. Imports no torch: a server of bytes is up
long before the others are."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rollcall.cluster.errors import RollcallError, StaleEpoch
from rollcall.cluster.messages import Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.deploy.on_ray.faults import CONTROL_TIMEOUT_S

INLINE_BYTES = 100_000  # Ray sends smaller values within the reply; larger ones are put into shared memory once
POLL_TIMEOUT_S = 10.0  # of one long poll for newer weights


class ParameterServerProcess:
    """The parameter server as a Ray actor: holds a reference to each version that it still keeps. The objects are the
    driver's, as return values of the learner's steps: they outlive the learner, and lie in shared memory once."""

    def __init__(self, keep: int) -> None:
        self._server = ParameterServer(keep=keep)
        self._keep = keep
        self._objects: dict[tuple[int, int], Any] = {}

    def publish(self, references: list[Any]) -> int:
        """`references`: one reference, in a list so that Ray hands it over instead of its value."""
        weights: Weights = ray.get(references[0], timeout=CONTROL_TIMEOUT_S)
        if weights.size_bytes > INLINE_BYTES:  # known before anybody who waits for this version wakes up
            while len(self._objects) >= self._keep:
                del self._objects[next(iter(self._objects))]
            self._objects[weights.epoch, weights.version] = references[0]
        return self._server.publish(weights)

    def latest(self, epoch: int, newer_than: int, timeout_s: float, reader: str) -> Any:
        """Weights, a list of one reference to them, or None."""
        weights = self._server.latest(epoch=epoch, newer_than=newer_than, timeout_s=timeout_s, reader=reader)
        if weights is None:
            return None
        reference = self._objects.get((weights.epoch, weights.version))
        return weights if reference is None else [reference]

    def running(self) -> dict[str, tuple[int, int]]:
        return self._server.running()


class RayWeightsSource:
    """A WeightsSource whose parameter server is a Ray actor."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        reply = self._server.latest.remote(epoch, newer_than, timeout_s, reader)
        found = ray.get(reply, timeout=timeout_s + CONTROL_TIMEOUT_S)
        if isinstance(found, list):
            found = ray.get(found[0], timeout=CONTROL_TIMEOUT_S)
        return found  # type: ignore[no-any-return]


class PrefetchedWeights:
    """A WeightsSource that never waits: a thread fetches each version as it is published, and the newest is at hand.
    Where the server has died, whoever asks is told so."""

    def __init__(self, source: RayWeightsSource, reader: str) -> None:
        self._source = source
        self._reader = reader
        self._epoch = -1
        self._newest: Weights | None = None
        self._server_died: RayActorError | None = None
        self._wanted = threading.Event()
        threading.Thread(target=self._run, name="weights", daemon=True).start()

    def use_epoch(self, epoch: int) -> None:
        self._epoch = max(self._epoch, epoch)
        self._wanted.set()

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        if self._server_died is not None:
            raise self._server_died
        newest = self._newest
        if newest is None or newest.epoch != epoch or newest.version <= newer_than:
            return None
        return newest

    def _run(self) -> None:
        self._wanted.wait()
        while True:
            newest = self._newest
            newer_than = newest.version if newest is not None and newest.epoch == self._epoch else -1
            try:
                found = self._source.latest(
                    epoch=self._epoch, newer_than=newer_than, timeout_s=POLL_TIMEOUT_S, reader=self._reader
                )
            except RayActorError as error:
                self._server_died = error
                return
            except (StaleEpoch, RayError, RollcallError):
                time.sleep(1.0)  # of an epoch that has ended, perhaps: ask again
                continue
            if found is not None:
                self._newest = found
