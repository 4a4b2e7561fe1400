"""What a run shows while it goes: a live view on a terminal, plain lines anywhere else. Only ever told what happened;
writes nothing to the run directory."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, TextIO

from rollcall.deploy.recorders import Record, plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

# Events that end an attempt at a rollout, as the coordinator names them.
DROPS = (
    *("actor_died", "object_lost", "deadline", "stale", "stale_epoch"),
    *("non_finite", "env_failed", "weights_timeout", "checksum_mismatch"),
)
_QUIET = ("checkpoint", "note", "restored")
_WINDOW_S = 10.0  # rates are over the last ten seconds: long enough to be steady, short enough to show a change


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


class Tally:
    """The latest state of a run and its rates, from the records alone."""

    def __init__(self) -> None:
        self.start: Record = {}
        self.last: Record = {}
        self.evaluation: Record = {}
        self.events: Counter[str] = Counter()
        self._times: deque[tuple[float, int, int]] = deque()  # (clock, env steps, learner step)
        self._waits: deque[tuple[float, float]] = deque()  # (seconds waited, seconds in all), per step of the window

    def on_start(self, info: Record) -> None:
        self.start = info
        self._times.append((time.monotonic(), int(info.get("start_env_steps") or 0), int(info.get("start_step") or 0)))

    def on_step(self, record: Record) -> None:
        now = time.monotonic()
        self.last = record
        self._times.append((now, int(record.get("env_steps") or 0), int(record["step"]) + 1))
        waited = float(record.get("wait_batch_s") or 0.0)
        busy = float(record.get("update_s") or 0.0) + float(record.get("publish_s") or 0.0)
        self._waits.append((waited, waited + busy))
        while len(self._times) > 2 and self._times[1][0] < now - _WINDOW_S:
            self._times.popleft()
        while len(self._waits) > max(2, len(self._times)):
            self._waits.popleft()

    @property
    def env_steps_per_s(self) -> float | None:
        if len(self._times) < 2 or self._times[-1][0] <= self._times[0][0]:
            return None
        return (self._times[-1][1] - self._times[0][1]) / (self._times[-1][0] - self._times[0][0])

    @property
    def wait_share(self) -> float | None:
        total = sum(whole for _, whole in self._waits)
        return sum(waited for waited, _ in self._waits) / total if total > 0 else None

    @property
    def done(self) -> tuple[int, int | None, str]:
        """(done, of how many, of what): learner steps where their number is known, else env steps."""
        total_steps = self.start.get("total_learner_steps")
        if total_steps:
            done = int(self.last["step"]) + 1 if self.last else int(self.start.get("start_step") or 0)
            return done, int(total_steps), "step"
        total = self.start.get("total_env_steps")
        return int(self.last.get("env_steps") or 0), int(total) if total else None, "env step"

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
        rate, bound, share = self.env_steps_per_s, plain(self.last.get("bound_fraction")), self.wait_share
        speed = f"{number(rate)}/s" if rate else None
        if speed and bound:
            speed += f" ({bound:.0%} of bound)"
        facts = [
            ("env steps", number(int(self.last["env_steps"])) if self.last.get("env_steps") else None),
            ("speed", speed),
            ("lag", number(self.last.get("lag_max")) if self.last.get("lag_max") is not None else None),
            (
                "return",
                number(self.last.get("return_mean")) if plain(self.last.get("return_mean")) is not None else None,
            ),
            ("eval", eval_text(self.evaluation) if self.evaluation else None),
            ("waiting", f"{share:.0%}" if share is not None else None),
        ]
        drops = sum(self.events[kind] for kind in DROPS)
        facts += [("drops", str(drops) if drops else None)]
        facts += [("restarts", number(self.last["restarts"]) if self.last.get("restarts") else None)]
        return [(name, value) for name, value in facts if value is not None]


def eval_text(record: Record) -> str:
    return f"{number(record.get('mean'))} ± {number(record.get('std'))} over {number(record.get('n'))}"


class PlainLines:
    """One line every few seconds, and one for each evaluation and event: for logs, pipes and CI."""

    def __init__(self, stream: TextIO, *, every_s: float = 5.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._printed = 0.0
        self._shown_step = -1
        self._tally = Tally()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def on_start(self, info: Record) -> None:
        self._tally.on_start(info)
        if info.get("start_step"):
            self._print(f"resuming after step {number(info['start_step'])}")

    def on_step(self, record: Record) -> None:
        self._tally.on_step(record)
        if time.monotonic() - self._printed >= self._every_s:
            self._printed = time.monotonic()
            self._line()

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
        self._print(f"eval at step {number(record.get('step'))}: {eval_text(record)} episodes")

    def on_event(self, kind: str, text: str) -> None:
        self._tally.events[kind] += 1
        self._print(f"{kind}: {text}")

    def close(self, summary: Record) -> None:
        if self._tally.last and self._tally.last["step"] != self._shown_step:
            self._line()


class LiveView:
    """A bar and a line of facts that stay in place, events scrolling above them: for a terminal.

    Drawn twice a second from its own thread; a step only hands over its record.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = Tally()
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
        style = "dim" if kind in _QUIET else "yellow"
        self._console.print(f"{kind}: {text}", style=style, markup=False, highlight=False)

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
        return Group(top, facts)
