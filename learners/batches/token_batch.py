"""One learner batch of language experience: samples flat over their tokens, and how they become padded micro-batches.

Positions: a sample's tokens are prompt and completion (and, in a conversation, what tools answered). The tokens to be
learnt from are those the policy sampled; all mathematics runs over these alone, flat, [S], sample after sample. Padding
exists only inside the forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array, map_arrays
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.batches.prompt_sharing import PROMPT, SharedPrompts, Sharing, attends, share_prompts

Targets = TypeVar("Targets")  # what an algorithm has computed of every token: a frozen dataclass of tensors

MAX_PADDING = 0.1  # of a micro-batch's tokens, unless it holds one sample only


@dataclass(frozen=True)
class TokenRows:
    """Some samples, padded on the right for one forward pass. With causal attention nothing sees the padding."""

    token_ids: Tensor  # int64 [b, L]
    predictors: Tensor  # int64 [K]: flat index (row * L + t) of the state that predicts each sampled token
    targets: Tensor  # int64 [K]: those tokens
    shared: SharedPrompts | None = None  # where a row holds several samples of one prompt


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

    @property
    def num_samples(self) -> int:
        return len(self.lengths)

    @property
    def num_sampled(self) -> int:
        """Number of tokens to be learnt from, S."""
        return len(self.sampled)

    def to(self, device: torch.device) -> TokenBatch:
        return map_arrays(self, lambda tensor: tensor.to(device, non_blocking=True))

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
        width = max(self._row_sizes(together))
        stand = self._places(together, width)
        token_ids = self.token_ids.new_zeros(len(together), width)
        place = _ranges(stand.begin, stand.size)
        token_ids.view(-1)[place] = self.token_ids[_ranges(self.offsets[stand.sample] + stand.shared, stand.size)]
        asked = torch.tensor(samples, device=self.sampled.device)
        indices = _ranges(self.sampled_offsets()[asked], self.lengths[asked])
        targets = self.token_ids[self.sampled[indices]]
        # What predicts a token stands among its sample's own, or in the prompt at the row's beginning.
        number = torch.zeros_like(self.lengths)
        number[stand.sample] = torch.arange(len(samples), device=number.device)
        number = number[self.sequence[indices]]
        before = self.sampled[indices] - self.offsets[self.sequence[indices]] - 1
        own = before - stand.shared[number] + stand.begin[number]
        predictors = torch.where(before < stand.shared[number], before + stand.begin[number] // width * width, own)
        if len(together) == len(samples):
            return TokenRows(token_ids, predictors, targets), indices
        positions, owner = torch.zeros_like(token_ids), torch.full_like(token_ids, -1)
        positions.view(-1)[place] = _ranges(stand.shared, stand.size)
        of_sample = stand.within.repeat_interleave(stand.size)
        in_prompt = positions.view(-1)[place] < self.shared_prompt[stand.sample].repeat_interleave(stand.size)
        owner.view(-1)[place] = torch.where(in_prompt, PROMPT, of_sample)
        return TokenRows(token_ids, predictors, targets, SharedPrompts(positions, attends(owner))), indices

    def micro_batches(self, samples: Sequence[int], token_budget: int) -> list[list[int]]:
        """Divides samples so that each part, padded, has at most `token_budget` tokens, of which at most MAX_PADDING
        are padding. Rows of like length come together; one longer than the budget is a part of its own."""
        rows = self._rows_of(samples)
        parts = plan_micro_batches(self._row_sizes(rows), range(len(rows)), token_budget)
        return [[i for row in part for i in rows[row]] for part in parts]

    def padding_fraction(self, parts: Sequence[Sequence[int]]) -> float:
        """The share of padding among all tokens that the parts' forward passes see."""
        sizes = [self._row_sizes(self._rows_of(part)) for part in parts]
        return 1.0 - sum(map(sum, sizes)) / sum(len(part) * max(part) for part in sizes)

    def _rows_of(self, samples: Sequence[int]) -> list[list[int]]:
        """The samples, by the row that they stand in."""
        rows: dict[int, list[int]] = {}
        numbers = self.row.tolist()
        for i in samples:
            rows.setdefault(numbers[i], []).append(i)
        return list(rows.values())

    def _row_sizes(self, rows: Sequence[Sequence[int]]) -> list[int]:
        lengths, prompts = (self.offsets[1:] - self.offsets[:-1]).tolist(), self.shared_prompt.tolist()
        return [sum(lengths[i] for i in row) - (len(row) - 1) * prompts[row[0]] for row in rows]

    def _places(self, rows: Sequence[Sequence[int]], width: int) -> _Places:
        """Where the samples stand in rows of `width` tokens: the first of a row with its prompt, the others without."""
        lengths, prompts = (self.offsets[1:] - self.offsets[:-1]).tolist(), self.shared_prompt.tolist()
        found = []
        for row, members in enumerate(rows):
            begin = row * width
            for within, i in enumerate(members):
                shared = prompts[i] if within else 0
                found.append((i, shared, begin, lengths[i] - shared, within + 1))
                begin += lengths[i] - shared
        return _Places(*torch.tensor(found, device=self.offsets.device).T)


@dataclass(frozen=True)
class _Places:
    """Samples in rows, each int64 [n]."""

    sample: Tensor
    shared: Tensor  # of its tokens, how many stand in the row already
    begin: Tensor  # flat, of the others
    size: Tensor  # of the others
    within: Tensor  # which of its row's samples it is: 1, 2, ...


def _ranges(begins: Tensor, sizes: Tensor) -> Tensor:
    """begins[0], begins[0] + 1, ... (sizes[0] numbers), then begins[1], ..."""
    before = sizes.cumsum(0) - sizes
    return (begins - before).repeat_interleave(sizes) + torch.arange(int(sizes.sum()), device=sizes.device)


def plan_micro_batches(sizes: Sequence[int], samples: Sequence[int], token_budget: int) -> list[list[int]]:
    """Samples (with their sizes in tokens) longest first, cut where the budget or the padding would be passed."""
    order = sorted(range(len(samples)), key=lambda k: (-sizes[k], k))
    parts: list[list[int]] = []
    width = used = 0
    for k in order:
        rows = len(parts[-1]) + 1 if parts else 1
        fits = bool(parts) and rows * width <= token_budget and used + sizes[k] >= (1 - MAX_PADDING) * rows * width
        if not fits:
            parts.append([])
            width, used = sizes[k], 0
        parts[-1].append(samples[k])
        used += sizes[k]
    return parts


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


def collate_samples(trajectories: Sequence[LMTrajectory], *, step: int, sharing: Sharing | None = None) -> TokenBatch:
    """Joins the samples of all trajectories in the given order. `step` is v, the version that learns from them.

    A sample of which no token was sampled (an empty turn cut at once) has nothing to learn and is left out.

    Args:
      sharing: for models that can compute a prompt once for several samples; None: each sample has a row of its own.

    Raises:
      ValueError: on no trajectories, or none with a sampled token.
    """
    if not trajectories:
        raise ValueError("trajectories is empty: a learner batch needs at least one")
    turns = any(item.tokens.turn_rewards is not None for item in trajectories)
    samples = [sample for group, item in enumerate(trajectories) for sample in _samples(item, group, turns)]
    if not samples:
        raise ValueError(f"none of {len(trajectories)} trajectories holds a token that the policy sampled")
    return collate_tokens(samples, step=step, sharing=sharing)


def collate_tokens(samples: Sequence[TokenSample], *, step: int, sharing: Sharing | None = None) -> TokenBatch:
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
        sharing,
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
        for part in _share(at_least(self.parts, num_processes), rank, num_processes):
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


def at_least(parts: Sequence[Sequence[int]], number: int) -> list[Sequence[int]]:
    """The parts, the largest halved until there are `number` of them: every process needs something to do."""
    divided = list(parts)
    while len(divided) < number:
        largest = max(range(len(divided)), key=lambda i: len(divided[i]))
        part = divided[largest]
        assert len(part) > 1, "more learner processes than samples, or comparisons, in a minibatch"
        divided[largest : largest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return divided


def _share(parts: Sequence[Sequence[int]], rank: int, num_processes: int) -> list[Sequence[int]]:
    """One process's parts. All get equally many, the last of some processes being empty: sharded parameters are
    gathered in each pass, by all processes together."""
    own = list(parts[rank::num_processes])
    return own + [()] * (-(-len(parts) // num_processes) - len(own))


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
        for part in _share(parts, rank, num_processes):
            rows, indices = batch.rows(part)
            out[indices] = evaluate(rows).float()
    return out
