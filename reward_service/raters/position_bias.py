"""How far a judge's verdicts depend on what is shown first. Known because both orders are asked; the mean of both is
free of it."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from rollcall.reward_service.scorers.judge import BothOrders


@dataclass
class PositionBias:
    """A tally over comparisons. Threads may share one."""

    n: int = 0
    turned: int = 0  # comparisons whose verdict turns round with the order
    _sum: float = 0.0
    _squares: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, verdict: BothOrders) -> None:
        with self._lock:
            self.n += 1
            self.turned += verdict.turned
            self._sum += verdict.bias
            self._squares += verdict.bias**2

    @property
    def mean(self) -> float:
        """By how much a response is likelier to be preferred where it is shown first: 0 without bias, in [-1, 1]."""
        return self._sum / self.n if self.n else 0.0

    @property
    def error(self) -> float:
        """Its standard error; infinite of fewer than two comparisons."""
        if self.n < 2:
            return math.inf
        return math.sqrt(max(0.0, self._squares / self.n - self.mean**2) / (self.n - 1))

    def line(self) -> str:
        """For people."""
        if not self.n:
            return "position bias: nothing was compared"
        error = f" ± {1.96 * self.error:.3f}" if self.n > 1 else ""
        return (
            f"position bias: {self.mean:+.3f}{error} (0: none; + likes what is shown first), {self.turned / self.n:.1%}"
            f" of {self.n} verdicts turn with the order; taken out: each label is the mean of both orders"
        )
