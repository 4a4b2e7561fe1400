"""One version of a policy as it is handed out: named arrays in a few flat buffers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.fingerprints import Fingerprints

if TYPE_CHECKING:
    from torch import Tensor


BFLOAT16 = "bfloat16"  # numpy has no such numbers: their buffer has the bits, as uint16


def new_buffer(dtype: str, size: int) -> Array:
    """Zeros of a dtype, by its name."""
    return np.zeros(size, np.dtype(np.uint16 if dtype == BFLOAT16 else dtype))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one named tensor lies in the flat buffer of its dtype. Offset and size are in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Canary:
    """What the learner itself says of fixed tokens under the weights that this comes with. A generation engine that
    took the weights rightly says the same."""

    token_ids: Array  # int32 [n]
    logprobs: Array  # float32 [n - 1]: of all but the first, under the model itself, without temperature and nucleus
    dtype: str  # of the learner's forward pass
    fingerprints: Fingerprints | None = None  # of the tensors that an engine takes, by their names in the weights


@dataclass(frozen=True)
class Weights:
    """One version of a policy: one flat contiguous buffer per dtype, and the index of what lies where."""

    policy_id: str
    epoch: int
    version: int
    index: tuple[TensorSpec, ...]
    buffers: Mapping[str, Array] = field(repr=False)  # dtype name -> 1-D array; of bfloat16 the bits
    checksum: str = ""
    canary: Canary | None = None  # of a language policy, as its learner publishes it

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def compute_checksum(self) -> str:
        """xxh3-128 (hex) over the index and the buffers; what `checksum` must equal. Independent of the version."""
        hasher = xxhash.xxh3_128()
        for spec in self.index:
            hasher.update(f"{spec.name}|{spec.dtype}|{spec.shape}|{spec.offset}".encode())
        for dtype in sorted(self.buffers):
            hasher.update(self.buffers[dtype].view(np.uint8).data)
        return hasher.hexdigest()

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Views into the buffers, by name; of bfloat16, the bits."""
        for spec in self.index:
            flat = self.buffers[spec.dtype][spec.offset : spec.offset + spec.size]
            yield spec.name, flat.reshape(spec.shape)


def as_torch(weights: Weights) -> dict[str, Tensor]:
    """The tensors by name: views, never to be written."""
    import torch

    with warnings.catch_warnings():  # torch warns of arrays that it must not write to
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(array) for name, array in weights.tensors()}
    bits = [spec.name for spec in weights.index if spec.dtype == BFLOAT16]
    return tensors | {name: tensors[name].view(torch.bfloat16) for name in bits}


def pack_weights(policy_id: str, epoch: int, version: int, tensors: Mapping[str, Array]) -> Weights:
    """Copies named arrays into one flat buffer per dtype, with index and checksum."""
    index: list[TensorSpec] = []
    parts: dict[str, list[Array]] = {}
    offsets: dict[str, int] = {}
    for name, array in tensors.items():
        dtype = array.dtype.name
        index.append(TensorSpec(name, dtype, tuple(array.shape), offsets.get(dtype, 0)))
        parts.setdefault(dtype, []).append(array.reshape(-1))
        offsets[dtype] = offsets.get(dtype, 0) + array.size
    buffers = {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}
    unsigned = Weights(policy_id, epoch, version, tuple(index), buffers)
    return Weights(policy_id, epoch, version, tuple(index), buffers, unsigned.compute_checksum())
