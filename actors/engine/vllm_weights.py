"""An engine's weights: taken as they are published or sent, and then looked at, whether every tensor is the one that
was meant to come."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rollcall.actors.engine import vllm_weight_transfer
from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.markers import Markers, Places
from rollcall.actors.engine.published_weights import MODEL_PREFIX, WeightsOffer, published_model
from rollcall.cluster.errors import EngineMismatch
from rollcall.cluster.messages.weights import Canary, Weights

WORKER_EXTENSION = "rollcall.actors.engine.vllm_worker.WorkerExtension"  # imported by vLLM alone, when it starts


class EngineWeights:
    """Of one engine."""

    def __init__(self, core: Any, directory: Path, names: CheckpointNames, *, dtype: str) -> None:
        self._core, self._directory = core, directory
        self._names = names
        self.model = f"{directory} ({names.kind})"
        self._dtype = dtype
        self._places: Places | None = None
        self.is_first = True  # nothing was loaded yet

    def load(self, weights: Weights, *, prefix: str) -> None:
        """Raises as VllmEngine.load does."""
        try:
            self._find_places()
            missing = vllm_weight_transfer.load(
                self._core, self._names.tensors(published_model(weights, prefix=prefix))
            )
        except Exception as error:
            if not self.is_first:
                raise
            raise EngineMismatch(
                f"{self.model}: vLLM does not take the learner's weights, so this kind of model cannot be trained: "
                f"{in_words(error)}"
            ) from error
        if missing:
            raise EngineMismatch(
                f"{self.model}: {len(missing)} of the engine's parameters got no weights from the learner, "
                f"{missing[0]} among them: this kind of model cannot be trained"
            )
        self._check(weights.canary, weights.version, prefix)

    def receive(self, offer: WeightsOffer) -> tuple[int, int, Canary | None]:
        """Raises as VllmEngine.receive does."""
        self._find_places()
        epoch, version, canary = offer.accept(
            lambda method, arguments: self._core.collective_rpc(method, kwargs=arguments)
        )
        self._check(canary, version, MODEL_PREFIX)
        return epoch, version, canary

    def _find_places(self) -> None:
        """Once, before the first weights: what the engine has until then is lost."""
        if self._places is not None:
            return
        markers = Markers(self._dtype, self._names.shapes())
        found = self._core.collective_rpc("rollcall_find", args=(str(self._directory), markers))
        self._places = Places(markers, found)
        if self._places.unknown:
            print(
                f"{self.model}: {len(self._places.unknown)} tensors lie in the engine in another form than published, "
                f"{self._places.unknown[0]} among them: of these, the engine's log-probabilities alone are compared",
                file=sys.stderr,
            )

    def _check(self, canary: Canary | None, version: int, prefix: str) -> None:
        """Exactly, so that the smallest update of a single tensor is missed: in half precision, log-probabilities
        differ by more than that through rounding."""
        if canary is None or canary.fingerprints is None or self._places is None:
            return
        wrong = self._places.wrong(canary.fingerprints, self._core.collective_rpc("rollcall_read"), prefix=prefix)
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise EngineMismatch(
                f"{self.model}: the engine does not have the learner's weights of policy version {version}: "
                f"{wrong[0].removeprefix(prefix)}{more} did not arrive as published; every ratio would be wrong, so "
                "the run stops: look at how weights reach the engine, actors.engine.weight_transfer "
                "(docs/operations.md, 'Engine and learner disagree')"
            )


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
