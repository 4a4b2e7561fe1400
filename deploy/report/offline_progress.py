"""What a run on a data set shows while it goes, in plain lines."""

from __future__ import annotations

import time
from typing import TextIO

from rollcall.deploy.report.counted import PAIRS_RIGHT
from rollcall.deploy.report.progress import duration, eval_noun, eval_text, number, percent
from rollcall.deploy.report.recorders import Record


class ProgressLines:
    """A line every few seconds, and one for each evaluation."""

    def __init__(
        self, stream: TextIO, *, every_s: float = 5.0, prefix: str = "", live: bool = False, began: float | None = None
    ) -> None:
        """`prefix`: of each line. `live`, `began`: of no meaning here."""
        self._stream = stream
        self._every_s = every_s
        self._prefix = prefix
        self._total = self._start = 0
        self._began = self._printed = time.monotonic()

    def on_start(self, info: Record) -> None:
        self._total, self._start = int(info["total_learner_steps"]), int(info["start_step"])
        self._began = self._printed = time.monotonic()
        if self._start:
            self._print(f"resuming after step {self._start}")

    def on_step(self, record: Record) -> None:
        now, done = time.monotonic(), int(record["step"]) + 1
        if now - self._printed < self._every_s and done < self._total:
            return
        self._printed = now
        left = (now - self._began) / max(1, done - self._start) * (self._total - done)
        self._print(f"{self._prefix}step {done}/{self._total}  {self._learnt(record)}  ETA {duration(left)}")

    def _learnt(self, record: Record) -> str:
        if (likelihood := record.get("negative_log_likelihood")) is not None:
            return f"negative log-likelihood {number(likelihood, 3)}"
        right = record.get("accuracy", record.get("implicit_accuracy"))
        loss = f"loss {number(record.get('loss'), 3)}"
        return loss if right is None else f"{loss}  right {percent(right)}"

    def on_eval(self, record: Record) -> None:
        if record.get("unit") != PAIRS_RIGHT:
            loss = f", held-out loss {number(record['eval_loss'], 3)}" if record.get("eval_loss") is not None else ""
            self._print(f"eval at step {record['step']}: {eval_text(record)} {eval_noun(record)}{loss}")
            return
        interval = f" [{percent(record.get('low'))}, {percent(record.get('high'))}]"
        self._print(
            f"eval at step {record['step']}: {percent(record['mean'])}{interval} of {number(record['n'])} held-out "
            f"pairs right, loss {number(record.get('eval_loss'), 3)}"
        )

    def on_event(self, kind: str, text: str) -> None:
        if kind != "checkpoint":
            self._print(f"{kind}: {text}")

    def close(self, summary: Record) -> None: ...

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
