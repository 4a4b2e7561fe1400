"""Preferences from a seeded grammar whose reward is known: short reviews, judged by how kind their words are. For
recipes and tests that need neither people nor a download. Must never know what learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rollcall.cluster.seeds import derive_seed
from rollcall.reward_service.preference_files import PreferencePair, Ranking, write_preferences

SUBJECTS = ("film", "meal", "hotel", "book", "trip", "game")
PARTS = ("start", "middle", "end", "style", "price", "mood")
VALENCE = {
    **{"superb": 2, "lovely": 2, "good": 1, "warm": 1},
    **{"usual": 0, "long": 0},
    **{"dull": -1, "cold": -1, "awful": -2, "nasty": -2},
}
MAJORITY, MINORITY = "fans", "critics"  # the latter like what the former do not
_NEGATED = 0.15  # of clauses


class SyntheticConfig(BaseModel):
    """How many comparisons are made up, and by whom they are judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int = Field(default=2000, ge=1, description="comparisons to learn from")
    eval_pairs: int = Field(
        default=500, ge=1, description="comparisons held out, of other reviews, judged without error"
    )
    noise: float = Field(default=0.0, ge=0, lt=0.5, description="share of wrong labels among those to learn from")
    responses: int = Field(default=2, ge=2, le=9, description="per prompt; more than 2 are ranked")
    minority_share: float | None = Field(
        default=None, gt=0, lt=1, description="share of a second group with the opposite taste, named in the prompt"
    )


def write_synthetic(directory: Path, config: SyntheticConfig, *, seed: int) -> tuple[Path, Path]:
    """Writes train.jsonl and eval.jsonl; the same arguments write the same bytes. Of two groups, both are held out in
    like numbers, so that the worst group's accuracy is known as well as the other's."""
    paths = directory / "train.jsonl", directory / "eval.jsonl"
    generator = np.random.default_rng(derive_seed(seed, "synthetic"))
    share = config.minority_share
    train = _comparisons(generator, config, config.pairs, share, config.noise)
    held_out = _comparisons(generator, config, config.eval_pairs, None if share is None else 0.5, 0.0)
    write_preferences(paths[0], train)
    write_preferences(paths[1], held_out)
    return paths


def kindness(review: str) -> int:
    """The known reward: the valence of a review's words, "not" turning that of the next one round."""
    words = review.replace(".", " ").replace(",", " ").split()
    signs = (-1 if before == "not" else 1 for before in ["", *words])
    return sum(sign * VALENCE.get(word, 0) for sign, word in zip(signs, words, strict=False))


def taste(group: str | None) -> int:
    return -1 if group == MINORITY else 1


def _comparisons(
    generator: np.random.Generator, config: SyntheticConfig, count: int, minority_share: float | None, noise: float
) -> list[PreferencePair | Ranking]:
    made: list[PreferencePair | Ranking] = []
    rare = 0 if minority_share is None else round(count * minority_share)
    groups = [None] * count if minority_share is None else [MINORITY] * rare + [MAJORITY] * (count - rare)
    for index in generator.permutation(count):
        group = groups[index]
        prompt = f"{f'For {group}, the' if group else 'The'} {generator.choice(SUBJECTS)}: "
        reviews: dict[int, str] = {}  # by reward: no two are equally kind
        while len(reviews) < config.responses:
            review = _review(generator)
            reviews.setdefault(kindness(review), review)
        order = generator.permutation(config.responses)
        shown = [list(reviews.items())[i] for i in order]
        made.append(_judged(prompt, shown, group, wrong=bool(generator.random() < noise)))
    return made


def _judged(prompt: str, shown: list[tuple[int, str]], group: str | None, *, wrong: bool) -> PreferencePair | Ranking:
    sign = taste(group) * (-1 if wrong else 1)
    places = sorted(range(len(shown)), key=lambda i: -sign * shown[i][0])
    details: Mapping[str, JsonValue] = {"kindness": [shown[i][0] for i in places]}
    ordered = [shown[i][1] for i in places]
    if len(shown) == 2:
        return PreferencePair(prompt=prompt, chosen=ordered[0], rejected=ordered[1], group=group, details=details)
    ranks = tuple(range(len(shown)))
    return Ranking(prompt=prompt, responses=tuple(ordered), ranks=ranks, group=group, details=details)


def _review(generator: np.random.Generator) -> str:
    clauses = []
    for part in generator.choice(PARTS, size=int(generator.integers(2, 4)), replace=False):
        negation = "not " if generator.random() < _NEGATED else ""
        clauses.append(f"{part} {negation}{generator.choice(list(VALENCE))}")
    return f"{', '.join(clauses)}."
