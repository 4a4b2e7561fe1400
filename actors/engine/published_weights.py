"""Published weights as an engine takes them: the language model's tensors among them, and weights that are only offered
yet, whose sender brings them into the engine itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rollcall.cluster.messages.weights import Canary, Weights, as_torch

if TYPE_CHECKING:
    from torch import Tensor

MODEL_PREFIX = "policy.model."  # of published names, before those in the model's checkpoint


def published_model(weights: Weights, *, prefix: str = MODEL_PREFIX) -> dict[str, Tensor]:
    """The language model's tensors among published weights, by their names in the model: views, never to be written."""
    tensors = as_torch(weights)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class WeightsOffer(Protocol):
    """Weights that are not here yet, and whoever sends them."""

    @property
    def epoch(self) -> int: ...

    @property
    def version(self) -> int: ...

    def accept(self, control: Callable[[str, Mapping[str, Any]], None]) -> tuple[int, int, Canary | None]:
        """Has them sent. `control` is called in this thread with each of vLLM's control calls (its method, its
        arguments) that the sender asks for. Returns (epoch, version, canary) of what came: of this version or a newer
        one.

        Raises:
          Exception: when the sender died or did not send; the model may be half loaded then.
        """
