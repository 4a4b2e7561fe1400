"""Demonstrations as a learner meets them: tokens, with a mask of what is to be imitated."""

from __future__ import annotations

from dataclasses import dataclass

from rollcall.cluster.messages.arrays import Array


@dataclass(frozen=True)
class Demonstration:
    """One sequence. Arrays are [n]."""

    token_ids: Array  # int32
    imitated: Array  # bool: the demonstrator's own tokens
