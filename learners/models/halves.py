"""A float32 in two halves of 16 bits: the bfloat16 that is nearest to it, and what is missing from there. Weights that
a pass reads as bfloat16 and an optimiser steps as float32 take four bytes so, and not six."""

from __future__ import annotations

import torch
from torch import Tensor


def split_into(value: Tensor, upper: Tensor, rest: Tensor) -> None:
    """Writes float32 `value` to `upper`, bfloat16, and `rest`, int16, all of one shape.

    `joined` gives the same bits again but for a value just in the middle between two bfloat16, and that one's
    neighbour: what was joined once is the same for ever.
    """
    upper.copy_(value)
    missing = value.view(torch.int32) - _bits(upper)  # of the bits as integers: -32768 to 32768, that in the middle
    rest.copy_(missing.clamp_(max=torch.iinfo(torch.int16).max))


def joined(upper: Tensor, rest: Tensor) -> Tensor:
    """float32."""
    return _bits(upper).add_(rest).view(torch.float32)


def _bits(upper: Tensor) -> Tensor:
    """int32: of the float32 of the same value."""
    return upper.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
