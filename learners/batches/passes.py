"""A minibatch divided into forward passes, by what its items measure alone, and the passes among learner processes."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.1  # of a micro-batch's tokens, unless it holds one sample only


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


def plan_packed(sizes: Sequence[int], samples: Sequence[int], token_budget: int) -> list[list[int]]:
    """As `plan_micro_batches`, of what stands in one row: there is no padding to look at."""
    parts: list[list[int]] = []
    used = 0
    for k in sorted(range(len(samples)), key=lambda k: (-sizes[k], k)):
        if not parts or used + sizes[k] > token_budget:
            parts.append([])
            used = 0
        parts[-1].append(samples[k])
        used += sizes[k]
    return parts


def plan_together(longest: Sequence[int], num_rows: Sequence[int], token_budget: int) -> list[list[int]]:
    """Comparisons, each of some rows that stay in one pass (`longest`: of its rows, in tokens), in parts whose rows,
    padded, have at most `token_budget` tokens: those of like length together. One that is larger is a part of its own.
    """
    parts: list[list[int]] = []
    width = rows = 0
    for c in sorted(range(len(longest)), key=lambda c: (-longest[c], c)):
        if not parts or (rows + num_rows[c]) * width > token_budget:
            parts.append([])
            width, rows = longest[c], 0
        parts[-1].append(c)
        rows += num_rows[c]
    return parts


def at_least(parts: Sequence[Sequence[int]], number: int) -> list[Sequence[int]]:
    """The parts, the largest halved until there are `number` of them, as far as they can be: work for every process."""
    divided = list(parts)
    while len(divided) < number:
        largest = max(range(len(divided)), key=lambda i: len(divided[i]))
        if len(part := divided[largest]) < 2:
            break
        divided[largest : largest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return divided


def share_of(parts: Sequence[Sequence[int]], rank: int, num_processes: int) -> list[Sequence[int]]:
    """One process's parts. All get equally many, the last of some processes being empty: sharded parameters are
    gathered in each pass, by all processes together."""
    own = list(parts[rank::num_processes])
    return own + [()] * (-(-len(parts) // num_processes) - len(own))
