"""What a run shows while it goes: the same facts in place on a terminal and line by line elsewhere, and never a
character that the terminal would obey."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rollcall.deploy.report.progress import LiveView, PlainLines, Tally, duration, eval_text, number, one_line, percent

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
    monkeypatch.setattr("rollcall.deploy.report.progress.time.monotonic", lambda: clock[0])
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
    for part in ("step 16/100", "2,048/s (71% of bound)", "lag 1", "return 35.0", "waiting 24%", "ETA 1 min 24 s"):
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
    for part in ("lag", "return", "69.0", "drops", "restarts"):
        assert part in text


def test_rates_are_over_the_last_seconds_not_over_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("rollcall.deploy.report.progress.time.monotonic", lambda: clock[0])
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
    monkeypatch.setattr("rollcall.deploy.report.progress.time.monotonic", lambda: now[0])
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
    for part in ("step 6/100", "tokens 24,576", "speed 4,096 tokens/s (71% of bound)", "lag 1", "reward 0.25"):
        assert part in printed[1]
    for part in ("exact match 61.3 %", "length 87.5", "waiting 24%", "drops 3", "ETA 1 min 34 s"):
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
    assert {name for name, _ in tally.facts()}.isdisjoint({"reward", "exact match", "length", "tokens", "lag", "drops"})


def test_an_evaluation_on_problems_is_a_share_and_one_on_episodes_a_mean() -> None:
    assert eval_text({"mean": 0.972, "std": 0.16, "n": 500, "unit": "exact match"}) == "97.2 % of 500"
    assert eval_text({"mean": 0.972, "std": 0.16, "n": 500}) == "0.972 ± 0.16 over 500"
    assert [percent(value) for value in (1.0, 0, None, float("nan"))] == ["100.0 %", "0.0 %", "-", "-"]


def test_one_line_keeps_what_can_be_printed() -> None:
    assert one_line("a\tb\n\n c\x00d \u00e9\u4e2d\U0001f600") == "a b c d \u00e9\u4e2d\U0001f600"
