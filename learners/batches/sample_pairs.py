"""Pairs among the samples of a batch of experience: of each prompt, which sample was better than which. What is
compared stays in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from rollcall.learners.batches.passes import at_least, plan_packed, plan_together, share_of
from rollcall.learners.batches.placement import row_sizes
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows


@dataclass(frozen=True)
class SamplePairs:
    """P pairs of C comparisons, each among the samples of one prompt."""

    better: Tensor  # int64 [P]: sample of the batch
    worse: Tensor  # int64 [P]
    weights: Tensor  # float32 [P]: each comparison weighs 1 / C, however many pairs it has
    members: tuple[tuple[int, ...], ...]  # [C]: the samples of each comparison

    @classmethod
    def of(cls, *, rewards: Tensor, group: Tensor, every: bool) -> SamplePairs:
        """Of rewards [N] and groups int64 [N]. `every`: all pairs of a prompt that differ in reward; False: its best
        and its worst sample, the first of equals. Prompts whose samples are all worth the same have none."""
        by_prompt: dict[int, list[int]] = {}
        values = rewards.tolist()
        for sample, prompt in enumerate(group.tolist()):
            by_prompt.setdefault(prompt, []).append(sample)
        found: list[list[tuple[int, int]]] = []
        for samples in by_prompt.values():
            best, worst = max(samples, key=lambda i: values[i]), min(samples, key=lambda i: values[i])
            if values[best] == values[worst]:
                continue
            among = combinations(samples, 2) if every else [(best, worst)]
            ordered = [(i, j) if values[i] > values[j] else (j, i) for i, j in among if values[i] != values[j]]
            found.append(ordered)
        device = rewards.device
        pairs = torch.tensor([pair for own in found for pair in own], dtype=torch.int64).reshape(-1, 2).to(device)
        shares = [1.0 / (len(own) * len(found)) for own in found for _ in own]
        broken = 0.0 * rewards.sum()  # not a number where a reward is none: such a step is skipped
        return cls(
            better=pairs[:, 0],
            worse=pairs[:, 1],
            weights=torch.tensor(shares, dtype=torch.float32, device=device) + broken,
            members=tuple(tuple(dict.fromkeys(i for pair in own for i in pair)) for own in found),
        )

    def parts(self, batch: TokenBatch, token_budget: int) -> list[list[int]]:
        """Divides the comparisons so that a part's samples, padded, have at most `token_budget` tokens: those of like
        length together. A comparison that is larger is a part of its own."""
        lengths, prompts = (batch.offsets[1:] - batch.offsets[:-1]).tolist(), batch.shared_prompt.tolist()
        row = batch.row.tolist()
        sizes: list[list[int]] = []
        for samples in self.members:
            rows: dict[int, list[int]] = {}
            for i in samples:
                rows.setdefault(row[i], []).append(i)
            sizes.append(row_sizes(list(rows.values()), lengths=lengths, prompts=prompts))
        if batch.packed:
            return plan_packed([sum(own) for own in sizes], range(len(sizes)), token_budget)
        return plan_together([max(own) for own in sizes], [len(own) for own in sizes], token_budget)


@dataclass(frozen=True)
class PairPart:
    """What one forward pass is over: whole comparisons, of n samples with K sampled tokens."""

    rows: TokenRows
    indices: Tensor  # int64 [K]: of its tokens among all the batch's
    owner: Tensor  # int64 [K]: the sample, 0 ... n - 1, that each belongs to
    num_samples: int
    better: Tensor  # int64 [P]: sample of the part
    worse: Tensor  # int64 [P]
    weights: Tensor  # float32 [P]
    reference_logprobs: Tensor  # [K]
    token_share: float  # 1 / the tokens of all comparisons of the minibatch


@dataclass(frozen=True)
class PairMinibatch:
    """What one gradient is computed from: comparisons, in parts whose losses add up."""

    batch: TokenBatch
    pairs: SamplePairs
    reference_logprobs: Tensor  # [S]: of all the batch's tokens; 0 where nobody compares
    parts: Sequence[Sequence[int]]  # comparisons
    ends_epoch: bool = True

    def shards(self, rank: int, num_processes: int) -> Iterator[PairPart]:
        """One process's: equally many on each, the last of some of no comparison."""
        compared = [i for samples in self.pairs.members for i in samples]
        token_share = 1.0 / max(1, int(self.batch.lengths[compared].sum()))
        for part in share_of(at_least(self.parts, num_processes), rank, num_processes):
            yield self._part(part, token_share)

    def _part(self, comparisons: Sequence[int], token_share: float) -> PairPart:
        pairs, batch = self.pairs, self.batch
        samples = [i for c in comparisons for i in pairs.members[c]]
        rows, indices = batch.rows(samples)
        place = torch.full((batch.num_samples,), -1, dtype=torch.int64)
        place[samples] = torch.arange(len(samples))
        place = place.to(pairs.better.device)
        kept = (place[pairs.better] >= 0).nonzero().squeeze(-1)
        numbers = torch.arange(len(samples), device=indices.device)
        return PairPart(
            rows=rows,
            indices=indices,
            owner=numbers.repeat_interleave(batch.lengths[samples]),
            num_samples=len(samples),
            better=place[pairs.better[kept]],
            worse=place[pairs.worse[kept]],
            weights=pairs.weights[kept],
            reference_logprobs=self.reference_logprobs[indices],
            token_share=token_share,
        )
