"""Where the samples of a forward pass stand: each in a padded row of its own, or with others of its prompt; or all of
them in one row, packed, without padding. This room alone decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rollcall.learners.batches.prompt_sharing import Sharing

PACKED_MULTIPLE = 128  # of tokens, that a packed row is filled up to: what attention computes at a time
_LEAST_PACKED = 2 * PACKED_MULTIPLE  # a compiler makes one block another case, and two any number


@dataclass(frozen=True)
class Layout:
    """How samples stand in the forward passes of a batch."""

    sharing: Sharing | None = None  # None: each computes its prompt for itself
    packed: bool = False  # all of a pass in one row; needs a model with attention for it


PADDED = Layout()


@dataclass(frozen=True)
class PackedSamples:
    """Who sees whom in one row of T tokens that holds many samples: each token the tokens prompt_begin, ...,
    prompt_end - 1 (the prompt that its sample shares; none where it stands before the sample itself), and begin, ...,
    itself. Padding, at the end, sees itself."""

    positions: Tensor  # int64 [1, T]: of each token in its sample
    prompt_begin: Tensor  # int64 [T]
    prompt_end: Tensor  # int64 [T]
    begin: Tensor  # int64 [T]


@dataclass(frozen=True)
class Places:
    """Samples in rows, each int64 [n], of all rows' tokens one after the other."""

    sample: Tensor
    shared: Tensor  # of its tokens, how many stand at the row's beginning already
    row: Tensor  # where its row begins (packed: what shares its prompt)
    begin: Tensor  # where the others begin
    size: Tensor  # of the others
    within: Tensor  # which of its row's samples it is: 1, 2, ...

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        begins: Sequence[int],
        *,
        lengths: Sequence[int],
        prompts: Sequence[int],
        device: torch.device,
    ) -> Places:
        """The first of a row with its prompt, the others without.

        Args:
          rows: the samples of each.
          begins: of each row.
          lengths: tokens of each sample.
          prompts: how many of them it shares.
        """
        found = []
        for members, row in zip(rows, begins, strict=True):
            begin = row
            for within, i in enumerate(members):
                shared = prompts[i] if within else 0
                found.append((i, shared, row, begin, lengths[i] - shared, within + 1))
                begin += lengths[i] - shared
        return cls(*torch.tensor(found, device=device).T)

    @property
    def places(self) -> Tensor:
        """[T]: of all the samples' own tokens, sample after sample."""
        return ranges(self.begin, self.size)

    @property
    def positions(self) -> Tensor:
        """[T]: theirs in their samples."""
        return ranges(self.shared, self.size)

    def fill(self, goal: Tensor, token_ids: Tensor, offsets: Tensor) -> None:
        """Writes the samples' tokens, which begin at `offsets` in `token_ids`, to their places in `goal`."""
        goal.view(-1)[self.places] = token_ids[ranges(offsets[self.sample] + self.shared, self.size)]

    def find(self, sample: Tensor, position: Tensor) -> Tensor:
        """[K]: where tokens stand, of sample [K] (numbered as in `sample`) and position in it [K]."""
        number = torch.zeros(int(self.sample.max()) + 1, dtype=torch.int64, device=sample.device)
        number[self.sample] = torch.arange(len(self.sample), device=sample.device)
        own = number[sample]
        in_prompt = position < self.shared[own]
        return torch.where(in_prompt, position + self.row[own], position - self.shared[own] + self.begin[own])

    def packed(self, width: int) -> PackedSamples:
        """Of rows that stand in one of `width` tokens."""
        place = torch.arange(width, device=self.begin.device)
        positions = torch.zeros_like(place)
        prompt_begin, prompt_end, begin = place.clone(), place.clone(), place.clone()
        positions[self.places] = self.positions
        for goal, values in ((prompt_begin, self.row), (prompt_end, self.row + self.shared), (begin, self.begin)):
            goal[self.places] = values.repeat_interleave(self.size)
        return PackedSamples(positions[None], prompt_begin, prompt_end, begin)


def shape_of(sizes: Sequence[int], *, packed: bool) -> tuple[int, int]:
    """Rows and width of the pass over rows of so many tokens."""
    if not packed:
        return len(sizes), max(sizes)
    return 1, max(-(-sum(sizes) // PACKED_MULTIPLE) * PACKED_MULTIPLE, _LEAST_PACKED)


def begins_of(sizes: Sequence[int], *, packed: bool) -> list[int]:
    """Where each of these rows begins, of all the pass's tokens."""
    if not packed:
        return [row * max(sizes) for row in range(len(sizes))]
    return [0, *accumulate(sizes[:-1])]


def row_sizes(rows: Sequence[Sequence[int]], *, lengths: Sequence[int], prompts: Sequence[int]) -> list[int]:
    """Tokens of each row, a shared prompt counted once."""
    return [sum(lengths[i] for i in row) - (len(row) - 1) * prompts[row[0]] for row in rows]


def ranges(begins: Tensor, sizes: Tensor) -> Tensor:
    """begins[0], begins[0] + 1, ... (sizes[0] numbers), then begins[1], ..."""
    before = sizes.cumsum(0) - sizes
    return (begins - before).repeat_interleave(sizes) + torch.arange(int(sizes.sum()), device=sizes.device)
