"""The choices between forms of a function that settings and mathematics both name."""

from __future__ import annotations

from typing import Literal

Squash = Literal["clip", "tanh"]

KLEstimator = Literal["k1", "k2", "k3"]

Aggregation = Literal["token_mean", "sequence_mean", "fixed_length"]
