"""One batch of comparisons as tensors: the candidates, the judged pairs among them, and parts that fit into memory and
keep a comparison together.

A comparison of K candidates gives K choose 2 pairs, each with 1 / (K choose 2) of the comparison's weight: all pairs of
a ranking stand in one batch, and a long ranking counts no more than a pair (InstructGPT, Ouyang et al., 2022,
arXiv:2203.02155, eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array, map_arrays
from rollcall.learners.batches.passes import at_least, plan_packed, plan_together, share_of
from rollcall.learners.batches.placement import PADDED, Layout, Places, begins_of, ranges, row_sizes, shape_of
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.data.comparisons import RankedCandidates, Steps, TokenSequence


@dataclass(frozen=True)
class Sequences:
    """N token sequences of different lengths."""

    token_ids: Tensor  # int64 [S], one after the other
    offsets: tuple[int, ...]  # [N + 1]
    num_prompt: tuple[int, ...]  # [N]
    row: tuple[int, ...]  # [N]: a policy's pass computes those with one number in one row, their prompt once
    packed: bool = False  # those rows stand in one, without padding

    @property
    def sizes(self) -> list[int]:
        return [end - begin for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def to(self, device: torch.device) -> Sequences:
        return replace(self, token_ids=self.token_ids.to(device))

    def row_sizes(self, chosen: Sequence[int]) -> list[int]:
        """Tokens of each row of some of them."""
        return row_sizes(self.rows(chosen), lengths=self.sizes, prompts=self.num_prompt)

    def rows(self, chosen: Sequence[int]) -> list[list[int]]:
        """Some of them, by their row."""
        found: dict[int, list[int]] = {}
        for i in chosen:
            found.setdefault(self.row[i], []).append(i)
        return list(found.values())

    def padded(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some of them, [b, L] padded on the right with 0, and their lengths [b]."""
        parts = [self.token_ids[self.offsets[i] : self.offsets[i + 1]] for i in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded, torch.tensor([len(part) for part in parts], device=padded.device)


@dataclass(frozen=True)
class SegmentRows:
    """The steps of N stretches, one after the other."""

    observations: Tensor  # float32 [S, D]
    actions: Tensor  # float32 [S, A]
    offsets: tuple[int, ...]  # [N + 1]

    @property
    def sizes(self) -> list[int]:
        return [end - begin for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def to(self, device: torch.device) -> SegmentRows:
        return replace(self, observations=self.observations.to(device), actions=self.actions.to(device))


@dataclass(frozen=True)
class Pairs:
    """P judged pairs among the candidates of a batch or of a part of it."""

    better: Tensor  # int64 [P]: candidate
    worse: Tensor  # int64 [P]; of a tie either may stand first
    tied: Tensor  # bool [P]
    margins: Tensor  # float32 [P]
    group: Tensor  # int64 [P]
    comparison: Tensor  # int64 [P]: of the batch, ascending
    probabilities: Tensor | None  # float32 [P]: that the better one is better; None where no label is soft
    weights: Tensor  # float32 [M, P]: in the loss of each ensemble member; M = 1 without an ensemble

    def to(self, device: torch.device) -> Pairs:
        return map_arrays(self, lambda tensor: tensor.to(device))

    def differences(self, values: Tensor) -> Tensor:
        """[..., P]: the better one's value less the worse one's, of values [..., N]."""
        return values[..., self.better] - values[..., self.worse]


@dataclass(frozen=True)
class PreferenceBatch:
    """C comparisons of N candidates in all."""

    candidates: Sequences | SegmentRows
    first: tuple[int, ...]  # [C + 1]: each comparison's first candidate
    pairs: Pairs

    @property
    def num_comparisons(self) -> int:
        return len(self.first) - 1

    @property
    def num_candidates(self) -> int:
        return self.first[-1]

    def to(self, device: torch.device) -> PreferenceBatch:
        return replace(self, candidates=self.candidates.to(device), pairs=self.pairs.to(device))

    def part(self, comparisons: Sequence[int]) -> PreferencePart:
        """Some comparisons with all their candidates and pairs."""
        chosen = [i for c in comparisons for i in range(self.first[c], self.first[c + 1])]
        place = torch.full((self.num_candidates,), -1, dtype=torch.int64)
        place[chosen] = torch.arange(len(chosen))
        pairs = self.pairs
        place = place.to(pairs.better.device)
        kept = (place[pairs.better] >= 0).nonzero().squeeze(-1)
        own = Pairs(
            better=place[pairs.better[kept]],
            worse=place[pairs.worse[kept]],
            weights=pairs.weights[:, kept],
            probabilities=None if pairs.probabilities is None else pairs.probabilities[kept],
            **{name: getattr(pairs, name)[kept] for name in ("tied", "margins", "group", "comparison")},
        )
        return PreferencePart(batch=self, chosen=tuple(chosen), pairs=own, pair_indices=kept)

    def parts(self, budget: int) -> list[list[int]]:
        """Divides the comparisons so that a part's candidates, padded, have at most `budget` tokens (or steps): those
        of like length together. A comparison that is larger is a part of its own."""
        candidates = self.candidates
        members = [range(self.first[c], self.first[c + 1]) for c in range(self.num_comparisons)]
        if isinstance(candidates, Sequences) and candidates.packed:
            return plan_packed([sum(candidates.row_sizes(own)) for own in members], range(len(members)), budget)
        sizes = candidates.sizes
        return plan_together([max(sizes[i] for i in own) for own in members], [len(own) for own in members], budget)


@dataclass(frozen=True)
class PreferencePart:
    """What one forward pass is over: whole comparisons."""

    batch: PreferenceBatch
    chosen: tuple[int, ...]  # candidates of the batch
    pairs: Pairs  # among the chosen ones, numbered 0, 1, ...
    pair_indices: Tensor  # int64 [P]: which of the batch's pairs they are

    @property
    def num_candidates(self) -> int:
        return len(self.chosen)

    def reward_inputs(self) -> tuple[Mapping[str, Tensor], Tensor]:
        """What a reward model is called with, and the candidate [R] that each of its R rewards belongs to: one a
        sequence, or one a step. Rewards beyond those are nobody's."""
        candidates = self.batch.candidates
        if isinstance(candidates, Sequences):
            if not self.chosen:  # one token of padding, whose reward is nobody's
                none = candidates.token_ids.new_zeros(1, 1)
                return {"token_ids": none, "lengths": none[0] + 1}, none[0, :0]
            token_ids, lengths = candidates.padded(self.chosen)
            return {"token_ids": token_ids, "lengths": lengths}, torch.arange(len(lengths), device=lengths.device)
        rows = [range(candidates.offsets[i], candidates.offsets[i + 1]) for i in self.chosen]
        device = candidates.observations.device
        index = torch.tensor([row for span in rows for row in span], dtype=torch.int64, device=device)
        owner = torch.tensor([k for k, span in enumerate(rows) for _ in span], dtype=torch.int64, device=device)
        return {"observations": candidates.observations[index], "actions": candidates.actions[index]}, owner

    def response_rows(self) -> tuple[TokenRows, Tensor]:
        """The rows of one forward pass of a policy, whose sampled tokens are the responses', and the candidate [K] that
        each of those belongs to.

        Raises:
          ValueError: on a candidate without prompt.
        """
        candidates = self.batch.candidates
        assert isinstance(candidates, Sequences), "a policy reads tokens"
        if not self.chosen:  # one token of padding, which predicts nothing
            none = candidates.token_ids.new_zeros(0)
            return TokenRows(candidates.token_ids.new_zeros(1, 1), none, none), none
        lengths, prompts = candidates.sizes, candidates.num_prompt
        if min(prompts[i] for i in self.chosen) < 1:
            raise ValueError("a candidate has no prompt: nothing predicts its first token")
        rows, sizes, packed = candidates.rows(self.chosen), candidates.row_sizes(self.chosen), candidates.packed
        device = candidates.token_ids.device
        begins = begins_of(sizes, packed=packed)
        stand = Places.of(rows, begins, lengths=lengths, prompts=prompts, device=device)
        shape = shape_of(sizes, packed=packed)
        token_ids = candidates.token_ids.new_zeros(shape)
        stand.fill(token_ids, candidates.token_ids, torch.tensor(candidates.offsets, device=device))
        chosen, first, end = torch.tensor([(i, prompts[i], lengths[i]) for i in self.chosen], device=device).T
        position, owner = ranges(first, end - first), chosen.repeat_interleave(end - first)
        return TokenRows(
            token_ids,
            predictors=stand.find(owner, position - 1),
            targets=token_ids.flatten()[stand.find(owner, position)],
            packed=stand.packed(shape[1]) if packed else None,
        ), torch.arange(len(chosen), device=device).repeat_interleave(end - first)


@dataclass(frozen=True)
class PreferenceMinibatch:
    """What one gradient is computed from: a batch, in parts whose losses add up."""

    batch: PreferenceBatch
    parts: Sequence[Sequence[int]]  # comparisons
    ends_epoch: bool = True

    def shards(self, rank: int, num_processes: int) -> Iterator[PreferencePart]:
        """One process's: equally many on each, the last of some of no comparison."""
        for part in share_of(at_least(self.parts, num_processes), rank, num_processes):
            yield self.batch.part(part)


def collate_comparisons(items: Sequence[RankedCandidates[Any]], *, layout: Layout = PADDED) -> PreferenceBatch:
    """One batch of comparisons of one kind, in the given order.

    Args:
      layout: of a policy's passes; candidates of one comparison share their prompt in packed rows alone.

    Raises:
      ValueError: on no comparisons, on ranks that are not one per candidate, or on a candidate without response.
    """
    if not items:
        raise ValueError("items is empty: a batch needs at least one comparison")
    for number, item in enumerate(items):
        if len(item.ranks) != len(item.candidates) or len(item.ranks) < 2:
            raise ValueError(
                f"comparison {number} has ranks {item.ranks} of {len(item.candidates)} candidates: give two or more"
            )
        if not 0.5 <= item.probability <= 1 or (item.probability < 1 and len(set(item.ranks)) != 2):
            raise ValueError(f"comparison {number} has probability {item.probability}: 0.5 to 1, and of a pair alone")
    first = np.concatenate([[0], np.cumsum([len(item.candidates) for item in items])])
    candidates = [candidate for item in items for candidate in item.candidates]
    texts = isinstance(candidates[0], TokenSequence)
    joined = _sequences(items, layout) if texts else _step_rows(candidates)
    return PreferenceBatch(joined, tuple(int(i) for i in first), _pairs(items, first))


def _pairs(items: Sequence[RankedCandidates[Any]], first: Array) -> Pairs:
    better, worse, tied, owner, share = [], [], [], [], []
    for c, item in enumerate(items):
        pairs = list(combinations(range(len(item.ranks)), 2))
        for i, j in pairs:
            above, below = (i, j) if item.ranks[i] <= item.ranks[j] else (j, i)
            better.append(int(first[c]) + above)
            worse.append(int(first[c]) + below)
            tied.append(item.ranks[i] == item.ranks[j])
            owner.append(c)
            share.append(1.0 / (len(pairs) * len(items)))
    draws = torch.tensor([items[c].draws for c in owner], dtype=torch.float32).T
    return Pairs(
        better=torch.tensor(better),
        worse=torch.tensor(worse),
        tied=torch.tensor(tied),
        margins=torch.tensor([items[c].margin for c in owner], dtype=torch.float32),
        group=torch.tensor([items[c].group for c in owner]),
        comparison=torch.tensor(owner),
        probabilities=(
            torch.tensor([items[c].probability for c in owner], dtype=torch.float32)
            if any(item.probability != 1 for item in items)
            else None
        ),
        weights=draws * torch.tensor(share),
    )


def _sequences(items: Sequence[RankedCandidates[TokenSequence]], layout: Layout) -> Sequences:
    candidates = [candidate for item in items for candidate in item.candidates]
    owners = [number for number, item in enumerate(items) for _ in item.candidates]
    row = list(range(len(candidates)))
    if layout.packed and layout.sharing is not None:
        alike: dict[tuple[int, bytes], int] = {}
        for i, (owner, item) in enumerate(zip(owners, candidates, strict=True)):
            row[i] = alike.setdefault((owner, item.token_ids[: item.num_prompt].tobytes()), i)
    for item in candidates:
        if not 0 <= item.num_prompt < len(item.token_ids):
            raise ValueError(f"num_prompt={item.num_prompt} of {len(item.token_ids)} tokens: the response needs one")
    return Sequences(
        token_ids=torch.from_numpy(np.concatenate([item.token_ids for item in candidates]).astype(np.int64)),
        offsets=_offsets([len(item.token_ids) for item in candidates]),
        num_prompt=tuple(item.num_prompt for item in candidates),
        row=tuple(row),
        packed=layout.packed,
    )


def _step_rows(candidates: Sequence[Steps]) -> SegmentRows:
    return SegmentRows(
        observations=torch.from_numpy(np.concatenate([item.observations for item in candidates]).astype(np.float32)),
        actions=torch.from_numpy(np.concatenate([item.actions for item in candidates]).astype(np.float32)),
        offsets=_offsets([len(item.observations) for item in candidates]),
    )


def _offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(offset) for offset in np.concatenate([[0], np.cumsum(sizes)]))
