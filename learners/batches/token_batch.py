"""One learner batch of language experience: samples flat over their tokens, and how they become padded micro-batches.

Positions: a sample's tokens are prompt and completion (and, in a conversation, what tools answered). The tokens to be
learnt from are those the policy sampled; all mathematics runs over these alone, flat, [S], sample after sample. Padding
exists only inside the forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import itemgetter
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array, map_arrays
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.batches.passes import at_least, plan_micro_batches, plan_packed, share_of
from rollcall.learners.batches.placement import (
    PADDED,
    Layout,
    PackedSamples,
    Places,
    begins_of,
    ranges,
    row_sizes,
    shape_of,
)
from rollcall.learners.batches.prompt_sharing import PROMPT, SharedPrompts, attends, share_prompts

Targets = TypeVar("Targets")  # what an algorithm has computed of every token: a frozen dataclass of tensors


@dataclass(frozen=True)
class TokenRows:
    """Some samples for one forward pass: rows padded on the right, which nothing sees with causal attention; or one
    row that holds all of them."""

    token_ids: Tensor  # int64 [b, L]
    predictors: Tensor  # int64 [K]: flat index (row * L + t) of the state that predicts each sampled token
    targets: Tensor  # int64 [K]: those tokens
    shared: SharedPrompts | None = None  # where a row holds several samples of one prompt
    packed: PackedSamples | None = None  # where one row holds all samples


@dataclass(frozen=True)
class TokenBatch:
    """N samples of one learner batch; S sampled tokens in all, P tokens with prompts."""

    token_ids: Tensor  # int64 [P], sample after sample
    offsets: Tensor  # int64 [N + 1]: where each sample's tokens begin
    sampled: Tensor  # int64 [S]: positions in token_ids of the tokens the policy sampled, ascending
    sequence: Tensor  # int64 [S]: the sample that each belongs to
    lengths: Tensor  # int64 [N]: sampled tokens of each sample
    tokens: SampledTokens[Tensor]  # [S]
    policy_lags: Tensor  # int64 [S]: versions between the policy that sampled the token and the one that learns from it
    group: Tensor  # int64 [N]: samples of one prompt have one number, 0, 1, ...
    rewards: Tensor  # float32 [N]
    truncated: Tensor  # bool [N]: cut by a length limit, not ended by the policy
    row: Tensor  # int64 [N]: samples with one number share a row, and compute its prompt once
    shared_prompt: Tensor  # int64 [N]: how many tokens at its beginning a sample shares; 0: it has its row alone
    packed: bool = False  # those rows stand in one, without padding
    supervised: TokenBatch | None = None  # demonstrations that are imitated beside what was sampled

    @property
    def num_samples(self) -> int:
        return len(self.lengths)

    @property
    def num_sampled(self) -> int:
        """Number of tokens to be learnt from, S."""
        return len(self.sampled)

    def to(self, device: torch.device) -> TokenBatch:
        return map_arrays(self, lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x)

    def longest_turns(self) -> Tensor:
        """int64 [N]: sampled tokens of each sample's longest turn. Between turns stands what was answered."""
        apart = (self.sampled[1:] != self.sampled[:-1] + 1) | (self.sequence[1:] != self.sequence[:-1])
        turn = torch.cat([apart.new_zeros(1), apart]).cumsum(0)
        lengths = torch.bincount(turn)
        owner = self.sequence.new_zeros(len(lengths)).index_copy(0, turn, self.sequence)
        return torch.zeros_like(self.lengths).scatter_reduce(0, owner, lengths, "amax")

    def sampled_offsets(self) -> Tensor:
        """int64 [N + 1]: where each sample's part of the flat [S] tensors begins."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    def rows(self, samples: Sequence[int]) -> tuple[TokenRows, Tensor]:
        """The padded rows of some samples, and the indices [K] of their tokens among the flat [S] ones. Of none: one
        token of padding, and no indices."""
        if not samples:
            none = self.sampled.new_zeros(0)
            return TokenRows(self.token_ids.new_zeros(1, 1), none, none), none
        together = self._rows_of(samples)
        sizes = self._row_sizes(together)
        shape = shape_of(sizes, packed=self.packed)
        stand = Places.of(
            together,
            begins_of(sizes, packed=self.packed),
            lengths=(self.offsets[1:] - self.offsets[:-1]).tolist(),
            prompts=self.shared_prompt.tolist(),
            device=self.offsets.device,
        )
        token_ids = self.token_ids.new_zeros(shape)
        stand.fill(token_ids, self.token_ids, self.offsets)
        asked = torch.tensor(samples, device=self.sampled.device)
        indices = ranges(self.sampled_offsets()[asked], self.lengths[asked])
        targets = self.token_ids[self.sampled[indices]]
        # What predicts a token stands among its sample's own, or in the prompt at the row's beginning.
        owner = self.sequence[indices]
        predictors = stand.find(owner, self.sampled[indices] - self.offsets[owner] - 1)
        if self.packed:
            return TokenRows(token_ids, predictors, targets, packed=stand.packed(shape[1])), indices
        if len(together) == len(samples):
            return TokenRows(token_ids, predictors, targets), indices
        return TokenRows(token_ids, predictors, targets, self._shared(stand, token_ids)), indices

    def _shared(self, stand: Places, token_ids: Tensor) -> SharedPrompts:
        positions, owner = torch.zeros_like(token_ids), torch.full_like(token_ids, -1)
        positions.view(-1)[stand.places] = stand.positions
        of_sample = stand.within.repeat_interleave(stand.size)
        in_prompt = stand.positions < self.shared_prompt[stand.sample].repeat_interleave(stand.size)
        owner.view(-1)[stand.places] = torch.where(in_prompt, PROMPT, of_sample)
        return SharedPrompts(positions, attends(owner))

    def micro_batches(self, samples: Sequence[int], token_budget: int) -> list[list[int]]:
        """Divides samples so that each part has at most `token_budget` tokens, with padding, of which at most
        MAX_PADDING are padding. Rows of like length come together; one longer than the budget is a part of its own."""
        rows = self._rows_of(samples)
        plan = plan_packed if self.packed else plan_micro_batches
        parts = plan(self._row_sizes(rows), range(len(rows)), token_budget)
        return [[i for row in part for i in rows[row]] for part in parts]

    def padding_fraction(self, parts: Sequence[Sequence[int]]) -> float:
        """The share of padding among all tokens that the parts' forward passes see."""
        sizes = [self._row_sizes(self._rows_of(part)) for part in parts]
        return 1.0 - sum(map(sum, sizes)) / sum(prod(shape_of(part, packed=self.packed)) for part in sizes)

    def _rows_of(self, samples: Sequence[int]) -> list[list[int]]:
        """The samples, by the row that they stand in."""
        rows: dict[int, list[int]] = {}
        numbers = self.row.tolist()
        for i in samples:
            rows.setdefault(numbers[i], []).append(i)
        return list(rows.values())

    def _row_sizes(self, rows: Sequence[Sequence[int]]) -> list[int]:
        lengths = (self.offsets[1:] - self.offsets[:-1]).tolist()
        return row_sizes(rows, lengths=lengths, prompts=self.shared_prompt.tolist())


@dataclass(frozen=True)
class TokenSample:
    """One sequence that is learnt from. Arrays are [n], of its tokens."""

    token_ids: Array  # int32
    loss_mask: Array  # bool: True for the tokens that are learnt from
    tokens: SampledTokens[Array]
    versions: Array  # int64: of the policy that sampled each
    group: int = 0
    reward: float = 0.0
    truncated: bool = False


def collate_samples(trajectories: Sequence[LMTrajectory], *, step: int, layout: Layout = PADDED) -> TokenBatch:
    """Joins the samples of all trajectories in the given order. `step` is v, the version that learns from them.

    A sample of which no token was sampled (an empty turn cut at once) has nothing to learn and is left out.

    Raises:
      ValueError: on no trajectories, or none with a sampled token.
    """
    if not trajectories:
        raise ValueError("trajectories is empty: a learner batch needs at least one")
    turns = any(item.tokens.turn_rewards is not None for item in trajectories)
    samples = [sample for group, item in enumerate(trajectories) for sample in _samples(item, group, turns)]
    if not samples:
        raise ValueError(f"none of {len(trajectories)} trajectories holds a token that the policy sampled")
    return collate_tokens(samples, step=step, layout=layout)


def collate_tokens(samples: Sequence[TokenSample], *, step: int, layout: Layout = PADDED) -> TokenBatch:
    """As `collate_samples`, of samples with something to learn."""
    offsets = np.concatenate([[0], np.cumsum([len(sample.token_ids) for sample in samples])])
    sampled = [np.flatnonzero(sample.loss_mask) for sample in samples]
    lengths = np.array([len(positions) for positions in sampled])
    prompts = [int(positions[0]) for positions in sampled]
    rows, shared = share_prompts(
        [
            (sample.group, sample.token_ids[:prompt].tobytes(), prompt, len(sample.token_ids))
            for sample, prompt in zip(samples, prompts, strict=True)
        ],
        layout.sharing,
    )
    own = [sample.tokens.map(itemgetter(positions)) for sample, positions in zip(samples, sampled, strict=True)]
    versions = [sample.versions[positions] for sample, positions in zip(samples, sampled, strict=True)]
    return TokenBatch(
        token_ids=torch.from_numpy(np.concatenate([sample.token_ids for sample in samples]).astype(np.int64)),
        offsets=torch.from_numpy(offsets),
        sampled=torch.from_numpy(np.concatenate([p + o for p, o in zip(sampled, offsets[:-1], strict=True)])),
        sequence=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)),
        lengths=torch.from_numpy(lengths),
        tokens=SampledTokens.join(own, lambda arrays: torch.from_numpy(np.concatenate(arrays))),
        policy_lags=torch.from_numpy(step - np.concatenate(versions)),
        group=torch.tensor([sample.group for sample in samples]),
        rewards=torch.tensor([sample.reward for sample in samples], dtype=torch.float32),
        truncated=torch.tensor([sample.truncated for sample in samples]),
        row=torch.from_numpy(rows),
        shared_prompt=torch.from_numpy(shared),
        packed=layout.packed,
    )


def _samples(item: LMTrajectory, group: int, turns: bool) -> Iterator[TokenSample]:
    tokens, versions = item.tokens, item.token_versions()
    if turns and tokens.turn_rewards is None:  # others have some
        tokens = replace(tokens, turn_rewards=np.zeros_like(tokens.behaviour_logprobs))
    for index, (begin, end) in enumerate(itertools.pairwise(item.sample_offsets)):
        own = itemgetter(slice(begin, end))
        mask = own(item.loss_mask)
        if mask[0]:
            raise ValueError(f"sample {index} of {item.header.key} begins with a sampled token: nothing predicts it")
        if mask.any():
            yield TokenSample(
                token_ids=own(item.token_ids),
                loss_mask=mask,
                tokens=tokens.map(own),
                versions=own(versions),
                group=group,
                reward=float(item.rewards[index]),
                truncated=item.finish_reasons[index] == "length",
            )


@dataclass(frozen=True)
class TokenMinibatch(Generic[Targets]):
    """What one gradient is computed from: some samples of a batch, in micro-batches whose gradients add up.

    A token's weight is its share of the minibatch's loss (1 / number of tokens for a token mean), so that a loss is a
    weighted sum over whatever tokens a part has, and the parts' losses add up however they are divided. Metrics are
    token means whatever the loss's aggregation is: hence weights of their own.
    """

    batch: TokenBatch
    weights: Tensor  # [S]
    metric_weights: Tensor  # [S]
    targets: Targets  # [S]
    parts: Sequence[Sequence[int]]  # samples of each micro-batch
    ends_epoch: bool = False

    def shards(self, rank: int, num_processes: int) -> Iterator[TokenPart[Targets]]:
        """The micro-batches that one learner process works on, one after the other: memory holds one."""
        for part in share_of(at_least(self.parts, num_processes), rank, num_processes):
            rows, indices = self.batch.rows(part)
            own = itemgetter(indices)
            samples, sequence = torch.unique_consecutive(own(self.batch.sequence), return_inverse=True)
            yield TokenPart(
                rows=rows,
                tokens=self.batch.tokens.map(own),
                policy_lags=own(self.batch.policy_lags),
                weights=own(self.weights),
                metric_weights=own(self.metric_weights),
                targets=map_arrays(self.targets, own),
                sequence=sequence,
                num_samples=len(samples),
            )


@dataclass(frozen=True)
class TokenPart(Generic[Targets]):
    """One micro-batch: K sampled tokens of b samples, which may share rows. `sequence` [K] numbers the samples 0..b-1,
    in order."""

    rows: TokenRows
    tokens: SampledTokens[Tensor]  # [K]
    policy_lags: Tensor  # [K]
    weights: Tensor  # [K]
    metric_weights: Tensor  # [K]
    targets: Targets  # [K]
    sequence: Tensor  # [K]
    num_samples: int  # b


def each_token(
    batch: TokenBatch, evaluate: Callable[[TokenRows], Tensor], *, token_budget: int, rank: int, num_processes: int
) -> Tensor:
    """[S]: a forward pass over the whole batch without gradient, this process's share of it; zero elsewhere, so that
    the sum over processes is the whole."""
    out = torch.zeros(batch.num_sampled, device=batch.policy_lags.device)
    parts = batch.micro_batches(range(batch.num_samples), token_budget)
    with torch.no_grad():
        for part in share_of(parts, rank, num_processes):
            rows, indices = batch.rows(part)
            out[indices] = evaluate(rows).float()
    return out
