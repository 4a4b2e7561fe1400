"""What is shown while prompts are answered: a line every few seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TextIO

from rollcall.deploy.kinds.selection.data_sets import Tally
from rollcall.deploy.report.progress import duration, number

EVERY_S = 5.0


@dataclass
class AnswerLines:
    """Of `total` prompts."""

    stream: TextIO
    total: int
    prefix: str = ""

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._began = self._told = time.monotonic()

    def tell(self) -> None:
        """Once the tally has one more."""
        now, tally = time.monotonic(), self.tally
        if now - self._told < EVERY_S and tally.prompts < self.total:
            return
        self._told, took = now, max(1e-9, now - self._began)
        left = took / tally.prompts * (self.total - tally.prompts)
        text = f"prompts {tally.prompts}/{self.total}  mean score {number(tally.score / tally.completions, 3)}  "
        text += f"kept {number(tally.kept)}  {number(tally.tokens / took)} tokens/s  ETA {duration(left)}"
        print(f"{self.prefix}{text}", file=self.stream, flush=True)
