"""How a line of a page is run: in the test's own process where it is a `rollcall` command, by bash where it is not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rollcall.deploy.cli import main
from tests.needs import require
from tests.pages.blocks import Command

PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Line:
    """What becomes of a command of a page when it is tested."""

    add: tuple[str, ...] = ()  # settings and options, at its end
    put: Mapping[str, str] = field(default_factory=dict)  # what stands for a placeholder of the page
    part: str = ""  # the part of it that is run, where not all of it can be
    code: int = 0
    says: str = ""  # what it prints, a regular expression: what the page says that it does
    leaves: tuple[str, ...] = ()  # files that are there afterwards
    needs: tuple[str, ...] = ()  # names of tests/needs.py


@dataclass(frozen=True)
class Elsewhere:
    """A command that is not run here: the test that runs it (`tests/file.py::name`), or why none can."""

    why: str


@dataclass(frozen=True)
class Page:
    """The lines of a page, and what has to be in the folder that they are typed in."""

    lines: Mapping[str, Line | Elsewhere]
    prepare: Callable[[Path], None] = lambda folder: None
    needs: tuple[str, ...] = ()  # of all its lines
    apart: bool = False  # each command in a process of its own: engines end with theirs


def carry_out(command: Command, line: Line, capsys: pytest.CaptureFixture[str], *, apart: bool = False) -> None:
    """In the working directory. It has to end, print and leave what is said."""
    require(*line.needs)
    text = command.text
    if line.part:
        assert line.part in text, f"{command.page}:{command.line} has no {line.part!r}"
        text = line.part
    for placeholder, stands in line.put.items():
        assert placeholder in text, f"{command.page}:{command.line} has no {placeholder!r}"
        text = text.replace(placeholder, os.path.expandvars(stands))
    capsys.readouterr()
    words = [os.path.expandvars(word) for word in line.add]
    plain = re.match(r"rollcall [^|>&$]*$", text)
    code = _rollcall(text, words) if plain and not apart else _bash(text, words)
    printed = "".join(capsys.readouterr())
    where = f"{command.page}:{command.line}: {text} {' '.join(line.add)}\n{printed[-3000:]}"
    assert code == line.code, where
    assert re.search(line.says, printed), where
    if line.code == 0:
        assert "Traceback" not in printed, where
    for name in line.leaves:
        assert Path(name).exists(), f"{name} is not there after {where}"
    if command.answer is not None:
        assert printed.splitlines() == list(command.answer), where


def _rollcall(text: str, add: Sequence[str]) -> int:
    words = settings_before_options(shlex.split(text)[1:], add)
    try:
        return main.main(words)
    except SystemExit as ended:  # argparse's
        return int(ended.code or 0)


def _bash(text: str, add: Sequence[str]) -> int:
    if add:
        text = shlex.join(settings_before_options(shlex.split(text), add))
    done = subprocess.run(
        ["bash", "-c", text], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    print(done.stdout + done.stderr)
    return done.returncode


def environment() -> dict[str, str]:
    """The programs of this environment first on PATH."""
    return os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def settings_before_options(words: Sequence[str], add: Sequence[str]) -> list[str]:
    """As the command line asks for: settings after the last word that is no option's, options at the end."""
    at = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    settings = [word for word in add if not word.startswith("-") and "=" in word]
    options = [word for word in add if word not in settings]
    return [*words[:at], *settings, *words[at:], *options]


def home_of_its_own(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The folder is the working directory, where modules are found too, and home."""
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    patch.setenv("HOME", str(folder))
    for name in ("ROLLCALL_RUNS", "RAY_ADDRESS", "HF_TOKEN"):
        patch.delenv(name, raising=False)
    for name in ("my_module", "my_env", "my_reward", "my_task"):
        sys.modules.pop(name, None)


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def train(*settings: str) -> None:
    """Of whatever a page takes to be there."""
    assert main.main(["train", *settings, "--quiet"]) == 0
