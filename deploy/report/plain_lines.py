"""What a run shows while it goes where nothing can be redrawn: logs, pipes, notebooks and CI."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rollcall.deploy.report.event_lines import EventLines
from rollcall.deploy.report.phase_line import PHASE, phase_text
from rollcall.deploy.report.progress import duration, eval_noun, eval_text, number, one_line
from rollcall.deploy.report.recorders import Record
from rollcall.deploy.report.tally import Tally

_SAMPLE_EVERY_S = 30.0


class PlainLines:
    """One line every few seconds, one for each evaluation and event, and now and then one with what a language model
    wrote: for logs, pipes and CI."""

    def __init__(self, stream: TextIO, *, every_s: float = 5.0, began: float | None = None) -> None:
        """`began`: the command did, by the monotonic clock; none: now."""
        self._stream = stream
        self._every_s = every_s
        self._began = time.monotonic() if began is None else began
        self._started = False
        self._printed = self._sample_printed = -math.inf
        self._shown_step = -1
        self._tally = Tally()
        self._lines = EventLines()

    def _print(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"  # a log in ASCII must not end the run
        print(text.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)

    def on_start(self, info: Record) -> None:
        self._tally.on_start(info)
        self._started = True
        if info.get("start_step"):
            self._print(f"resuming after step {number(info['start_step'])}")

    def on_step(self, record: Record) -> None:
        self._tally.on_step(record)
        if time.monotonic() - self._printed >= self._every_s:
            self._printed = time.monotonic()
            self._line()
        if self._tally.samples and time.monotonic() - self._sample_printed >= _SAMPLE_EVERY_S:
            self._sample_printed = time.monotonic()
            prompt, text, reward = sample_row(self._tally.samples[0])
            self._print(f"sample: {_cut(prompt, 60)} -> {_cut(text, 100)} (reward {reward})")

    def _line(self) -> None:
        self._shown_step = int(self._tally.last["step"])
        parts = [self._tally.progress]
        told = self._tally.evaluated  # which has a line of its own
        parts += [f"{name} {value}".strip() for name, value in self._tally.facts() if name != told]
        if self._tally.eta_s is not None:
            parts.append(f"ETA {duration(self._tally.eta_s)}")
        self._print("  ".join(parts))

    def on_eval(self, record: Record) -> None:
        self._tally.on_eval(record)
        self._print(f"eval at step {number(record.get('step'))}: {eval_text(record)} {eval_noun(record)}")

    def on_event(self, kind: str, text: str) -> None:
        if kind == PHASE:
            if text and not self._started:  # a cluster that is begun again says so in events
                self._print(phase_text(text, self._began))
            return
        self._tally.on_event(kind, text)
        line = self._lines.line(kind, text)
        if line is not None:
            self._print(line)

    def close(self, summary: Record) -> None:
        if self._tally.last and self._tally.last["step"] != self._shown_step:
            self._line()


def sample_row(sample: Any) -> tuple[str, str, str]:
    """(prompt, completion, reward) as text of one line each."""
    if not isinstance(sample, Mapping):
        return "", one_line(sample), "-"
    return one_line(sample.get("prompt", "")), one_line(sample.get("text", "")), number(sample.get("reward"), 2)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
