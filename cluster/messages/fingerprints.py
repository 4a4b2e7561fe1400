"""Fingerprints of tensors: exact, cheap, and the same wherever the same bits lie, also of several tensors side by side
in one. Whoever hands weights out and whoever takes them compare by these what they have, after the smallest update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rollcall.cluster.messages.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

NUM_SAMPLES = 16  # elements of each tensor that are compared one by one


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of some tensors. One bit that changed anywhere changes a sum; what was exchanged or permuted changes samples."""

    dtype: str  # in which they were taken
    names: tuple[str, ...]
    sums: Array  # int64 [n]: `word_sum` of each
    samples: Array  # float32 [n, NUM_SAMPLES]: of each the elements at `sampled_places`


def sampled_places(size: int) -> Array:
    """int64 [min(size, NUM_SAMPLES)]: different places in a flat tensor, one in each stretch of it, not at equal
    distances: those would all lie in one column."""
    number = min(size, NUM_SAMPLES)
    steps = np.arange(number)
    within = (steps * 0.6180339887498949) % 1.0
    return ((steps + within) * (size / number)).astype(np.int64) if size > NUM_SAMPLES else steps


def word_sum(tensor: Tensor) -> Tensor:
    """int64 []: the sum, modulo 2^64, of its bytes as integers of eight; what is missing to the last counts as zero."""
    import torch

    octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if octets.numel() % 8 or octets.storage_offset() % 8:
        octets = torch.nn.functional.pad(octets, (0, -octets.numel() % 8))
    return octets.view(torch.int64).sum()


def fingerprints(tensors: Mapping[str, Tensor], dtype: str) -> Fingerprints:
    """Of the tensors as they are after rounding to `dtype`. They may be on a GPU: it is waited for once."""
    import torch

    as_taken = getattr(torch, dtype)
    sums, samples, places = [], [], {}
    for tensor in tensors.values():
        size = tensor.numel()
        if (size, tensor.device) not in places:
            where = np.resize(sampled_places(size), NUM_SAMPLES)
            places[size, tensor.device] = torch.from_numpy(where).to(tensor.device)
        taken = tensor.detach().to(as_taken)
        sums.append(word_sum(taken))
        samples.append(taken.reshape(-1)[places[size, tensor.device]].float())
    return Fingerprints(dtype, tuple(tensors), torch.stack(sums).cpu().numpy(), torch.stack(samples).cpu().numpy())
