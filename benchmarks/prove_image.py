"""Proves the Dockerfiles where there is no Docker: reads them, and runs the build stage's steps in a clean directory.
`python -m benchmarks.prove_image [--dockerfile deploy/docker/Dockerfile.cpu]` installs the whole lock: minutes, and
gigabytes. What needs root in an image (apt-get, users) is only read.

tests/deploy/docker/test_images.py runs the same steps, with this environment's packages in place of the lock's own."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.proofs import ROOT

INSTRUCTIONS = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "HEALTHCHECK", "CMD"}
MOVED = re.compile(r"(?<![\w./])/(opt/rollcall|src)\b")  # of an image, into the clean directory
STEP_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile."""

    line: int
    instruction: str
    text: str  # without flags, variables of ARG filled in
    flags: tuple[str, ...] = ()


@dataclass
class Stage:
    name: str
    base: str
    steps: list[Step] = field(default_factory=list)

    def all(self, instruction: str) -> list[Step]:
        return [step for step in self.steps if step.instruction == instruction]


def parse(text: str) -> dict[str, Stage]:
    """The stages by name, in order. Raises ValueError: naming the line, for what these Dockerfiles do not use."""
    stages: dict[str, Stage] = {}
    variables: dict[str, str] = {}
    current: Stage | None = None
    for number, line in _logical_lines(text):
        instruction, _, rest = line.partition(" ")
        if instruction not in INSTRUCTIONS:
            raise ValueError(f"line {number}: {instruction} is no instruction, or one that is not used here")
        flags, words = [], rest.strip()
        while words.startswith("--"):
            flag, _, words = words.partition(" ")
            flags.append(flag)
        if instruction == "ARG":
            name, _, value = words.partition("=")
            variables[name] = value
        elif instruction == "FROM":
            for name, value in variables.items():
                words = words.replace(f"${{{name}}}", value)
            base, _, name = words.partition(" AS ")
            current = Stage(name or str(len(stages)), base)
            stages[current.name] = current
        elif current is None:
            raise ValueError(f"line {number}: {instruction} before the first FROM")
        else:
            current.steps.append(Step(number, instruction, words, tuple(flags)))
    return stages


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Without comments; a line that ends in a backslash goes on."""
    gathered, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not gathered):
            continue
        began = began or number
        if line.endswith("\\"):
            gathered += line[:-1].strip() + " "
            continue
        yield began, (gathered + line.strip())
        gathered, began = "", 0


def context_files(root: Path) -> list[Path]:
    """What a build sees of the repository: .dockerignore's last pattern that fits decides."""
    lines = (root / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def sent(relative: Path) -> bool:
        kept = True
        for pattern in patterns:
            wanted = pattern.removeprefix("!")
            if any(_fits(prefix, wanted) for prefix in (relative, *relative.parents)):
                kept = pattern.startswith("!")
        return kept

    tops = {pattern[1:].split("/")[0] for pattern in patterns if pattern.startswith("!")}
    found = [path for top in sorted(tops) for path in [root / top, *(root / top).rglob("*")] if path.is_file()]
    return [path for path in found if sent(path.relative_to(root))]


def _fits(path: Path, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.name, pattern.removeprefix("**/"))
    return path.parent == Path(pattern).parent and fnmatch.fnmatch(path.name, Path(pattern).name)


class CleanRun:
    """Runs a stage's steps below a folder, as root of nothing."""

    def __init__(self, folder: Path, *, tell: Callable[[str], None] = print) -> None:
        self.folder, self.tell = folder, tell
        self.cwd = folder
        self.env: dict[str, str] = {}

    def run(self, stage: Stage, *, instead: Callable[[Step], str | None] = lambda step: None) -> None:
        """`instead`: a command in place of a step's own; "" for none.

        Raises:
          RuntimeError: a step failed; says which, and what it said.
        """
        for step in stage.steps:
            began = time.perf_counter()
            if step.instruction == "ENV":
                self.env |= dict(word.split("=", 1) for word in shlex.split(step.text))
            elif step.instruction == "WORKDIR":
                self.cwd = self.moved(step.text)
                self.cwd.mkdir(parents=True, exist_ok=True)
            elif step.instruction == "COPY":
                self._copy(step)
            elif step.instruction == "RUN":
                command = instead(step)
                if command != "":
                    self._shell(step, step.text if command is None else command)
            self.tell(f"{stage.name}:{step.line} {step.instruction} {time.perf_counter() - began:.1f} s")

    def moved(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def _copy(self, step: Step) -> None:
        *sources, target = shlex.split(step.text)
        for source in sources:
            found = [p for p in context_files(ROOT) if source == "." or p.relative_to(ROOT).match(source)]
            if not found:
                raise RuntimeError(f"line {step.line}: COPY {source}: the build does not see it (.dockerignore)")
            for path in found:
                inside = path.relative_to(ROOT) if source == "." else Path(path.name)
                (self.cwd / target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, self.cwd / target / inside)

    def _shell(self, step: Step, command: str) -> None:
        command = MOVED.sub(lambda found: f"{self.folder}{found[0]}", command)
        python = Path(sys.base_prefix) / "bin"
        environment = {
            "PATH": f"{python}:{os.environ.get('PATH', os.defpath)}",
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "RAY_USAGE_STATS_ENABLED": "0",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
            **self.env,
        }
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-2000:]
            raise RuntimeError(f"line {step.line}: {command}\nexit code {done.returncode}: {said}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dockerfile", type=Path, default=ROOT / "deploy" / "docker" / "Dockerfile.cpu")
    parser.add_argument("--folder", type=Path, default=None, help="kept; by default one that is thrown away")
    args = parser.parse_args(arguments)
    stage = next(iter(parse(args.dockerfile.read_text()).values()))
    with tempfile.TemporaryDirectory(prefix="rollcall-image-") as aside:
        folder = (args.folder or Path(aside)).resolve()
        clean = CleanRun(folder)
        clean.run(stage)
        installed = folder / "opt" / "rollcall"
        size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file() and not path.is_symlink())
        count = len(list(installed.glob("lib/python*/site-packages/*.dist-info")))
        print(json.dumps({"dockerfile": args.dockerfile.name, "packages": count, "size_bytes": size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
