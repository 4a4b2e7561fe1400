"""How far raters agree, and how far beyond chance: raw agreement, Cohen's kappa, Krippendorff's alpha."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rollcall.reward_service.preferences.records import Label

Said = Mapping[str, Hashable]  # of one unit: what each rater said


@dataclass(frozen=True, slots=True)
class Kappa:
    """Two raters over the units that both rated. None where chance alone would agree always: nothing can be said."""

    raters: tuple[str, str]
    num_units: int
    agreement: float
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of all pairs of candidates that were decided (left, right or tie). Skips say nothing."""

    num_labels: int
    num_raters: int
    num_shared: int  # pairs of candidates that two raters or more decided
    agreement: float | None  # of two labels of the same pair, how often they are the same
    alpha: float | None
    kappas: tuple[Kappa, ...]
    first_chosen: float | None  # of decided pairs on a screen, how often the first: 0.5 without a bias of place
    ties: float | None


def agreement(labels: Sequence[Label]) -> Agreement:
    """A ranking of K is its K (K - 1) / 2 pairs. The comparisons' own order of candidates is that of their digests, so
    left and right are equally likely by chance."""
    units: dict[tuple[str, int, int], dict[str, str]] = defaultdict(dict)
    shown_first: list[bool] = []
    for label in labels:
        places = label.places
        if places is None:
            continue
        for i, j in combinations(range(len(places)), 2):
            said = "tie" if places[i] == places[j] else "left" if places[i] < places[j] else "right"
            units[label.comparison_id, i, j][label.rater] = said
            if said != "tie" and i in label.shown and j in label.shown:
                i_is_first = label.shown.index(i) < label.shown.index(j)
                shown_first.append(i_is_first == (said == "left"))
    every = [said for unit in units.values() for said in unit.values()]
    return Agreement(
        num_labels=sum(label.places is not None for label in labels),
        num_raters=len({label.rater for label in labels}),
        num_shared=sum(len(unit) > 1 for unit in units.values()),
        agreement=raw_agreement(units.values()),
        alpha=krippendorff_alpha(units.values()),
        kappas=kappas(units.values()),
        first_chosen=_share(shown_first),
        ties=_share([said == "tie" for said in every]),
    )


def raw_agreement(units: Iterable[Said]) -> float | None:
    """Of all two labels of one unit by two raters, the share that are the same. None without such."""
    return _share([a == b for unit in units for a, b in combinations(unit.values(), 2)])


def kappas(units: Iterable[Said]) -> tuple[Kappa, ...]:
    """Of every two raters that share a unit, those who share most first."""
    both: dict[tuple[str, str], list[tuple[Hashable, Hashable]]] = defaultdict(list)
    for unit in units:
        for first, second in combinations(sorted(unit), 2):
            both[first, second].append((unit[first], unit[second]))
    found = [
        Kappa(raters, len(said), sum(a == b for a, b in said) / len(said), cohen_kappa(said))
        for raters, said in both.items()
    ]
    return tuple(sorted(found, key=lambda kappa: (-kappa.num_units, kappa.raters)))


def cohen_kappa(said: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """(p_o - p_e) / (1 - p_e) for two raters' labels of the same units, p_e from each rater's own frequencies
    (Cohen, 1960, "A coefficient of agreement for nominal scales"). None where p_e is 1.

    Raises:
      ValueError: without units.
    """
    if not said:
        raise ValueError("said is empty: two raters without a unit in common have no kappa")
    count = len(said)
    observed = sum(a == b for a, b in said) / count
    first, second = Counter(a for a, _ in said), Counter(b for _, b in said)
    expected = sum(first[value] * second[value] for value in first) / count**2
    return None if expected == 1.0 else (observed - expected) / (1.0 - expected)


def krippendorff_alpha(units: Iterable[Said]) -> float | None:
    """1 - D_o / D_e for nominal values, any number of raters and any of their labels missing (Krippendorff, 2011,
    "Computing Krippendorff's alpha-reliability", sections C and E). None where nothing can be disagreed upon."""
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    weights: dict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for unit in units:
        if len(unit) < 2:  # a single label can be paired with nothing
            continue
        coincidences.clear()
        values = list(unit.values())
        coincidences.update((a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j)
        for pair, count in coincidences.items():
            weights[pair] += count / (len(values) - 1)
    totals: dict[Hashable, float] = defaultdict(float)
    for (value, _), weight in weights.items():
        totals[value] += weight
    everything = sum(totals.values())
    expected = sum(totals[a] * totals[b] for a in totals for b in totals if a != b)
    if expected == 0.0:
        return None
    observed = sum(weight for (a, b), weight in weights.items() if a != b)
    return 1.0 - (everything - 1.0) * observed / expected


def _share(facts: Sequence[bool]) -> float | None:
    return sum(facts) / len(facts) if facts else None
