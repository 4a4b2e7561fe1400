"""Single responses that are called desirable or undesirable: comparisons taken apart into such rows, and rows put side
by side to be judged. A row is a ranking of one: 0 is desirable, 1 is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.reward_service.preferences.files import Preference, PreferencePair, Ranking, SegmentPair

DESIRABLE, UNDESIRABLE = 0, 1


def rows_of(preferences: Sequence[Preference]) -> list[Ranking]:
    """Labelled rows as they are; of a pair the chosen response is desirable and the other one is not, of a ranking
    those on the first place. Of what is tied nothing is said."""
    rows: list[Ranking] = []
    for item in preferences:
        assert not isinstance(item, SegmentPair), "texts alone"
        if isinstance(item, Ranking) and len(item.responses) == 1:
            rows.append(item)
            continue
        responses: tuple[str, ...]
        places: tuple[int, ...]
        if isinstance(item, PreferencePair):
            responses, places = (item.chosen, item.rejected), (0, 0) if item.tie else (0, 1)
        else:
            responses, places = item.responses, item.ranks
        if len(set(places)) > 1:
            rows += [
                Ranking(item.prompt, (text,), (min(place, 1),), item.group, item.rater, item.source, item.details)
                for text, place in zip(responses, places, strict=True)
            ]
    return rows


def side_by_side(
    rows: Sequence[RankedCandidates[TokenSequence]], *, seed: int
) -> list[RankedCandidates[TokenSequence]]:
    """Each desirable response with an undesirable one: of the same prompt where there is one, else of a prompt that is
    drawn. None where all rows have one label."""
    generator = np.random.default_rng(seed)
    undesirable = [row.candidates[0] for row in rows if row.ranks == (UNDESIRABLE,)]
    same: dict[bytes, list[TokenSequence]] = defaultdict(list)
    for candidate in undesirable:
        same[_prompt_of(candidate)].append(candidate)
    pairs = []
    for row in rows if undesirable else ():
        if row.ranks == (DESIRABLE,):
            others = same.get(_prompt_of(row.candidates[0]), undesirable)
            other = others[int(generator.integers(len(others)))]
            pairs.append(RankedCandidates((row.candidates[0], other), (0, 1), group=row.group))
    return pairs


def _prompt_of(candidate: TokenSequence) -> bytes:
    return candidate.token_ids[: candidate.num_prompt].tobytes()
