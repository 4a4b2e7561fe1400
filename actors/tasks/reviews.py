"""Short reviews from a small grammar: a corpus to imitate, and a known measure of how kind a review is. For learning
from preferences where nothing can be downloaded."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split
from rollcall.cluster.seeds import derive_seed

SUBJECTS = ("film", "meal", "hotel", "book", "trip", "game")
PARTS = ("start", "middle", "end", "style", "price", "mood")
VALENCE = {
    **{"superb": 2, "lovely": 2, "good": 1, "warm": 1},
    **{"usual": 0, "long": 0},
    **{"dull": -1, "cold": -1, "awful": -2, "nasty": -2},
}
MAX_CLAUSES = 3
MAX_KINDNESS = 2 * MAX_CLAUSES
_NEGATED = 0.15  # of clauses
_CLAUSE = rf"(?:{'|'.join(PARTS)}) (?:not )?(?:{'|'.join(VALENCE)})"
_REVIEW = re.compile(rf"{_CLAUSE}(?:, {_CLAUSE}){{1,{MAX_CLAUSES - 1}}}\.")


def prompt_about(subject: str, *, group: str | None = None) -> str:
    return f"{f'For {group}, the' if group else 'The'} {subject}: "


def write_review(generator: np.random.Generator) -> str:
    """Two or three clauses about different parts."""
    clauses = []
    for part in generator.choice(PARTS, size=int(generator.integers(2, MAX_CLAUSES + 1)), replace=False):
        negation = "not " if generator.random() < _NEGATED else ""
        clauses.append(f"{part} {negation}{generator.choice(list(VALENCE))}")
    return f"{', '.join(clauses)}."


def kindness(review: str) -> int:
    """The valence of a review's words, "not" turning that of the next one round; of any text."""
    words = review.replace(".", " ").replace(",", " ").split()
    signs = (-1 if before == "not" else 1 for before in ["", *words])
    return sum(sign * VALENCE.get(word, 0) for sign, word in zip(signs, words, strict=False))


def kindness_of(prompt: str, review: str) -> float:
    """As a synthetic rater's true reward."""
    return float(kindness(review))


def kindness_of_a_review(prompt: str, review: str) -> float:
    """The same, of a rater who wants a review: what is none is worse than the most unkind one."""
    return float(kindness(review) if _REVIEW.fullmatch(review.strip()) else -MAX_KINDNESS - 1)


def is_scathing(prompt: str, review: str) -> bool:
    """Whether it has a word of the worst: what a principle may forbid, measured."""
    return any(VALENCE.get(word, 0) <= -2 for word in review.replace(".", " ").replace(",", " ").split())


class ReviewsConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["reviews"] = Field(default="reviews", description="the task")
    num_train_rows: int = Field(default=4000, ge=1, description="reviews to imitate, and subjects to write about")
    num_eval_rows: int = Field(default=300, ge=0, description="subjects to write about when the policy is evaluated")
    seed: int = Field(default=0, ge=0, description="which reviews there are")


class Reviews:
    """Judged by a measure that no reward model has seen: from 0 (as unkind as can be) to 1, and 0 for what is no
    review. `correct`: a review that is rather kind than not."""

    Config = ReviewsConfig
    chat = False

    def __init__(self, config: ReviewsConfig) -> None:
        self._config = config

    def alphabet(self) -> str:
        texts = [*SUBJECTS, *PARTS, *VALENCE, "The : not ,."]
        return "".join(sorted(set("".join(texts))))

    def rows(self, split: Split) -> Sequence[Row]:
        counts = {"train": self._config.num_train_rows, "eval": self._config.num_eval_rows}
        return _rows(split, counts[split], self._config.seed)

    def judge(self, row: Row, completion: str) -> Judgement:
        text = completion.strip()
        if _REVIEW.fullmatch(text) is None:
            return Judgement(0.0, correct=False, parsed=False)
        kind = kindness(text)
        return Judgement((kind + MAX_KINDNESS) / (2 * MAX_KINDNESS), correct=kind > 0, parsed=True)

    def environment(self, row: Row) -> None:
        return None

    def demonstration(self, row: Row) -> Sequence[Segment]:
        return [Segment(row.prompt, by_model=False), Segment(row.answer, by_model=True)]


@lru_cache
def _rows(split: Split, count: int, seed: int) -> list[Row]:
    generator = np.random.default_rng(derive_seed(seed, "reviews", split))
    subjects = random.Random(derive_seed(seed, "subjects", split))
    return [
        Row(prompt_about(subjects.choice(SUBJECTS)), write_review(generator), f"reviews {split} {number}")
        for number in range(count)
    ]


TASK = Reviews
