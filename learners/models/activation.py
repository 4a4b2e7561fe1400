"""What may stand between the layers of an MLP."""

from __future__ import annotations

from typing import Literal

Activation = Literal["tanh", "relu", "silu", "gelu", "elu"]
