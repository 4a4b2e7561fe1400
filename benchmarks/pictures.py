"""Makes the pictures of README.md and the documents from a run that it carries out: the live view in the middle of it
and at its end, and the head of its report. `python -m benchmarks.pictures [--to DIRECTORY] [key=value ...]`; needs
chromium on PATH."""

from __future__ import annotations

import argparse
import codecs
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.terminal import Screen, shown_by

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS, LINES = 100, 30
RECIPE = ("cartpole-ppo", "name=cartpole-ppo", "eval.every_steps=20")
MOST_BYTES = 200_000  # of one picture
_PROGRESS = re.compile(r"step ([\d,]+)/([\d,]+)")


def frames(pieces: Sequence[tuple[float, bytes]]) -> tuple[Screen, Screen]:
    """(the screen when half of the steps were first done, the last one).

    Raises:
      ValueError: where it never said so.
    """
    screen, decoder = Screen(COLUMNS, LINES), codecs.getincrementaldecoder("utf-8")()
    middle: Screen | None = None
    for index, (_, piece) in enumerate(pieces):
        screen.feed(decoder.decode(piece))
        if middle is None and _halfway(screen):
            middle = Screen(COLUMNS, LINES)
            again = codecs.getincrementaldecoder("utf-8")()
            for _, earlier in pieces[: index + 1]:
                middle.feed(again.decode(earlier))
    if middle is None:
        raise ValueError(f"no half of any steps was ever on the screen; its last lines: {screen.text[-5:]}")
    return middle, screen


def _halfway(screen: Screen) -> bool:
    told = (_PROGRESS.match(line) for line in screen.text)
    counts = [[int(part.replace(",", "")) for part in found.groups()] for found in told if found]
    return any(2 * done >= total for done, total in counts)


def photographed(page: Path, goal: Path, *, width: int = 1200, height: int = 860) -> None:
    """The head of a report, as a browser shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("figure path")
        tab.screenshot(path=goal)
        browser.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="pictures of a run")
    parser.add_argument("--to", type=Path, default=PICTURES, metavar="DIRECTORY")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    given = parser.parse_args(arguments)
    given.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rollcall.deploy.cli", "train", *RECIPE, *given.overrides]
        pieces = shown_by(command, columns=COLUMNS, lines=LINES, folder=Path(folder))
        middle, end = frames(pieces)
        (given.to / "live-view.svg").write_text(middle.svg("rollcall train, in the middle of a run"), encoding="utf-8")
        (given.to / "live-view-end.svg").write_text(end.svg("rollcall train, at its end"), encoding="utf-8")
        photographed(Path(folder) / "runs" / "cartpole-ppo" / "report.html", given.to / "report.png")
    for picture in sorted(given.to.iterdir()):
        print(f"{picture}: {picture.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
