"""The parameter server: takes each new version of the weights from the learner and hands the newest to whoever asks.
Plain and thread-safe; a runtime decides which process it lives in. It must never look inside the weights."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from rollcall.cluster.errors import ChecksumMismatch, StaleEpoch
from rollcall.cluster.messages.weights import Weights


class ParameterServer:
    """Holds the last `keep` versions of one policy in one epoch."""

    def __init__(self, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1")
        self._keep = keep
        self._epoch = 0
        self._versions: OrderedDict[int, Weights] = OrderedDict()
        self._verified: set[int] = set()
        self._running: dict[str, tuple[int, int]] = {}  # who -> (epoch, version) it runs
        self._changed = threading.Condition()

    def publish(self, weights: Weights) -> int:
        """Takes a version; a higher epoch forgets all versions of the lower one. Returns the version.

        Raises:
          StaleEpoch: for an epoch that has ended.
          ValueError: for a version that is not newer than the newest.
        """
        with self._changed:
            if weights.epoch < self._epoch:
                raise StaleEpoch(f"weights of epoch {weights.epoch} refused: epoch {self._epoch} has begun")
            if weights.epoch > self._epoch:
                self._epoch = weights.epoch
                self._versions.clear()
                self._verified.clear()
            if self._versions and weights.version <= next(reversed(self._versions)):
                raise ValueError(
                    f"version={weights.version}: not newer than {next(reversed(self._versions))}, which is published"
                )
            while len(self._versions) >= self._keep:  # free the oldest before taking the next
                version, _ = self._versions.popitem(last=False)
                self._verified.discard(version)
            self._versions[weights.version] = weights
            self._changed.notify_all()
            return weights.version

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        """The newest weights of `epoch` if newer than `newer_than`, waiting up to `timeout_s`; else None.

        The checksum is verified on a version's first way out. `reader` is booked as running what it is given.

        Raises:
          StaleEpoch: if `epoch` has ended.
          ChecksumMismatch: if the bytes are not those that were published.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if epoch < self._epoch:
                    raise StaleEpoch(f"epoch {epoch} has ended: epoch {self._epoch} has begun")
                if epoch == self._epoch and self._versions:
                    weights = next(reversed(self._versions.values()))
                    if weights.version > newer_than:
                        self._verify(weights)
                        if reader:
                            self._running[reader] = (weights.epoch, weights.version)
                        return weights
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(remaining)

    def running(self) -> dict[str, tuple[int, int]]:
        """(epoch, version) that each reader was given last."""
        with self._changed:
            return dict(self._running)

    def _verify(self, weights: Weights) -> None:
        if weights.version in self._verified:
            return
        if weights.compute_checksum() != weights.checksum:
            raise ChecksumMismatch(
                f"weights of epoch {weights.epoch} version {weights.version} are not those that were published: "
                "checksum differs"
            )
        self._verified.add(weights.version)
