"""One learner batch of gradients that actors computed, as tensors: side by side, and what they are together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.experience import GymGradient


@dataclass(frozen=True)
class GradientBatch:
    """Of N units: each gradient is of the mean over its unit's own steps, and so are the metrics."""

    gradients: Tensor  # float32 [N, P]
    num_steps: Tensor  # float32 [N]
    metrics: Mapping[str, Tensor]  # [N] each

    def gradient(self) -> Tensor:
        """[P]: of the mean over the steps of all units. One alone is as it came, to the bit."""
        return self.gradients[0] if len(self.gradients) == 1 else self._shares @ self.gradients

    def means(self) -> dict[str, Tensor]:
        """The metrics, of the same mean."""
        return {name: self._shares @ values for name, values in self.metrics.items()}

    @property
    def _shares(self) -> Tensor:
        """[N]: of all steps."""
        return self.num_steps / self.num_steps.sum().clamp(min=1.0)


def stack_gradients(items: Sequence[GymGradient], device: torch.device) -> GradientBatch:
    """In the given order."""
    names = items[0].metrics.keys()
    return GradientBatch(
        gradients=torch.from_numpy(np.stack([item.gradient for item in items])).to(device),
        num_steps=torch.tensor([float(item.num_steps) for item in items], device=device),
        metrics={name: torch.tensor([item.metrics[name] for item in items], device=device) for name in names},
    )
