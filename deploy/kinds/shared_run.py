"""What a run without actors is that several learner processes may share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rollcall.learners.collective import Collective


@runtime_checkable
class SharedRun(Protocol):
    """An OfflineRun that each of its learner processes builds anew from the run's directory; all of them take the same
    batches, and each computes its share of the gradient."""

    @property
    def num_processes(self) -> int: ...

    def share(self, collective: Collective) -> None:
        """This process's place among them; before its learner is asked for."""
