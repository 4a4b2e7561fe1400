"""Raters that are programs: what they share, and a language model as one. Must never know where the comparisons are
kept: a queue is whatever leases and takes labels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rollcall.reward_service.labelling.queue import LabelQueue
from rollcall.reward_service.preferences.records import Candidate, TextCandidate
from rollcall.reward_service.scorers.judge import Judge


class Rater(Protocol):
    """Whoever says which of some candidates is better, without a screen."""

    name: str

    def answer(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """`choice` of a pair (left, right, tie), `ranks` of more; the other one None."""
        ...


class JudgeRater:
    """A language model as rater of pairs of texts: AI feedback (Lee et al., 2023, arXiv:2309.00267)."""

    def __init__(self, name: str, judge: Judge, *, tie_margin: float = 0.0) -> None:
        """`tie_margin`: how near to 0.5 the judge's probability is called a tie."""
        self.name = name
        self._judge, self._tie_margin = judge, tie_margin

    def answer(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """Raises RewardError: the judge does not answer. ValueError: it cannot be asked this."""
        if len(candidates) != 2 or not all(isinstance(candidate, TextCandidate) for candidate in candidates):
            raise ValueError("a judge compares two texts")
        first, second = (candidate for candidate in candidates if isinstance(candidate, TextCandidate))
        asked = first.asked
        prompt = asked if isinstance(asked, str) else "\n\n".join(f"{m.role}: {m.content}" for m in asked)
        probability = self._judge.preference(prompt, first.response, second.response)
        if abs(probability - 0.5) <= self._tie_margin:
            return {"choice": "tie", "ranks": None}
        return {"choice": "left" if probability > 0.5 else "right", "ranks": None}


def label_all(rater: Rater, queue: LabelQueue, *, limit: int | None = None) -> int:
    """Labels until nothing waits for the rater, or `limit` labels. Returns how many were taken."""
    taken = 0
    while limit is None or taken < limit:
        shown = queue.next(rater.name, session="computed")
        if shown is None:
            break
        began = time.monotonic()
        answer = rater.answer(shown.candidates)
        taken += queue.label(token=shown.token, rater=rater.name, duration_s=time.monotonic() - began, **answer)
    return taken
