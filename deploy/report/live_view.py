"""What a run shows on a terminal: a line for each phase of its start, then a bar, facts and a few completions that stay
in place, with events scrolling above. Nothing of a fact is ever cut off: facts wrap as a whole."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rollcall.deploy.report.event_lines import EventLines
from rollcall.deploy.report.phase_line import PHASE, PhaseLine
from rollcall.deploy.report.plain_lines import PlainLines, sample_row
from rollcall.deploy.report.progress import duration
from rollcall.deploy.report.recorders import Record
from rollcall.deploy.report.tally import CHECKPOINT, Tally

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live
    from rich.table import Table

_QUIET = ("note", "restored", "start", "plan", "segment", "labels")  # nothing to worry about
_MAX_SAMPLES = 4
_SHORTEST_BAR, _LONGEST_BAR = 12, 60  # columns; a bar that has fewer is left out
_GAP = "   "


class LiveView:
    """For a terminal. Drawn twice a second from its own thread; a step only hands over its record."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = Tally()
        self._counting = threading.Lock()  # of the tally: never held while anything is printed
        self._lines = EventLines()
        self._phase = PhaseLine(console.file)
        self._live: Live | None = None
        self._closed = False
        self._asked = ""  # of whoever runs it: to stop

    def on_start(self, info: Record) -> None:
        from rich.live import Live

        self._phase.end()
        self._tally.on_start(info)
        self._live = Live(
            get_renderable=self._render, console=self._console, refresh_per_second=2, redirect_stdout=True
        )
        self._live.start()

    def on_step(self, record: Record) -> None:
        with self._counting:
            self._tally.on_step(record)

    def on_eval(self, record: Record) -> None:
        with self._counting:
            self._tally.on_eval(record)

    def on_event(self, kind: str, text: str) -> None:
        if kind == PHASE:
            self._on_phase(text)
            return
        with self._counting:
            self._tally.on_event(kind, text)
        if kind == CHECKPOINT:
            return  # a fact of the view
        if kind == "start" and self._phase.is_on:
            self._phase.tell(text)
            return
        line = self._lines.line(kind, text)
        if line is not None:
            style = "dim" if kind in _QUIET else "yellow"
            with self._phase.aside():
                self._console.print(line, style=style, markup=False, highlight=False)

    def show(self, text: str) -> bool:
        """Keeps a line in the view; whether there is one. From wherever a signal has met us: waits for nothing."""
        self._asked = text
        return self._live is not None

    def close(self, summary: Record) -> None:
        self._phase.end()
        self._closed = True  # what the run may be told while it goes is said no more
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _on_phase(self, what: str) -> None:
        if not what:
            self._phase.end()
        elif self._live is None:  # a start; a cluster that is begun again says so in events
            self._phase.begin(what)

    def _render(self) -> RenderableType:
        from rich.console import Group

        with self._counting:
            return Group(*self._parts(self._console.size.width, self._console.size.height))

    def _parts(self, width: int, height: int) -> list[RenderableType]:
        tally = self._tally
        parts: list[RenderableType] = [_Top.of(tally)]
        groups = (tally.learning(), tally.working(), [*tally.standing(), *tally.checkpoint()])
        facts = [line for group in groups for line in _placed(group, width)]
        facts += _placed([("", self._asked)], width) if self._asked else []
        parts += facts
        name = tally.start.get("name")
        hints = _placed(_hints(str(name)), width, style="dim") if name and not self._closed else []
        room = height - len(facts) - 5  # the bar, the samples' head, and some events
        samples = tally.samples[: max(0, min(_MAX_SAMPLES, room))]
        parts += [_sample_table(samples)] if samples else []
        return parts + (hints if room - len(samples) >= len(hints) else [])


def online_console(stream: TextIO, *, live: bool, began: float | None = None) -> PlainLines | LiveView:
    """What a run with actors shows: on a terminal the live view. `began`: the command did, by the monotonic clock."""
    if live:
        from rich.console import Console

        return LiveView(Console())
    return PlainLines(stream, began=began)


def _hints(name: str) -> list[tuple[str, str]]:
    return [("Ctrl-C", "stops with a checkpoint"), ("curves so far", f"rollcall report {name}")]


@dataclass(frozen=True)
class _Top:
    """How far, a bar, how long; the bar goes where there is no room for it."""

    left: str
    right: str
    done: int
    total: int | None

    @classmethod
    def of(cls, tally: Tally) -> _Top:
        done, total, _ = tally.done
        right = f"{duration(tally.elapsed_s)} elapsed"
        if total is not None and done < total and tally.eta_s is not None:
            right += f", ETA {duration(tally.eta_s)}"
        return cls(tally.progress, right, done, total)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        left, right, total = self.left, self.right, self.total
        room = options.max_width - len(left) - len(right) - 2
        if room < _SHORTEST_BAR:
            yield from _placed([("", left), ("", right)], options.max_width)
            return
        top = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(3):
            top.add_column(no_wrap=True)
        bar = ProgressBar(total=total, completed=self.done, pulse=total is None, width=min(room, _LONGEST_BAR))
        top.add_row(left, bar, right)
        yield top


def _placed(facts: Sequence[tuple[str, str]], width: int, *, style: str = "") -> list[RenderableType]:
    """(name, value) pairs on as few lines as hold them whole; what is longer than a line has lines of its own."""
    from rich.text import Text

    lines: list[Text] = []
    for name, value in facts:
        fact = Text(style=style)
        if name:
            fact.append(f"{name} ", style="dim")
        fact.append(value, style="" if style else "bold")
        if lines and lines[-1].cell_len + len(_GAP) + fact.cell_len <= width:
            lines[-1].append(_GAP).append_text(fact)
        else:
            lines.append(fact)
    return list(lines)


def _sample_table(samples: Sequence[Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    for name, ratio in (("prompt", 1), ("completion", 2)):
        table.add_column(name, ratio=ratio, no_wrap=True, overflow="ellipsis")
    table.add_column("reward", justify="right", no_wrap=True)
    for sample in samples:
        table.add_row(*(Text(text) for text in sample_row(sample)))  # Text: "[red]" in a completion is no style
    return table
