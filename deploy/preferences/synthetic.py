"""Preferences from a seeded grammar whose reward is known: short reviews, judged by how kind their words are. For
recipes and tests that need neither people nor a download. Must never know what learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rollcall.actors.tasks.reviews import SUBJECTS, kindness, prompt_about, write_review
from rollcall.cluster.seeds import derive_seed
from rollcall.reward_service.preferences.files import PreferencePair, Ranking, write_preferences

MAJORITY, MINORITY = "fans", "critics"  # the latter like what the former do not


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
        default=None,
        gt=0,
        lt=1,
        description="share of a second group with the opposite preference, named in the prompt",
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


def preferred_sign(group: str | None) -> int:
    return -1 if group == MINORITY else 1


def _comparisons(
    generator: np.random.Generator, config: SyntheticConfig, count: int, minority_share: float | None, noise: float
) -> list[PreferencePair | Ranking]:
    made: list[PreferencePair | Ranking] = []
    rare = 0 if minority_share is None else round(count * minority_share)
    groups = [None] * count if minority_share is None else [MINORITY] * rare + [MAJORITY] * (count - rare)
    for index in generator.permutation(count):
        group = groups[index]
        prompt = prompt_about(generator.choice(SUBJECTS), group=group)
        reviews: dict[int, str] = {}  # by reward: no two are equally kind
        while len(reviews) < config.responses:
            review = write_review(generator)
            reviews.setdefault(kindness(review), review)
        order = generator.permutation(config.responses)
        shown = [list(reviews.items())[i] for i in order]
        made.append(_judged(prompt, shown, group, wrong=bool(generator.random() < noise)))
    return made


def _judged(prompt: str, shown: list[tuple[int, str]], group: str | None, *, wrong: bool) -> PreferencePair | Ranking:
    sign = preferred_sign(group) * (-1 if wrong else 1)
    places = sorted(range(len(shown)), key=lambda i: -sign * shown[i][0])
    details: Mapping[str, JsonValue] = {"kindness": [shown[i][0] for i in places]}
    ordered = [shown[i][1] for i in places]
    if len(shown) == 2:
        return PreferencePair(prompt=prompt, chosen=ordered[0], rejected=ordered[1], group=group, details=details)
    ranks = tuple(range(len(shown)))
    return Ranking(prompt=prompt, responses=tuple(ordered), ranks=ranks, group=group, details=details)
