"""How the layers of a policy begin."""

from __future__ import annotations

from torch import nn


def initialise(layer: nn.Linear | nn.Conv2d, gain: float, orthogonal: bool) -> None:
    """Orthogonal weights and zero biases (the known detail of PPO: Huang et al., 2022), or PyTorch's own."""
    if orthogonal:
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
