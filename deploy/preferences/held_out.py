"""Which comparisons are held out: never one that has something in common with one that is learnt from. Knows what
comparisons are of (a prompt, two segments) by name only; must never know what learns from them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence

import numpy as np

Side = bool | None  # held out, learnt from (False), or neither (None)


def by_prompt(prompts: Sequence[Hashable], *, fraction: float, generator: np.random.Generator) -> list[Side]:
    """A share of the prompts, each with all its comparisons: a response seen in training must not be held out."""
    unique = list(dict.fromkeys(prompts))
    order = generator.permutation(len(unique))
    held = {unique[i] for i in order[: max(1, round(fraction * len(unique)))]}
    return [prompt in held for prompt in prompts]


def in_turn(prompts: Sequence[Hashable], *, fraction: float) -> list[bool]:
    """The first of each 1 / fraction prompts, in the order in which they came, with all its comparisons: what comes
    later changes no side."""
    every = max(2, round(1 / fraction))
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    return [number[prompt] % every == 0 for prompt in prompts]


def by_segment(
    pairs: Sequence[tuple[Hashable, Hashable]], *, fraction: float, generator: np.random.Generator
) -> list[Side]:
    """A share of the pairs, none with a segment that a pair on the other side has too.

    Pairs that hang together by their segments stay together, as long as such groups are small enough. Of what hangs
    together as one, some segments are held out: pairs of these alone are held out, and pairs with one of them are on
    neither side. There are no more of those than pairs that were to be held out, so of a file in which every segment
    was compared often fewer are held out than asked for: at least one.
    """
    of: dict[Hashable, list[int]] = defaultdict(list)  # segment -> its pairs
    for index, pair in enumerate(pairs):
        for segment in dict.fromkeys(pair):
            of[segment].append(index)
    groups = _groups(pairs, of)
    wanted = max(1, round(fraction * len(pairs)))
    order = [groups[i] for i in generator.permutation(len(groups))]
    sides: list[Side] = [False] * len(pairs)
    missing = wanted
    for group in order:
        if len(group) <= missing:
            missing -= len(group)
            for index in group:
                sides[index] = True
    if missing > wanted // 2:
        _cut(max(groups, key=len), pairs, of, sides, missing=missing, most_lost=wanted, generator=generator)
    return sides


def _groups(pairs: Sequence[tuple[Hashable, Hashable]], of: dict[Hashable, list[int]]) -> list[list[int]]:
    """Pairs that hang together, by the first of each group."""
    seen: set[int] = set()
    groups = []
    for begin in range(len(pairs)):
        if begin in seen:
            continue
        seen.add(begin)
        group, waiting = [], deque([begin])
        while waiting:
            index = waiting.popleft()
            group.append(index)
            for other in (other for segment in pairs[index] for other in of[segment]):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        groups.append(sorted(group))
    return groups


def _cut(
    group: list[int],
    pairs: Sequence[tuple[Hashable, Hashable]],
    of: dict[Hashable, list[int]],
    sides: list[Side],
    *,
    missing: int,
    most_lost: int,
    generator: np.random.Generator,
) -> None:
    """Takes segments that lie near each other, one after the other, and keeps the cut that holds out most."""
    reached = _outwards(pairs[group[int(generator.integers(len(group)))]], pairs, of)
    left: dict[int, int] = {}  # pair -> how many of its segments are not taken yet
    held = 0
    best: tuple[tuple[bool, int], int] | None = None  # how good it is, after how many segments
    for count, segment in enumerate(reached, start=1):
        for index in of[segment]:
            left[index] = left.get(index, len(set(pairs[index]))) - 1
            held += not left[index]
        lost = len(left) - held
        good = (lost <= most_lost, held if lost <= most_lost else -lost)
        if held and (best is None or good > best[0]):
            best = good, count
        if best is not None and (held >= missing or len(left) > missing + 4 * most_lost):
            break
    assert best is not None, "the first two segments are a pair"
    taken = set(reached[: best[1]])
    for index in {index for segment in taken for index in of[segment]}:
        sides[index] = True if taken.issuperset(pairs[index]) else None


def _outwards(
    first: tuple[Hashable, Hashable], pairs: Sequence[tuple[Hashable, Hashable]], of: dict[Hashable, list[int]]
) -> list[Hashable]:
    """Segments in the order in which they are reached from a pair's."""
    reached: dict[Hashable, None] = dict.fromkeys(first)
    waiting = deque(reached)
    while waiting:
        for other in (other for index in of[waiting.popleft()] for other in pairs[index]):
            if other not in reached:
                reached[other] = None
                waiting.append(other)
    return list(reached)
