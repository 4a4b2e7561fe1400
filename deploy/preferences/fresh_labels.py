"""New labels of a run: how right a reward model is about them, and how far those agree who gave them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from rollcall.deploy.preferences.accuracy import Accuracy, accuracy_of
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.preferences.agreement import krippendorff_alpha, raw_agreement
from rollcall.reward_service.preferences.files import Preference, PreferencePair, SegmentPair
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Score
from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer

CANARY_ITEMS = 8
_AT_ONCE = 256
ANY_LENGTH = 2**31 - 1  # that the model itself takes

Judged = Callable[[Path, Sequence[ScoreItem]], list[float]]


class FreshLabels:
    """New labels, and how right a reward model is about them. A ranking is all its pairs; ties say nothing."""

    def __init__(self, preferences: Sequence[Preference], judge: Judged | None = None) -> None:
        self._preferences = preferences
        self._judge = judge or canary_of

    def __len__(self) -> int:
        return len(self._preferences)

    def items(self) -> list[ScoreItem]:
        """The first few candidates, for a service to be looked at with."""
        return list({item.id: item for item in self._items}.values())[:CANARY_ITEMS]

    def accuracy(self, model: Path | None) -> Accuracy | None:
        if model is None or not self._pairs:
            return None
        scores = self._judge(model, self._items)
        return accuracy_of([scores[better] - scores[worse] for better, worse in self._pairs])

    @cached_property
    def _items(self) -> list[ScoreItem]:
        return [item for preference in self._preferences for item, _ in _placed(preference)]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """(better, worse), as places in `_items`"""
        found, begin = [], 0
        for preference in self._preferences:
            places = [place for _, place in _placed(preference)]
            for i, j in combinations(range(len(places)), 2):
                if places[i] != places[j]:
                    better, worse = (i, j) if places[i] < places[j] else (j, i)
                    found.append((begin + better, begin + worse))
            begin += len(places)
        return found


def canary_of(model: Path, items: Sequence[ScoreItem]) -> list[float]:
    """What the model in a directory says of them itself, whatever is in service.

    Raises:
      ValueError: where it has no finite score for one of them.
    """
    config = RewardModelConfig(path=str(model), threads=torch.get_num_threads(), max_tokens=ANY_LENGTH)
    scorer = build_reward_model_scorer(config)
    found: list[float] = []
    for begin in range(0, len(items), _AT_ONCE):
        for outcome in scorer.score(items[begin : begin + _AT_ONCE]):
            if not isinstance(outcome, Score):
                raise ValueError(f"{model}: {outcome.message}")
            found.append(outcome.value)
    return found


def agreement_of(preferences: Sequence[Preference]) -> dict[str, Any] | None:
    """Of raters who were asked the same; None where nobody was."""
    units: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for preference in preferences:
        said = list(_placed(preference))
        for (a, place_a), (b, place_b) in combinations(sorted(said, key=lambda one: one[0].id), 2):
            verdict = "tie" if place_a == place_b else "first" if place_a < place_b else "second"
            units[a.id, b.id][preference.rater or ""] = verdict
    shared = [unit for unit in units.values() if len(unit) > 1]
    if not shared:
        return None
    return {"shared": len(shared), "agreement": raw_agreement(shared), "alpha": krippendorff_alpha(shared)}


def _placed(preference: Preference) -> Iterator[tuple[ScoreItem, int]]:
    """Each candidate, named by what it is, with its place: 0 the best."""
    if isinstance(preference, SegmentPair):
        places = {"left": (0, 1), "right": (1, 0), "tie": (0, 0)}[preference.choice]
        for segment, place in zip(preference.segments, places, strict=True):
            yield ScoreItem(id=_name(segment.model_dump_json()), segment=segment), place
        return
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    if isinstance(preference, PreferencePair):
        responses, ranks = (preference.chosen, preference.rejected), (0, 0) if preference.tie else (0, 1)
    else:
        responses, ranks = preference.responses, preference.ranks
    asked: dict[str, Any] = {"prompt" if isinstance(preference.prompt, str) else "messages": preference.prompt}
    for text, place in zip(responses, ranks, strict=True):
        yield ScoreItem(id=_name(f"{preference.prompt!r}\n{text}"), response=text, **asked), place


def _name(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
