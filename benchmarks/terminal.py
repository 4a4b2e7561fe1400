"""A terminal of the plainest kind: runs a command on it, keeps what stands on its screen, and draws that as SVG. Knows
the few commands to a terminal that rich and ourselves send; any other one is an error, so that no picture is wrong."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

_COMMAND = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
_COLOURS = ("#1d2126", "#d8484a", "#4fae6c", "#d9a032", "#5b93e0", "#b07fd4", "#3fb6bf", "#c9ced6")
_BRIGHT = ("#666d76", "#ff6b6b", "#6fd08c", "#f0c060", "#82b4ff", "#cfa4ee", "#62d7df", "#ffffff")
_INK, _DIM, _PAPER = "#d6dae0", "#8b939e", "#14171b"
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_ACROSS, _DOWN, _SIZE, _MARGIN = 8.0, 18.0, 13.2, 14.0  # pixels of a cell, of letters, of the frame
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class Style:
    bold: bool = False
    dim: bool = False
    colour: str = ""


@dataclass(frozen=True)
class Cell:
    letter: str = " "
    style: Style = Style()


class Screen:
    """`columns` wide; lines that scroll off its top are gone."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.rows: list[list[Cell]] = [self._blank() for _ in range(lines)]
        self._row = self._column = 0
        self._style = Style()
        self._rest = ""

    def _blank(self) -> list[Cell]:
        return [Cell()] * self.columns

    @property
    def text(self) -> list[str]:
        """Of each line, without what is blank at its end; lines below the last that has any are left out."""
        found = ["".join(cell.letter for cell in row).rstrip() for row in self.rows]
        while found and not found[-1]:
            found.pop()
        return found

    def feed(self, text: str) -> None:
        """What a program has written; a command may come in parts.

        Raises:
          ValueError: on a command that it does not know.
        """
        text = self._rest + text
        self._rest = ""
        at = 0
        while at < len(text):
            letter = text[at]
            if letter == "\x1b":
                found = _COMMAND.match(text, at)
                if found is None:
                    if len(text) - at > 20:
                        raise ValueError(f"no command to a terminal: {text[at : at + 20]!r}")
                    self._rest = text[at:]
                    return
                self._obey(found.group(1), found.group(2))
                at = found.end()
                continue
            self._write(letter)
            at += 1

    def _write(self, letter: str) -> None:
        if letter == "\n":
            self._new_line()
        elif letter == "\r":
            self._column = 0
        elif letter >= " ":
            if self._column >= self.columns:
                self._column = 0
                self._new_line()
            self.rows[self._row][self._column] = Cell(letter, self._style)
            self._column += 1

    def _new_line(self) -> None:
        if self._row + 1 < self.lines:
            self._row += 1
        else:
            self.rows = [*self.rows[1:], self._blank()]

    def _obey(self, given: str, command: str) -> None:
        amount = int(given) if given.isdigit() else 1
        if command == "m":
            self._restyle([int(part) for part in given.split(";") if part] or [0])
        elif command == "A":
            self._row = max(0, self._row - amount)
        elif command == "K" and given == "2":
            self.rows[self._row] = self._blank()
        elif not (command in "hl" and given == "?25"):  # the cursor is not drawn
            raise ValueError(f"a command to a terminal that is not known: {given + command!r}")

    def _restyle(self, codes: Sequence[int]) -> None:
        rest = list(codes)
        while rest:
            code = rest.pop(0)
            if code == 0:
                self._style = Style()
            elif code in (1, 2, 22):
                self._style = replace(self._style, bold=code == 1, dim=code == 2)
            elif 30 <= code <= 37 or 90 <= code <= 97:
                palette = _COLOURS if code < 90 else _BRIGHT
                self._style = replace(self._style, colour=palette[code % 10])
            elif code == 38 and rest[:1] == [5]:
                self._style, rest = replace(self._style, colour=_of_256(rest[1])), rest[2:]
            elif code == 38 and rest[:1] == [2]:
                red, green, blue = rest[1:4]
                self._style, rest = replace(self._style, colour=f"#{red:02x}{green:02x}{blue:02x}"), rest[4:]
            elif code in (3, 23, 4, 24):
                pass  # slanted and underlined look plain here
            elif code == 39:
                self._style = replace(self._style, colour="")
            else:
                raise ValueError(f"a style of a terminal that is not known: {code}")

    def svg(self, title: str) -> str:
        """The screen as a picture that asks nothing of the network."""
        count = len(self.text)
        width, height = self.columns * _ACROSS + 2 * _MARGIN, count * _DOWN + 2 * _MARGIN
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{_PAPER}"/>',
            f'<g font-family="{_FONT}" font-size="{_SIZE:g}" fill="{_INK}">',
        ]
        for number, row in enumerate(self.rows[:count]):
            down = _MARGIN + (number + 0.72) * _DOWN
            lines += [_words(start, text, style, down) for start, text, style in _parts(row)]
        return "\n".join([*lines, "</g>", "</svg>", ""])


def _of_256(code: int) -> str:
    """One of a terminal's 256 colours."""
    if code < 16:
        return (_COLOURS + _BRIGHT)[code]
    if code >= 232:
        return f"#{8 + 10 * (code - 232):02x}" + f"{8 + 10 * (code - 232):02x}" * 2
    parts = [(code - 16) // 36, (code - 16) // 6 % 6, (code - 16) % 6]
    return "#" + "".join(f"{0 if part == 0 else 55 + 40 * part:02x}" for part in parts)


def _parts(row: Sequence[Cell]) -> list[tuple[int, str, Style]]:
    """(column, text, style) of what is not blank, style by style. Pictures have no two blanks in a row: what stands
    after some has a place of its own."""
    parts: list[tuple[int, str, Style]] = []
    for column, cell in enumerate(row):
        if parts and parts[-1][2] == cell.style:
            parts[-1] = (parts[-1][0], parts[-1][1] + cell.letter, cell.style)
        else:
            parts.append((column, cell.letter, cell.style))
    return [
        (start + found.start(), found.group(), style)
        for start, text, style in parts
        for found in re.finditer(r"\S+(?: \S+)*", text)
    ]


def _words(start: int, text: str, style: Style, down: float) -> str:
    colour = style.colour or (_DIM if style.dim else "")
    across = _MARGIN + start * _ACROSS
    more = f' fill="{colour}"' if colour else ""
    more += ' font-weight="700"' if style.bold else ""
    long = f'textLength="{len(text) * _ACROSS:g}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{across:g}" y="{down:g}" {long}{more}>{escape(text)}</text>'


def shown_by(
    command: Sequence[str], *, columns: int, lines: int, folder: Path | None = None
) -> list[tuple[float, bytes]]:
    """What a command writes on a terminal of that size, piece by piece, and after how many seconds. `folder`: where it
    is run.

    Raises:
      RuntimeError: where it fails, or takes too long.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR", "ROLLCALL_RUNS")
    surroundings = {key: value for key, value in os.environ.items() if key not in hidden} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=surroundings, cwd=folder)
    os.close(theirs)
    began, pieces = time.monotonic(), []
    try:
        while time.monotonic() - began < _PATIENCE_S:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # Linux says so once nobody has it open any more
                break
            if not piece:
                break
            pieces.append((time.monotonic() - began, piece))
        else:
            raise RuntimeError(f"{command[0]} still runs after {_PATIENCE_S:.0f} s")
        if process.wait(timeout=30) != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{pieces[-1:]}")
    finally:
        os.close(ours)
        if process.poll() is None:
            process.terminate()
    return pieces
