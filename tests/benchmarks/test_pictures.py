"""The pictures of README: made from a run by a script, and true to what a terminal shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import pictures
from benchmarks.terminal import Screen, shown_by
from tests import ROOT
from tests.needs import needs


def shown(text: str, *, columns: int = 20, lines: int = 4) -> list[str]:
    screen = Screen(columns, lines)
    screen.feed(text)
    return screen.text


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one\r\ntwo", ["one", "two"]),
        ("one\rtwo!", ["two!"]),
        ("waiting\r\x1b[2Kdone\r\n", ["done"]),
        ("a\r\nb\r\nc\r\x1b[2K\x1b[1A\x1b[2K\x1b[1A\x1b[2Kx", ["x"]),  # as rich draws a view anew
        ("1\r\n2\r\n3\r\n4\r\n5", ["2", "3", "4", "5"]),
        ("x" * 25, ["x" * 20, "xxxxx"]),
        ("\x1b[?25l\x1b[1;32mgreen\x1b[0m and \x1b[38;5;197mred\x1b[38;2;1;2;3m.\x1b[0m\x1b[?25h", ["green and red."]),
    ],
)
def test_a_screen_holds_what_a_terminal_would(text: str, lines: list[str]) -> None:
    assert shown(text) == lines


@given(st.lists(st.integers(1, 12), max_size=12))
def test_a_command_may_come_in_parts(cuts: list[int]) -> None:
    text = "step 1\r\n\x1b[2mdim\x1b[0m\r\x1b[2K\x1b[1A\x1b[2Kstep 2\r\n\x1b[38;5;197mred\x1b[0m"
    screen, at = Screen(20, 4), 0
    for cut in cuts:
        screen.feed(text[at : at + cut])
        at += cut
    screen.feed(text[at:])
    assert screen.text == ["step 2", "red"]


@pytest.mark.parametrize("text", ["\x1b[3J", "\x1b[31;999m", "\x1b]0;a title that nobody asked for\x07"])
def test_a_command_that_is_not_known_is_an_error_and_no_wrong_picture(text: str) -> None:
    with pytest.raises(ValueError, match="terminal"):
        shown(text)


def test_a_picture_has_every_word_and_asks_nothing_of_the_network() -> None:
    screen = Screen(40, 4)
    screen.feed("\x1b[2mreturn \x1b[0m\x1b[1m69 < 70\x1b[0m   \x1b[33mwarning\x1b[0m & more")
    picture = screen.svg("a & b")
    words = [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["return", "69 < 70", "warning", "& more"]
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]
    assert 'font-weight="700"' in picture and 'fill="#d9a032"' in picture


def test_a_command_runs_on_a_terminal_of_the_size_that_was_asked_for() -> None:
    code = "import os, sys; size = os.get_terminal_size(); print(size.columns, size.lines, sys.stdout.isatty())"
    pieces = shown_by([sys.executable, "-c", code], columns=93, lines=17)
    assert b"".join(piece for _, piece in pieces).split() == [b"93", b"17", b"True"]


def test_a_command_that_fails_makes_no_picture() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        shown_by([sys.executable, "-c", "print('why'); raise SystemExit(3)"], columns=80, lines=24)


def test_the_frame_in_the_middle_is_the_first_with_half_of_the_steps() -> None:
    half = b"\r\x1b[2Kstep 1,500/2,999 \xe2"  # half a letter, too
    pieces = [(0.0, b"step 9/2,999"), (1.0, half), (2.0, b"\x94\x81"), (3.0, b"\r\x1b[2Kstep 2,999/2,999")]
    middle, end = pictures.frames(pieces)
    assert (middle.text, end.text) == (["step 1,500/2,999"], ["step 2,999/2,999"])
    with pytest.raises(ValueError, match="ever on the screen"):
        pictures.frames(pieces[:1])


def test_the_pictures_that_documents_show_are_there_and_small() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\((docs/pictures/[\w.-]+)\)", readme)
    assert {"docs/pictures/live-view.svg", "docs/pictures/report.png"} <= set(named)
    for picture in pictures.PICTURES.iterdir():
        assert 1_000 < picture.stat().st_size < pictures.MOST_BYTES, picture
    view = (pictures.PICTURES / "live-view.svg").read_text(encoding="utf-8")
    for words in ("training return", "best", "steps/s", "wait", "checkpoint", "Ctrl-C", "elapsed"):
        assert words in view, words
    assert "next: rollcall eval" in (pictures.PICTURES / "live-view-end.svg").read_text(encoding="utf-8")


@pytest.mark.long
@needs("chromium", "playwright")
def test_the_script_makes_them_from_a_run(tmp_path: Path) -> None:
    shorter = ["total_env_steps=20000", "eval.episodes=2", "runtime=serial"]
    assert pictures.main(["--to", str(tmp_path), *shorter]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"live-view.svg", "live-view-end.svg", "report.png"}
    assert "training return" in (tmp_path / "live-view.svg").read_text(encoding="utf-8")
    assert "next: rollcall eval cartpole-ppo" in (tmp_path / "live-view-end.svg").read_text(encoding="utf-8")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
