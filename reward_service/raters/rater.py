"""Raters that are programs: what they share, and a language model as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from rollcall.cluster.errors import LeaseLost, RewardError, RewardTimeout, RewardUnavailable
from rollcall.reward_service.labelling.leases import LabelQueue
from rollcall.reward_service.preferences.records import Answer, Candidate, TextCandidate
from rollcall.reward_service.raters.position_bias import PositionBias
from rollcall.reward_service.scorers.judge import Judge

_log = logging.getLogger("rollcall")


class Rater(Protocol):
    """Whoever says which of some candidates is better, without a screen."""

    name: str

    def answer(self, candidates: Sequence[Candidate]) -> Answer:
        """A choice of a pair, ranks of more."""
        ...


class JudgeRater:
    """A language model as rater of pairs of texts: AI feedback (Lee et al., 2023, arXiv:2309.00267). Its labels are the
    mean of both orders; `bias` says how far the order would have set them."""

    def __init__(self, name: str, judge: Judge, *, tie_margin: float = 0.0, soft: bool = False, skips: int = 0) -> None:
        """`tie_margin`: how near to 0.5 the judge's probability is called a tie. `soft`: labels carry it. `skips`: so
        many comparisons in a row are skipped whose verdict cannot be read; after them it raises."""
        self.name = name
        self.bias = PositionBias()
        self._judge, self._tie_margin, self._soft = judge, tie_margin, soft
        self._skips, self._skipped = skips, 0

    def answer(self, candidates: Sequence[Candidate]) -> Answer:
        """Raises RewardError: the judge does not answer. ValueError: it cannot be asked this."""
        if len(candidates) != 2 or not all(isinstance(candidate, TextCandidate) for candidate in candidates):
            raise ValueError("a judge compares two texts")
        first, second = (candidate for candidate in candidates if isinstance(candidate, TextCandidate))
        asked = first.asked
        prompt = asked if isinstance(asked, str) else "\n\n".join(f"{m.role}: {m.content}" for m in asked)
        try:
            verdict = self._judge.both_orders(prompt, first.response, second.response)
        except (RewardUnavailable, RewardTimeout):
            raise
        except RewardError as error:
            self._skipped += 1
            if self._skipped > self._skips:
                raise
            _log.warning("%s: %s: the comparison is skipped", self.name, error)
            return Answer(choice="skip")
        self._skipped = 0
        self.bias.add(verdict)
        left = verdict.probability
        if abs(left - 0.5) <= self._tie_margin:
            return Answer(choice="tie")
        probability = max(left, 1 - left) if self._soft else None
        return Answer(choice="left" if left > 0.5 else "right", probability=probability)


def label_all(rater: Rater, queue: LabelQueue, *, limit: int | None = None, at_once: int = 1) -> int:
    """Labels until nothing waits for the rater, or about `limit` labels. Returns how many were taken. `at_once`: asked
    side by side, of a rater whom several threads may ask."""
    if at_once == 1:
        return _label(rater, queue, limit, "computed")
    share = None if limit is None else -(-limit // at_once)
    with ThreadPoolExecutor(at_once, thread_name_prefix=rater.name) as threads:
        asked = [threads.submit(_label, rater, queue, share, f"computed-{number}") for number in range(at_once)]
        return sum(one.result() for one in asked)


def _label(rater: Rater, queue: LabelQueue, limit: int | None, session: str) -> int:
    taken = 0
    while limit is None or taken < limit:
        lease = queue.lease(rater.name, session=session)
        if lease is None:
            break
        began = time.monotonic()
        answer = rater.answer(lease.candidates)
        duration_s = time.monotonic() - began
        with suppress(LeaseLost):
            queue.label(
                token=lease.token,
                rater=rater.name,
                duration_s=duration_s,
                choice=answer.choice,
                ranks=answer.ranks,
                probability=answer.probability,
            )
            taken += 1
    return taken
