"""A private Ray cluster that was lost is started anew within the same command, for as long as its restart budget
lasts: the run goes on from its newest checkpoint, as a resume would."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.errors import BudgetSpent, ClusterLost
from rollcall.cluster.loop.supervision import RAY_LOST, RestartBudget, SupervisionConfig

SLICE_S = 0.2

Result = TypeVar("Result")


class RayAgain:
    """Of one run."""

    def __init__(
        self,
        limits: SupervisionConfig,
        directory: Path,
        tell: Callable[[str, str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self._budget = RestartBudget("Ray", max_restarts=limits.max_restarts, window_s=limits.restart_window_s)
        self._directory = directory
        self._tell = tell
        self._stop_requested = stop_requested

    @property
    def restarts(self) -> int:
        return self._budget.total

    def after(self, lost: ClusterLost) -> None:
        """Returns when another one may be started.

        Raises:
          ClusterLost: it was lost too often, or the run is to stop; with how to go on.
        """
        remedy = f"go on with: rollcall resume {self._directory}"
        if not list_checkpoints(self._directory):
            remedy = "there is no checkpoint yet: begin the run again"
        try:
            until = time.monotonic() + self._budget.next_delay_s(str(lost))
        except BudgetSpent as spent:
            raise ClusterLost(f"{spent}; {remedy}") from lost
        self._tell(RAY_LOST, f"{lost}; it is started again, and the run goes on from its newest checkpoint")
        while time.monotonic() < until and not self._stop_requested():
            time.sleep(SLICE_S)
        if self._stop_requested():
            raise ClusterLost(f"{lost}, and a stop was requested; {remedy}") from lost

    def tried(self, connect: Callable[[], Result]) -> Result:
        """What `connect` gives, once a cluster lives for as long as that takes."""
        while True:
            try:
                return connect()
            except ClusterLost as lost:
                self.after(lost)
