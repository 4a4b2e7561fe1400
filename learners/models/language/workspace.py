"""How much memory the logits of a language model may take at once, and how many tokens' that are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch

_MIB = 2**20
# A device's share, within bounds: enough for kernels to be busy, and no more than is good for anything.
_SHARE = 1 / 32
_BOUNDS_MIB = {"cpu": (64, 512), "cuda": (256, 4096)}
# Float32 numbers for each logit: itself and its gradient, and as many for what some models do after the output layer
# (a softcap, a scale).
_NUMBERS = 4
_ALIGNED = 16  # tokens: matrix products like round sizes


@dataclass(frozen=True)
class Workspace:
    """For the logits of one model."""

    size_bytes: int
    vocab_size: int

    @property
    def bytes_of_token(self) -> int:
        return 4 * self.vocab_size * _NUMBERS

    @property
    def tokens(self) -> int:
        """Tokens of one chunk: of sizes and settings alone, so that chunks begin at the same tokens in each pass."""
        tokens = self.size_bytes // self.bytes_of_token
        return max(tokens // _ALIGNED * _ALIGNED, min(tokens, _ALIGNED), 1)

    def bytes_for(self, num_tokens: int, *, works_on_logits: bool = True) -> int:
        """What the logits of so many tokens take, together or in chunks. `works_on_logits`: whether the model does
        anything after its output layer; of the workspace of one that does not, half is used."""
        return min(num_tokens, self.tokens) * self.bytes_of_token // (1 if works_on_logits else 2)

    def gradient_bytes_for(self, num_tokens: int, *, hidden_size: int) -> int:
        """What is there beside them in a backward pass in chunks: the output matrix's gradient, of one chunk and of
        those before it."""
        return 2 * 4 * self.vocab_size * hidden_size if num_tokens > self.tokens else 0


def workspace_bytes(size_mib: float | None, *, device_type: str, device_bytes: int) -> int:
    """A setting in bytes; None: a share of all of the device's memory (not of what is free in it: the same device cuts
    the same chunks each time)."""
    if size_mib is not None:
        return int(size_mib * _MIB)
    low, high = _BOUNDS_MIB["cpu" if device_type == "cpu" else "cuda"]
    return int(min(max(_SHARE * device_bytes, low * _MIB), high * _MIB))


@lru_cache
def memory_bytes(device: torch.device) -> int:
    """All that a device has, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
