"""What a run shows while it goes: the same facts in place on a terminal and line by line elsewhere, and never a
character that the terminal would obey."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rollcall.deploy.report.closing import next_line
from rollcall.deploy.report.live_view import LiveView
from rollcall.deploy.report.phase_line import PhaseLine, before_the_run
from rollcall.deploy.report.plain_lines import PlainLines
from rollcall.deploy.report.progress import beside, duration, eval_text, number, one_line, percent
from rollcall.deploy.report.tally import Tally

START: dict[str, Any] = {"start_step": 0, "epoch": 1, "total_learner_steps": 100, "total_env_steps": 204_800}
LANGUAGE: dict[str, Any] = {"counts": "tokens", "start_step": 0, "epoch": 1, "total_learner_steps": 100}
HOSTILE = "[red]4[/red]\x1b[2J\r\nA:\u202e 4"  # markup, a cleared screen, new lines, text turned round


def step_record(step: int, **more: Any) -> dict[str, Any]:
    record = {
        "step": step,
        "policy_version": step + 1,
        "wait_batch_s": 0.01,
        "update_s": 0.03,
        "publish_s": 0.001,
        "lag_max": 1,
        "lag_mean": 0.5,
        "return_mean": 20.0 + step,
        "env_steps": (step + 1) * 2048,
    }
    return record | more


def language_record(step: int, **more: Any) -> dict[str, Any]:
    shared = {key: value for key, value in step_record(step).items() if key not in ("return_mean", "env_steps")}
    record = {
        **shared,
        "reward_mean": 0.25,
        "exact_match": 0.613,
        "length_mean": 87.5,
        "tokens": (step + 1) * 4096,
        "degenerate_dropped": 3,
        "samples": [{"prompt": f"2+{step}=", "text": HOSTILE, "reward": 1.0}] * 6,
    }
    return record | more


def screen(view: LiveView, console: Console) -> str:
    with console.capture() as capture:
        console.print(view._render())
    return capture.get()


def test_plain_lines_say_how_far_how_fast_and_how_long_still(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    lines = PlainLines(stream, every_s=5.0)
    lines.on_start(START)
    for step in range(20):
        clock[0] += 1.0
        lines.on_step(step_record(step, bound_fraction=0.71))
    lines.on_eval({"step": 20, "mean": 88.25, "std": 3.0, "n": 20})
    lines.on_event("actor_died", "gym-1: SIGKILL")
    printed = stream.getvalue().splitlines()
    assert len(printed) == 4 + 2
    last = printed[3]
    for part in (
        "step 16/100",
        "2,048 steps/s (71% of bound)",
        "lag 1",
        "training return 35.0",
        "waits for actors 24% of the time",
        "ETA 1 min 24 s",
    ):
        assert part in last
    assert printed[-2:] == ["eval at step 20: 88.2 ± 3.0 over 20 episodes", "actor_died: gym-1: SIGKILL"]


def test_failures_that_are_alike_are_counted_and_not_repeated() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    for ticket in range(100):
        lines.on_event(
            "unscored", f"ticket {ticket} attempt 1: item {ticket}.0: no API key (mine.py, line 3)\nTraceback"
        )
    lines.on_event("unscored", "ticket 100 attempt 1: item 100.0: another reason")
    for step in (10, 20, 30):
        lines.on_event("checkpoint", f"step {step} (exact)")
    printed = stream.getvalue().splitlines()
    assert printed[0] == "unscored: ticket 0 attempt 1: item 0.0: no API key (mine.py, line 3)"
    assert printed[6].endswith("no API key (mine.py, line 3) (64 like this so far)")
    assert printed[7] == "unscored: ticket 100 attempt 1: item 100.0: another reason"
    assert printed[8:] == [f"checkpoint: step {step} (exact)" for step in (10, 20, 30)]
    assert lines._tally.facts() == [("drops", "101")]


def test_failures_that_all_differ_are_few_on_the_screen() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    for ticket in range(1000):
        word = "".join(chr(97 + int(digit)) for digit in str(ticket))
        lines.on_event("unscored", f"KeyError: {word}")
    assert len(stream.getvalue().splitlines()) < 40


def test_the_live_view_shows_the_same_facts_in_place() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    view = LiveView(console)
    view.on_start(START)
    view.on_step(step_record(49, bound_fraction=0.71, restarts=2))
    view.on_event("stale", "ticket [7]")
    with console.capture() as capture:
        console.print(view._render())
    view.close({})
    view.close({})
    text = capture.get()
    assert "50/100" in text
    for part in ("lag", "training return", "69.0", "drops", "restarts"):
        assert part in text


def test_rates_are_over_the_last_seconds_not_over_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    tally = Tally()
    tally.on_start(START)
    for step in range(60):
        clock[0] += 1.0 if step < 30 else 0.5
        tally.on_step(step_record(step))
    assert tally.experience_per_s == pytest.approx(4096)


def test_a_run_bounded_by_env_steps_alone_counts_those() -> None:
    tally = Tally()
    tally.on_start(START | {"total_learner_steps": None})
    tally.on_step(step_record(9))
    assert tally.done == (20_480, 204_800, "env step")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3412.7, "3,413"),
        (0.0312, "0.0312"),
        (12, "12"),
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0.0"),
        (-5.25, "-5.2"),
    ],
)
def test_numbers_are_short(value: Any, text: str) -> None:
    assert number(value) == text


def test_durations_are_in_words() -> None:
    assert [duration(s) for s in (3.4, 75, 3700)] == ["3 s", "1 min 15 s", "1 h 01 min"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_lines_of_a_language_run_say_how_well_it_writes(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines.on_start(LANGUAGE)
    for step in range(6):
        clock[0] += 1.0
        lines.on_step(language_record(step, bound_fraction=0.71, samples=[]))
    lines.on_event("actor_died", "lm-0: SIGKILL")
    lines.on_eval({"step": 6, "tokens": 24_576, "mean": 0.972, "std": 0.16, "n": 500, "unit": "exact match"})
    lines.on_step(language_record(6, restarts=1))
    lines.close({})
    printed = stream.getvalue().splitlines()
    for part in ("step 6/100", "tokens 24,576", "speed 4,096 tok/s (71% of bound)", "lag 1", "training reward 0.25"):
        assert part in printed[1]
    for part in (
        "exact match 61.3 %",
        "length 87.5 tok",
        "waits for actors 24% of the time",
        "drops 3",
        "ETA 1 min 34 s",
    ):
        assert part in printed[1]
    assert "return" not in printed[1]
    assert "env steps" not in printed[1]
    assert printed[3] == "eval at step 6: 97.2 % of 500 problems"
    assert "drops 4" in next(line for line in printed if "step 7/100" in line)  # the degenerate ones and the actor's


def test_a_completion_is_printed_twice_a_minute_on_a_line_of_its_own(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines.on_start(LANGUAGE)
    for step in range(61):
        lines.on_step(language_record(step))
        clock[0] += 1.0
    shown = [line for line in stream.getvalue().split("\n") if line.startswith("sample: ")]
    answer = "[red]4[/red] [2J A: 4"
    assert shown == [f"sample: 2+{step}= -> {answer} (reward 1.00)" for step in (0, 30, 60)]
    assert not {"\x1b", "\r", "\u202e"} & set(stream.getvalue())


def test_a_log_that_is_ascii_alone_does_not_end_the_run() -> None:
    raw = io.BytesIO()
    lines = PlainLines(io.TextIOWrapper(raw, encoding="ascii"))
    lines.on_start(LANGUAGE)
    lines.on_step(
        language_record(0, samples=[{"prompt": "\u00bfcu\u00e1nto?", "text": "\ud83d" * 500, "reward": None}])
    )
    assert b"sample: ?cu?nto? ->  (reward -)" in raw.getvalue()


def test_the_live_view_shows_the_newest_completions_each_cut_to_one_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    view = LiveView(console)
    view.on_start(LANGUAGE)
    view.on_step(language_record(7))
    long = [{"prompt": "an old question " * 50, "text": "x" * 5000, "reward": 0.125}] * 6
    view.on_step(language_record(8, samples=long))
    view.on_step(language_record(9, samples=None))  # a step that shows none leaves the last ones
    text = screen(view, console)
    view.close({})
    lines = [line for line in text.splitlines() if "an old question" in line]
    assert len(lines) == 4
    assert all("x\u2026" in line and line.rstrip().endswith("0.125") for line in lines)
    assert "2+7=" not in text
    for part in ("10/100", "reward", "0.25", "exact match", "61.3 %", "length", "87.5"):
        assert part in text


def test_a_completion_is_text_and_neither_markup_nor_a_command_to_the_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    view = LiveView(console)
    view.on_start(LANGUAGE)
    view.on_step(language_record(0))
    text = screen(view, console)
    view.close({})
    assert "[red]4[/red] [2J A: 4" in text
    assert "\x1b[2J" not in text


def test_a_control_run_shows_no_completions() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    view = LiveView(console)
    view.on_start(START)
    view.on_step(step_record(0))
    text = screen(view, console)
    view.close({})
    assert "completion" not in text
    assert "tokens" not in text


def test_a_resumed_run_does_not_take_what_was_done_before_for_speed(clock: list[float]) -> None:
    tally = Tally()
    tally.on_start(LANGUAGE | {"start_step": 50})
    clock[0] += 1.0
    tally.on_step(language_record(50))
    assert tally.experience_per_s is None
    clock[0] += 2.0
    tally.on_step(language_record(51))
    assert tally.experience_per_s == pytest.approx(2048)


def test_a_restore_makes_no_speed_negative(clock: list[float]) -> None:
    tally = Tally()
    tally.on_start(LANGUAGE)
    for step in range(6):
        clock[0] += 1.0
        tally.on_step(language_record(step))
    assert tally.experience_per_s == pytest.approx(4096)
    clock[0] += 2.0
    tally.on_step(language_record(2))  # back to a checkpoint
    assert tally.experience_per_s is None and tally.eta_s is None
    assert "speed" not in dict(tally.facts())
    clock[0] += 2.0
    tally.on_step(language_record(3))
    assert tally.experience_per_s == pytest.approx(2048)


def test_a_language_record_may_lack_anything_but_its_step() -> None:
    tally = Tally()
    tally.on_start(LANGUAGE)
    tally.on_step({"step": 0, "reward_mean": None, "exact_match": float("nan")})
    assert {name for name, _ in tally.facts()} == set()


def test_an_evaluation_on_problems_is_a_share_and_one_on_episodes_a_mean() -> None:
    assert eval_text({"mean": 0.972, "std": 0.16, "n": 500, "unit": "exact match"}) == "97.2 % of 500"
    assert eval_text({"mean": 0.972, "std": 0.16, "n": 500}) == "0.972 ± 0.16 over 500"
    assert [percent(value) for value in (1.0, 0, None, float("nan"))] == ["100.0 %", "0.0 %", "-", "-"]


def test_one_line_keeps_what_can_be_printed() -> None:
    assert one_line("a\tb\n\n c\x00d \u00e9\u4e2d\U0001f600") == "a b c d \u00e9\u4e2d\U0001f600"


def test_what_follows_from_a_recipe_is_cut_at_words_and_goes_on_below_itself() -> None:
    facts = {
        "learner steps": "12",
        "completions per learner step": "512 (64 prompts x 8 samples, at most 8 tokens each)",
    }
    whole = [f"{name:<30}{value}" for name, value in facts.items()]
    assert beside(facts, None) == beside(facts, 81) == whole
    assert beside(facts, 80) == [
        "learner steps                 12",
        "completions per learner step  512 (64 prompts x 8 samples, at most 8 tokens",
        "                              each)",
    ]


def words_of(view: LiveView, width: int, height: int = 24) -> list[str]:
    """The view's lines on a screen of that size."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    with console.capture() as capture:
        view._console = console
        console.print(view._render())
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40])
def test_facts_stand_whole_on_a_line_whatever_its_width(width: int) -> None:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=width))
    view.on_start(START | {"eval_mode": "greedy", "name": "mine"})
    view.on_step(step_record(48, bound_fraction=0.71))
    view.on_step(step_record(49, bound_fraction=0.71, restarts=2))
    view.on_event("checkpoint", "step 40 (exact)")
    view.on_eval({"step": 40, "mean": 88.25, "std": 3.0, "n": 20})
    shown = words_of(view, width)
    whole = [f"{name} {value}".strip() for name, value in [*view._tally.facts(), *view._tally.checkpoint()]]
    view.close({})
    assert len(whole) == 9
    for fact in [*whole, "Ctrl-C stops with a checkpoint", "curves so far rollcall report mine"]:
        if len(fact) <= width:
            assert any(fact in line for line in shown), fact
        else:
            assert " ".join(shown).count(fact) == 1, "wrapped at a word, and nothing of it is lost"
    assert all(len(line) <= width for line in shown)


def test_completions_make_way_for_facts_on_a_low_screen() -> None:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=80))
    view.on_start(LANGUAGE | {"name": "mine"})
    view.on_step(language_record(3))
    heights = {height: words_of(view, 80, height) for height in (24, 12, 8)}
    view.close({})
    assert all(len(lines) < height for height, lines in heights.items())
    assert [sum("[red]4" in line for line in lines) for lines in heights.values()] == [4, 3, 0]
    assert any("Ctrl-C" in line for line in heights[24])
    assert not any("Ctrl-C" in line for line in heights[8])


def test_checkpoints_are_a_fact_and_no_lines(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    view = LiveView(console)
    view.on_start(START)
    with console.capture() as capture:
        for step in range(10):
            view.on_event("checkpoint", f"step {step} (exact)")
        clock[0] += 75.0
    assert "checkpoint" not in capture.get()
    assert view._tally.checkpoint() == [("checkpoint", "step 9, 1 min 15 s ago")]
    view.close({})


@pytest.mark.parametrize(
    ("info", "spent", "words"),
    [
        ({"runtime": "ray"}, (0.3, 0.7, 0.0), "the learner waits for actors 30% of the time"),
        ({"runtime": "ray"}, (0.04, 0.96, 0.0), "actors wait for the learner, busy 96% of the time"),
        ({"runtime": "ray"}, (0.6, 0.4, 0.4), "the learner waits for the reward service 60% of the time"),
        ({"runtime": "ray"}, (0.6, 0.4, 9.0), "the learner waits for the reward service 60% of the time"),
        ({"runtime": "serial"}, (0.6, 0.4, 0.1), "acting 50%, scoring 10%, learning 40% of the time"),
        ({"runtime": "serial"}, (0.6, 0.4, 0.0), "acting 60%, learning 40% of the time"),
        ({"runtime": None}, (0.6, 0.4, 0.0), None),
    ],
)
def test_who_waits_for_whom_is_said_in_words(info: Any, spent: tuple[float, float, float], words: str | None) -> None:
    tally = Tally()
    tally.on_start(START | info)
    waited, worked, scored = spent
    tally.on_step(step_record(0, wait_batch_s=waited, update_s=worked, publish_s=0.0, score_s=scored))
    assert tally.waiting == words


def test_the_best_so_far_is_of_evaluations_and_without_any_of_training() -> None:
    tally = Tally()
    tally.on_start(START)
    for step, value in enumerate((10.0, 50.0, 30.0)):
        tally.on_step(step_record(step, return_mean=value))
    assert ("best", "50.0 at step 2") in tally.facts()
    for step, mean in ((1, 7.0), (2, 9.5), (3, 8.0)):
        tally.on_eval({"step": step, "mean": mean, "std": 1.0, "n": 20})
    assert ("best eval", "9.5 at step 2") in tally.facts()
    assert ("eval", "8.0 ± 1.0 over 20") in tally.facts()


def test_a_plain_line_has_the_best_evaluation_and_leaves_the_newest_to_its_own_line() -> None:
    for info, name in (({}, "eval"), ({"eval_mode": "sampled"}, "sampled eval")):
        stream = io.StringIO()
        lines = PlainLines(stream)
        lines.on_start(START | info)
        lines.on_eval({"step": 0, "mean": 9.5, "std": 1.0, "n": 20})
        lines.on_step(step_record(0))
        told, line = stream.getvalue().splitlines()
        assert told == "eval at step 0: 9.5 ± 1.0 over 20 episodes"
        assert "best eval 9.5 at step 0" in line and f"  {name} 9.5" not in line


def test_the_best_of_broken_principles_is_the_least() -> None:
    tally = Tally()
    tally.on_start(LANGUAGE)
    for step, mean in ((1, 0.7), (2, 0.2), (3, 0.4)):
        tally.on_eval({"step": step, "mean": mean, "std": 0.1, "n": 20, "unit": "broken"})
    assert ("best eval", "20.0 % at step 2") in tally.facts()


def test_a_start_has_a_line_for_each_phase_that_is_redrawn_and_stays_if_it_took_long(clock: list[float]) -> None:
    stream = io.StringIO()
    line = PhaseLine(stream, every_s=60.0)
    line.begin("the plan")
    clock[0] += 0.4
    line.begin("Ray")  # the plan took no time that is worth a line
    clock[0] += 2.0
    line.tell("a private Ray cluster answers after 2.0 s")
    line.end()
    line.end()
    drawn = stream.getvalue().split("\r\x1b[2K")
    assert drawn == [
        *("", "starting: the plan 0 s", "", "starting: Ray 0 s"),
        "starting: Ray 2 s   a private Ray cluster answers after 2.0 s",
        "Ray: 2 s\n",
    ]
    assert not line.is_on


def test_a_phase_is_redrawn_while_it_lasts_and_news_that_finds_no_room_is_left_out_whole() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        line = PhaseLine(terminal, every_s=0.02)
        line.begin("Ray")
        line.tell("a piece of news that is far too long for forty columns")
        shown = ""
        while shown.count("starting: Ray 0 s") < 4:  # the kernel hands it over piece by piece
            shown += os.read(ours, 4096).decode()
        line.end()
    os.close(ours)
    assert "a piece" not in shown


def test_members_that_come_up_in_a_start_are_news_of_its_phase_and_lines_later() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    view = LiveView(console)
    view.on_event("phase", "the learner and the actors")
    view.on_event("start", "gym-0 is up after 5.6 s")
    view.on_event("warning", "something else")
    view.on_start(START)
    view.on_event("phase", "Ray")  # of a cluster that is begun again: its events say so
    view.on_event("start", "gym-1 is up after 2.3 s")
    view.close({})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "starting: the learner and the actors 0 s   gym-0 is up after 5.6 s" in text
    assert "\r\x1b[2Kwarning: something else\n" in text, "printed over nothing"
    assert "start: gym-0" not in text
    assert "start: gym-1 is up after 2.3 s" in text
    assert "starting: Ray" not in text


def test_nothing_draws_a_phase_into_what_is_printed_meanwhile() -> None:
    stream = io.StringIO()
    line = PhaseLine(stream, every_s=0.001)
    line.begin("Ray")
    with line.aside():
        before = len(stream.getvalue())
        threading.Event().wait(0.05)
        assert len(stream.getvalue()) == before
    line.end(leave=False)
    with line.aside():
        pass
    assert stream.getvalue().endswith("0 s\r\x1b[2K"), "which is over, and so is not taken off again"


def test_a_terminal_in_ascii_does_not_end_a_start() -> None:
    buffer = io.BytesIO()
    line = PhaseLine(io.TextIOWrapper(buffer, encoding="ascii"), every_s=60.0)
    line.begin("Ray")
    line.tell("host mü is up")
    line.end(leave=False)
    assert b"starting: Ray 0 s   host m? is up" in buffer.getvalue()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_that_cannot_redraw_is_told_of_no_phases(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with before_the_run("importing torch", terminal):
            pass
        terminal.write("end\n")
        terminal.flush()
        shown = b""
        while b"end" not in shown:
            shown += os.read(ours, 4096)
    os.close(ours)
    assert (b"importing torch" in shown) is (term == "xterm")


def test_a_phase_that_is_interrupted_as_it_begins_leaves_nothing_on_the_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    terminal = Terminal()
    with pytest.raises(KeyboardInterrupt), before_the_run("importing torch", terminal):
        raise AssertionError("it never began")
    assert terminal.getvalue() == "\r\x1b[2Kstarting: importing torch 0 s\r\x1b[2K"


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_a_view_is_drawn_while_it_is_told_of_steps() -> None:
    view = LiveView(Console(file=io.StringIO(), width=80))
    failures: list[Exception] = []
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            try:
                view._render()
            except Exception as failure:
                failures.append(failure)
                return

    thread = threading.Thread(target=draw)
    thread.start()
    for step in range(4000):
        view.on_step(step_record(step))
    over.set()
    thread.join()
    assert failures == []


def test_the_view_shows_that_it_was_asked_to_stop_where_it_would_draw_over_the_line() -> None:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=120))
    asked = "SIGINT: stopping with a checkpoint; once more stops at once"
    assert not view.show(asked), "nothing is drawn yet: whoever asks writes the line"
    view.on_start(START)
    assert view.show(asked)
    view.on_step(step_record(3))
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(view._render())
    view.close({})
    assert asked in capture.get()


def test_a_log_has_a_line_of_each_phase_of_a_start_with_the_time_since_it_began() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream, began=time.monotonic() - 3.2)
    for phase in ("the plan", "", "Ray", ""):
        lines.on_event("phase", phase)
    assert stream.getvalue().splitlines() == ["starting: the plan (3 s)", "starting: Ray (3 s)"]
    lines.on_start(START)
    lines.on_event("phase", "Ray")  # begun again, of which events tell
    assert len(stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize("quiet", [False, True], ids=["as it is", "-q"])
def test_a_command_tells_a_log_of_its_start_unless_it_is_to_be_quiet(quiet: bool, tmp_path: Path) -> None:
    small = ["total_env_steps=512", "actors.num_envs=4", "actors.num_shards=1", "actors.unroll_length=64"]
    command = [sys.executable, "-m", "rollcall.deploy.cli", "train", "cartpole-ppo", *small, "eval.episodes=0"]
    done = subprocess.run([*command, *["-q"] * quiet], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "run directory: runs/cartpole-ppo"
    starts = [re.sub(r"\d+ s", "N s", line) for line in lines if line.startswith("starting: ")]
    wanted = ["starting: the plan (N s)", "starting: the learner and the actors (N s)"]
    assert starts == ([] if quiet else wanted)
    assert not quiet or "starting" not in done.stderr


def test_before_there_is_a_run_a_logs_standard_error_is_for_what_goes_wrong() -> None:
    stream = io.StringIO()
    with before_the_run("importing torch", stream):
        assert stream.getvalue() == ""  # where a terminal has its line at once
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("directory", "evaluates", "exports", "line"),
    [
        ("runs/a", True, True, "next: rollcall eval a · rollcall report a · rollcall export a"),
        ("runs/a", True, False, "next: rollcall eval a · rollcall report a"),
        ("runs/a", False, False, "next: rollcall report a"),
        ("else where/a", True, False, "next: rollcall eval 'else where/a' · rollcall report 'else where/a'"),
    ],
)
def test_the_last_line_says_what_one_does_next(
    directory: str, evaluates: bool, exports: bool, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROLLCALL_RUNS", raising=False)
    assert next_line(Path(directory), evaluates=evaluates, exports=exports) == line
