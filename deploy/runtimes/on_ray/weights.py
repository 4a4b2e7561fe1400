"""The parameter server as a Ray actor, and its readers in other processes. Imports no torch: a server of bytes is up
long before the others are."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rollcall.cluster.errors import RollcallError, StaleEpoch
from rollcall.cluster.messages.weights import Canary, Weights
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.deploy.runtimes.on_ray.faults import CONTROL_TIMEOUT_S

INLINE_BYTES = 100_000  # Ray sends smaller values within the reply; larger ones are put into shared memory once
POLL_TIMEOUT_S = 10.0  # of one long poll for newer weights
SEND_TIMEOUT_S = 300.0  # without a call of the learner's, while an engine takes weights: others may be served before


class ParameterServerProcess:
    """The parameter server as a Ray actor: holds a reference to each version that it still keeps. The objects are the
    driver's, as return values of the learner's steps: they outlive the learner, and lie in shared memory once."""

    def __init__(self, keep: int) -> None:
        self._server = ParameterServer(keep=keep)
        self._keep = keep
        self._sender: Any = None
        self._objects: dict[tuple[int, int], Any] = {}

    def publish(self, weights: Weights, references: list[Any], sender: Any = None) -> bool:
        """Returns whether it wants to have these weights' reference, too. `references`: that, in a list so that Ray
        hands it over as it is, or nothing. `sender`: the learner process that they can also be fetched from."""
        is_large = weights.size_bytes > INLINE_BYTES
        if is_large and references:  # known before anybody who waits for this version wakes up
            while len(self._objects) >= self._keep:
                del self._objects[next(iter(self._objects))]
            self._objects[weights.epoch, weights.version] = references[0]
        self._sender = sender
        self._server.publish(weights)
        return is_large

    def latest(self, epoch: int, newer_than: int, timeout_s: float, reader: str) -> Any:
        """Weights, a list of one reference to them, or None."""
        weights = self._server.latest(epoch=epoch, newer_than=newer_than, timeout_s=timeout_s, reader=reader)
        if weights is None:
            return None
        reference = self._objects.get((weights.epoch, weights.version))
        return weights if reference is None else [reference]

    def announced(self, epoch: int, newer_than: int, timeout_s: float, reader: str) -> tuple[int, int, Any] | None:
        """As `latest`: (epoch, version, whoever sends these weights)."""
        weights = self._server.latest(epoch=epoch, newer_than=newer_than, timeout_s=timeout_s, reader=reader)
        return None if weights is None else (weights.epoch, weights.version, self._sender)

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


class RayOffersSource:
    """As RayWeightsSource, of weights that stay with the learner until they are sent to an engine's GPU."""

    def __init__(self, server: Any, engine: ControlCalls, transport: str, actor_id: str) -> None:
        self._server = server
        self._engine = engine
        self._own = (actor_id, ray.get_runtime_context().current_actor, transport)

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> RayOffer | None:
        reply = self._server.announced.remote(epoch, newer_than, timeout_s, reader)
        found = ray.get(reply, timeout=timeout_s + CONTROL_TIMEOUT_S)
        if found is None:
            return None
        epoch, version, sender = found
        return RayOffer(epoch, version, sender, self._engine, self._own)


@dataclass(frozen=True, slots=True)
class RayOffer:
    """An actors.vllm_engine.WeightsOffer of a learner process."""

    epoch: int
    version: int
    sender: Any
    engine: ControlCalls
    receiver: tuple[str, Any, str]  # actor, its handle, transport: who asks for what

    def accept(self, control: Callable[[str, Mapping[str, Any]], None]) -> tuple[int, int, Canary | None]:
        came: tuple[int, int, Canary | None] = self.engine.serve(
            self.sender.send_weights.remote(*self.receiver), control
        )
        return came


class ControlCalls:
    """vLLM's control calls on their way from the learner's process to the thread that owns the engine. That thread
    serves them while it takes weights, and at no other time."""

    def __init__(self, leave: Callable[[], None]) -> None:
        """`leave`: ends this process. A call that receives from a learner that has died may never return."""
        self._calls: queue.SimpleQueue[tuple[str, Mapping[str, Any], Future[None]] | None] = queue.SimpleQueue()
        self._under_way = False
        self._leave = leave

    def put(self, method: str, arguments: Mapping[str, Any]) -> Future[None]:
        """Set when the call is done."""
        answer: Future[None] = Future()
        self._calls.put((method, arguments, answer))
        return answer

    def serve(self, sending: Any, control: Callable[[str, Mapping[str, Any]], None]) -> Any:
        """Carries out the calls that come until `sending`, a Ray reference, is there; returns its value or raises.

        Raises:
          RollcallError: when no call came for too long.
        """
        done = sending.future()
        done.add_done_callback(self._sent)
        while (call := self._next()) is not None:
            method, arguments, answer = call
            self._under_way = True
            if done.done():  # it failed while this call was on its way, which might wait for it for ever
                self._under_way = False
                break
            try:
                control(method, arguments)
            except Exception as error:
                self._under_way = False
                answer.set_exception(error)
            else:
                self._under_way = False
                answer.set_result(None)
        return done.result()

    def _next(self) -> tuple[str, Mapping[str, Any], Future[None]] | None:
        try:
            return self._calls.get(timeout=SEND_TIMEOUT_S)
        except queue.Empty:
            raise RollcallError(f"the learner has sent nothing of its weights for {SEND_TIMEOUT_S:.0f} s") from None

    def _sent(self, done: Future[Any]) -> None:
        self._calls.put(None)
        if self._under_way and done.exception() is not None:
            self._leave()


class PrefetchedWeights:
    """A WeightsSource that never waits: a thread fetches each version as it is published, and the newest is at hand.
    Where the server has died, whoever asks is told so."""

    def __init__(self, source: RayWeightsSource | RayOffersSource, reader: str) -> None:
        self._source = source
        self._reader = reader
        self._epoch = -1
        self._newest: Weights | RayOffer | None = None
        self._server_died: RayActorError | None = None
        self._wanted = threading.Event()
        threading.Thread(target=self._run, name="weights", daemon=True).start()

    def use_epoch(self, epoch: int) -> None:
        self._epoch = max(self._epoch, epoch)
        self._wanted.set()

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | RayOffer | None:
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
