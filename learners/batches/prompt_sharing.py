"""Samples of one prompt in one row: the prompt once, then each sample's own tokens, which see the prompt and themselves
but not one another. The same numbers as with a row for each sample, for less work: of 8 answers of 3 tokens to a prompt
of 8, 32 tokens are computed in place of 88."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_SAVING = 0.25  # of a sample's cost: a masked attention takes longer than its multiplications say
PROMPT = 0


@dataclass(frozen=True)
class Sharing:
    """What decides which samples share a row."""

    hidden_size: int | None  # of the model; None: attention computes what is seen and no more, so it always pays
    max_row: int  # tokens: what one forward pass may hold


@dataclass(frozen=True)
class SharedPrompts:
    """How a pass over rows that hold several samples differs from one over plain rows."""

    positions: Tensor  # int64 [b, L]: every sample's tokens follow on the prompt's
    attends: Tensor  # bool [b, 1, L, L]: the prompt causally; a sample's token the prompt and its own past


def plan_sharing(prompt: int, lengths: Sequence[int], sharing: Sharing) -> list[int]:
    """The row of each of some samples that begin with the same prompt: 0, 0, 1, ...; equal numbers share a row.

    A layer of width h multiplies about 12 h^2 numbers for each token and, in attention over a row of R tokens, 2 R h
    more: a row costs R * (6 h + R). A sample joins the row before it where that is at least LEAST_SAVING cheaper than a
    row of its own: short answers to long prompts do, long answers do not. Without `hidden_size` each does.

    Args:
      prompt: its tokens.
      lengths: tokens of each sample with its prompt.
    """

    def cost(width: int) -> int:
        return width * (6 * (sharing.hidden_size or 0) + width)

    rows: list[int] = []
    row, width = -1, 0
    for length in lengths:
        together = width + length - prompt
        cheaper = cost(together) - cost(width) <= (1 - LEAST_SAVING) * cost(length)
        pays = cheaper or sharing.hidden_size is None
        if row >= 0 and pays and together <= sharing.max_row:
            width = together
        else:
            row, width = row + 1, length
        rows.append(row)
    return rows


def share_prompts(
    samples: Sequence[tuple[int, bytes, int, int]], sharing: Sharing | None
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Rows and shared tokens of a batch's samples, each int64 [N].

    Args:
      samples: of each its group, its prompt's tokens (everything before the first sampled one), how many those are, and
        its length.
      sharing: None: every sample has a row of its own.
    """
    rows = np.arange(len(samples))
    prompts = np.zeros(len(samples), np.int64)
    if sharing is None:
        return rows, prompts
    alike: dict[tuple[int, bytes], list[int]] = {}
    for index, (group, tokens, _, _) in enumerate(samples):
        alike.setdefault((group, tokens), []).append(index)
    for members in alike.values():
        plan = plan_sharing(samples[members[0]][2], [samples[i][3] for i in members], sharing)
        for i, row in zip(members, plan, strict=True):
            first = members[plan.index(row)]
            rows[i] = first
            if plan.count(row) > 1:
                prompts[i] = samples[i][2]
    return rows, prompts


def attends(owner: Tensor) -> Tensor:
    """bool [b, 1, L, L]: each token sees, of the tokens before it and itself, the prompt's and its own sample's.

    Args:
      owner: int64 [b, L]: PROMPT; 1, 2, ... for the samples; anything else for padding.
    """
    width = owner.shape[1]
    related = (owner[:, None, :] == PROMPT) | (owner[:, None, :] == owner[:, :, None])
    past = torch.ones(width, width, dtype=torch.bool, device=owner.device).tril()
    return (related & past)[:, None]
