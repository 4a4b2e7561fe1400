"""What a run shows while it goes: a live view on a terminal, plain lines anywhere else. Only ever told what happened;
writes nothing to the run directory."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rollcall.deploy.report.counted import BROKEN, ENV_STEPS, Counted, counted_in
from rollcall.deploy.report.event_lines import DROPS, EventLines
from rollcall.deploy.report.recorders import Record, plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

_QUIET = ("checkpoint", "note", "restored", "start")
_WINDOW_S = 10.0  # rates are over the last ten seconds: long enough to be steady, short enough to show a change
_SAMPLE_EVERY_S = 30.0
_MAX_SAMPLES = 4
_LONGEST_LINE = 400  # characters of one text looked at: wider than any terminal


def number(value: Any, digits: int = 1) -> str:
    """3412.7 -> "3,413", 0.031 -> "0.031", None or NaN -> "-"."""
    value = plain(value)
    if not isinstance(value, (int, float)):
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(value: Any) -> str:
    """0.972 -> "97.2 %", None or NaN -> "-"."""
    value = plain(value)
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "-"


def one_line(text: Any) -> str:
    """A completion may hold any characters: those that would move the cursor or break the line become spaces."""
    start = str(text)[:_LONGEST_LINE]
    return " ".join("".join(c if c.isprintable() else " " for c in start).split())


class Tally:
    """The latest state of a run and its rates, from the records alone."""

    def __init__(self) -> None:
        self.start: Record = {}
        self.last: Record = {}
        self.evaluation: Record = {}
        self.events: Counter[str] = Counter()
        self.samples: Sequence[Any] = ()  # of the newest step that showed some
        self._times: deque[tuple[float, int, int]] = deque()  # (clock, env steps or tokens, learner step)
        self._waits: deque[tuple[float, float]] = deque()  # (seconds waited, seconds in all), per step of the window

    def on_start(self, info: Record) -> None:
        self.start = info
        start_step, experience = int(info.get("start_step") or 0), info.get(f"start_{self._experience}")
        if not start_step or experience is not None:  # a resumed run counts from its first step else, not from zero
            self._times.append((time.monotonic(), int(experience or 0), start_step))

    def on_step(self, record: Record) -> None:
        now = time.monotonic()
        if self._times and int(record["step"]) + 1 <= self._times[-1][2]:  # after a restore: no rate leads across it
            self._times.clear()
            self._waits.clear()
        self.last = record
        self.samples = record.get("samples") or self.samples
        self._times.append((now, int(record.get(self._experience) or 0), int(record["step"]) + 1))
        waited = float(record.get("wait_batch_s") or 0.0)
        busy = float(record.get("update_s") or 0.0) + float(record.get("publish_s") or 0.0)
        self._waits.append((waited, waited + busy))
        while len(self._times) > 2 and self._times[1][0] < now - _WINDOW_S:
            self._times.popleft()
        while len(self._waits) > max(2, len(self._times)):
            self._waits.popleft()

    @property
    def _counts(self) -> Counted:
        return counted_in([{str(self.start.get("counts")): 0}])

    @property
    def _experience(self) -> str:
        """The key that counts what is learned from."""
        return self._counts.key

    @property
    def experience_per_s(self) -> float | None:
        """Env steps or tokens."""
        if len(self._times) < 2 or self._times[-1][0] <= self._times[0][0]:
            return None
        return (self._times[-1][1] - self._times[0][1]) / (self._times[-1][0] - self._times[0][0])

    @property
    def wait_share(self) -> float | None:
        total = sum(whole for _, whole in self._waits)
        return sum(waited for waited, _ in self._waits) / total if total > 0 else None

    @property
    def done(self) -> tuple[int, int | None, str]:
        """(done, of how many, of what): learner steps where their number is known, else env steps or tokens."""
        total_steps = self.start.get("total_learner_steps")
        if total_steps:
            done = int(self.last["step"]) + 1 if self.last else int(self.start.get("start_step") or 0)
            return done, int(total_steps), "step"
        total, done = self.start.get(f"total_{self._experience}"), int(self.last.get(self._experience) or 0)
        return done, int(total) if total else None, self._counts.unit

    @property
    def eta_s(self) -> float | None:
        done, total, what = self.done
        column = 2 if what == "step" else 1
        if total is None or len(self._times) < 2:
            return None
        moved = self._times[-1][column] - self._times[0][column]
        elapsed = self._times[-1][0] - self._times[0][0]
        return (total - done) * elapsed / moved if moved > 0 else None

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs worth a glance; those without a value yet are left out."""
        last, rate, share = self.last, self.experience_per_s, self.wait_share
        unit, bound = "" if self._counts is ENV_STEPS else f" {self._counts.units}", plain(last.get("bound_fraction"))
        speed = f"{number(rate)}{unit}/s" if rate else None
        if speed and bound:
            speed += f" ({bound:.0%} of bound)"
        experience = last.get(self._experience)
        facts = [
            (self._experience.replace("_", " "), number(int(experience)) if experience else None),
            ("speed", speed),
            ("lag", number(last.get("lag_max"))),
            *([("return", number(last.get("return_mean")))] if self._counts is ENV_STEPS else self._of_completions()),
            ("eval", eval_text(self.evaluation) if self.evaluation else None),
            ("waiting", f"{share:.0%}" if share is not None else None),
            ("drops", number(self._drops) if self._drops else None),
            ("restarts", number(last["restarts"]) if last.get("restarts") else None),
        ]
        return [(name, value) for name, value in facts if value is not None and value != "-"]

    def _of_completions(self) -> list[tuple[str, str]]:
        last = self.last
        return [
            ("reward", number(last.get("reward_mean"))),
            ("exact match", percent(last.get("exact_match"))),
            ("length", number(last.get("length_mean"))),
        ]

    @property
    def _drops(self) -> int:
        """Degenerate groups are counted in the records too, over the whole run: the larger number has seen more."""
        others = sum(self.events[kind] for kind in DROPS if kind != "degenerate")
        return others + max(self.events["degenerate"], int(self.last.get("degenerate_dropped") or 0))


def eval_text(record: Record) -> str:
    """A mean over episodes, or the share of problems solved."""
    if record.get("unit") in ("exact match", BROKEN):
        return f"{percent(record.get('mean'))} of {number(record.get('n'))}"
    left = f" ({number(record['unfinished'])} unfinished)" if record.get("unfinished") else ""
    return f"{number(record.get('mean'))} ± {number(record.get('std'))} over {number(record.get('n'))}{left}"


def eval_noun(record: Record) -> str:
    if record.get("unit") == BROKEN:
        return "answers break a principle"
    return "problems" if record.get("unit") == "exact match" else "episodes"


class PlainLines:
    """One line every few seconds, one for each evaluation and event, and now and then one with what a language model
    wrote: for logs, pipes and CI."""

    def __init__(self, stream: TextIO, *, every_s: float = 5.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._printed = self._sample_printed = -math.inf
        self._shown_step = -1
        self._tally = Tally()
        self._lines = EventLines()

    def _print(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"  # a log in ASCII must not end the run
        print(text.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)

    def on_start(self, info: Record) -> None:
        self._tally.on_start(info)
        if info.get("start_step"):
            self._print(f"resuming after step {number(info['start_step'])}")

    def on_step(self, record: Record) -> None:
        self._tally.on_step(record)
        if time.monotonic() - self._printed >= self._every_s:
            self._printed = time.monotonic()
            self._line()
        if self._tally.samples and time.monotonic() - self._sample_printed >= _SAMPLE_EVERY_S:
            self._sample_printed = time.monotonic()
            prompt, text, reward = _sample_row(self._tally.samples[0])
            self._print(f"sample: {_cut(prompt, 60)} -> {_cut(text, 100)} (reward {reward})")

    def _line(self) -> None:
        self._shown_step = int(self._tally.last["step"])
        done, total, what = self._tally.done
        parts = [f"{what} {number(done)}{f'/{number(total)}' if total else ''}"]
        parts += [f"{name} {value}" for name, value in self._tally.facts() if name not in (f"{what}s", "eval")]
        if self._tally.eta_s is not None:
            parts.append(f"ETA {duration(self._tally.eta_s)}")
        self._print("  ".join(parts))

    def on_eval(self, record: Record) -> None:
        self._tally.evaluation = record
        self._print(f"eval at step {number(record.get('step'))}: {eval_text(record)} {eval_noun(record)}")

    def on_event(self, kind: str, text: str) -> None:
        self._tally.events[kind] += 1
        line = self._lines.line(kind, text)
        if line is not None:
            self._print(line)

    def close(self, summary: Record) -> None:
        if self._tally.last and self._tally.last["step"] != self._shown_step:
            self._line()


class LiveView:
    """A bar, a line of facts and a few completions that stay in place, events scrolling above: for a terminal.

    Drawn twice a second from its own thread; a step only hands over its record.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = Tally()
        self._lines = EventLines()
        self._live: Live | None = None

    def on_start(self, info: Record) -> None:
        from rich.live import Live

        self._tally.on_start(info)
        self._live = Live(
            get_renderable=self._render, console=self._console, refresh_per_second=2, redirect_stdout=True
        )
        self._live.start()

    def on_step(self, record: Record) -> None:
        self._tally.on_step(record)

    def on_eval(self, record: Record) -> None:
        self._tally.evaluation = record

    def on_event(self, kind: str, text: str) -> None:
        self._tally.events[kind] += 1
        line = self._lines.line(kind, text)
        if line is not None:
            style = "dim" if kind in _QUIET else "yellow"
            self._console.print(line, style=style, markup=False, highlight=False)

    def close(self, summary: Record) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done, total, what = self._tally.done
        eta = self._tally.eta_s
        top = Table.grid(padding=(0, 1), expand=True)
        for ratio in (0, 1, 0):
            top.add_column(ratio=ratio or None, no_wrap=True)
        finished = total is not None and done >= total
        top.add_row(
            f"{what} {number(done)}{f'/{number(total)}' if total else ''}",
            ProgressBar(total=total, completed=done, pulse=total is None),
            "done" if finished else f"ETA {duration(eta)}" if eta is not None else "",
        )
        facts = Text()
        for name, value in self._tally.facts():
            if name != f"{what}s":
                facts.append(f"{name} ", style="dim").append(f"{value}   ", style="bold")
        return Group(top, facts, *([_sample_table(self._tally.samples)] if self._tally.samples else []))


def online_console(stream: TextIO, *, live: bool) -> PlainLines | LiveView:
    """What a run with actors shows: on a terminal the live view."""
    if live:
        from rich.console import Console

        return LiveView(Console())
    return PlainLines(stream)


def _sample_row(sample: Any) -> tuple[str, str, str]:
    """(prompt, completion, reward) as text of one line each."""
    if not isinstance(sample, Mapping):
        return "", one_line(sample), "-"
    return one_line(sample.get("prompt", "")), one_line(sample.get("text", "")), number(sample.get("reward"), 2)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _sample_table(samples: Sequence[Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    for name, ratio in (("prompt", 1), ("completion", 2)):
        table.add_column(name, ratio=ratio, no_wrap=True, overflow="ellipsis")
    table.add_column("reward", justify="right", no_wrap=True)
    for sample in samples[:_MAX_SAMPLES]:
        table.add_row(*(Text(text) for text in _sample_row(sample)))  # Text: "[red]" in a completion is no style
    return table
