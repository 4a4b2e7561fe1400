"""Whether right answers can be read by whoever is to score, before a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from rollcall.actors.tasks.text_task import Row
from rollcall.actors.trajectory_scoring import answer_metadata
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.reward_service.scorers.building import answer_checks

CHECKING_S = 60.0  # at most, of right answers before a run


_log = logging.getLogger("rollcall")


def check_answers(config: RewardConfig | None, rows: Sequence[Row]) -> None:
    """A right answer that the scorer cannot read would never be scored, whatever the response. Formulas take long to
    read, so that those of a very large file are not all looked at.

    Raises:
      BadInput: naming the first row that has such an answer.
    """
    checks = [] if config is None or config.scorer is None else answer_checks(config.scorer)
    until = time.monotonic() + CHECKING_S
    for index, row in enumerate(rows if checks else ()):
        problem = next(filter(None, (check(answer_metadata(row)) for check in checks)), None)
        if problem is not None:
            raise BadInput(f"{row.source}: {problem}: fix the line, or choose another scorer")
        if time.monotonic() > until:
            _log.warning(
                "the right answers of %d of %d rows can be read; the others are not checked", index + 1, len(rows)
            )
            return
