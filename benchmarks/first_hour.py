"""The stopwatch of docs/start/stopwatch.md: each section's commands, run as they stand in one empty folder, and how
long they took. `--short` makes the runs as short as they can be, to see that the page is right.

    python -m benchmarks.first_hour [--short] [--only "three seeds"]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "start" / "stopwatch.md"
LIMIT_S = 3600.0  # of one command
SHORT = {
    "cartpole": "total_env_steps=4096 eval.episodes=2",
    "arithmetic": "total_learner_steps=1 eval.num_rows=4 actors.prompts_per_batch=2 actors.samples_per_prompt=2 "
    "algorithm.num_minibatches=1",
}


@dataclass(frozen=True)
class Section:
    """What the page says of one thing that people do."""

    title: str
    files: dict[str, str]  # name -> text; ours, and the peer's, which begins with its name
    commands: tuple[str, ...]

    @property
    def own_lines(self) -> int:
        return sum(lines(text) for name, text in self.files.items() if not name.startswith(("sb3_", "trl_")))

    @property
    def peer_lines(self) -> int:
        return sum(lines(text) for name, text in self.files.items() if name.startswith(("sb3_", "trl_")))


def lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def sections(text: str) -> Iterator[Section]:
    for part in text.split("\n## ")[1:]:
        files = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', part, re.MULTILINE | re.DOTALL))
        shells = re.findall(r"^```bash\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        yield Section(part.partition("\n")[0], files, tuple(line for shell in shells for line in shell.splitlines()))


def carried_out(section: Section, folder: Path, *, short: bool) -> float:
    """Seconds. Raises RuntimeError: where a command fails."""
    for name, text in section.files.items():
        (folder / name).write_text(text)
    began = time.monotonic()
    for command in section.commands:
        words = [sys.executable, "-m", "rollcall.deploy.cli", *command.split()[1:]]
        if short:
            words = _shorter(words)
        done = subprocess.run(words, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode != 0:
            raise RuntimeError(f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return time.monotonic() - began


def _shorter(words: list[str]) -> list[str]:
    """Settings stand before the options."""
    more = next((SHORT[name].split() for name in SHORT if any(word.startswith(name) for word in words)), [])
    at = next((place for place, word in enumerate(words) if place > 2 and word.startswith("--")), len(words))
    warm = (
        ["policy.warm_start.steps=2"]
        if "arithmetic-grpo" in words and "policy.init_from=runs/sums" not in words
        else []
    )
    return [*words[:at], *more, *warm, *words[at:]] if words[3] in ("train", "sweep") else words


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="how long the commands of docs/start/stopwatch.md take")
    parser.add_argument("--short", action="store_true", help="as short as the runs can be")
    parser.add_argument("--only", default="", help="a part of a section's title")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for section in sections(PAGE.read_text()):
            if args.only.lower() in section.title.lower():
                seconds = carried_out(section, Path(folder), short=args.short)
                print(f"| {section.title} | {seconds / 60:.1f} min |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
