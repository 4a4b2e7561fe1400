"""The rules of the house, as they are read from the sources: who imports whom, how long a file is, what stands where.
CONTRIBUTING.md says why they are so."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# Which packages a package imports, itself aside.
ALLOWED = {
    "cluster": set(),
    "reward_service": {"cluster"},
    "actors": {"cluster", "reward_service"},
    "learners": {"cluster"},
    "deploy": {"actors", "learners", "cluster", "reward_service"},
}
# Packages of others that one room alone knows.
CONFINED = {"ray": "deploy", "vllm": "actors.engine", "fastapi": "reward_service"}
# The rooms of a package, top floor first: a room imports only those after it, and those on its own floor (|).
FLOORS = {
    "cluster": "metrics loop parameter_server|checkpoint checkpoint_config books store messages files inputs|errors"
    " backoff seeds cores",
    "reward_service": "raters service labelling preferences scheduling scorers answers workers sandbox models"
    " client scorer protocol",
    "actors": "scoring|trajectory_scoring control|language outside engine|envs|tasks policy",
    "learners": "algorithms loop update algorithm collective declared collators models batches data maths tabular",
    "deploy": "documents package cli|python tools drive gateway|runtimes kinds plan overview report rundir config"
    " preferences",
}
# Where modules of ours are imported inside a function, and why: all of a room, or one module's import of another.
LATE = {
    "deploy.cli": "`rollcall --help` answers before torch and Ray are imported",
    "deploy": "`import rollcall.deploy` costs nothing until something of it is called",
    "deploy.package": "`import rollcall` costs nothing until something of it is called",
    "deploy.drive.lifecycle -> deploy.drive.collecting": "a web server: for runs that are scored",
    "deploy.drive.online -> deploy.drive.reward_launch": "a web server: for runs that are scored",
    "deploy.drive.online -> deploy.runtimes.on_ray.launch": "Ray: a serial run does without it",
    "deploy.runtimes.on_ray.launch": "Ray is told of tokens and ports before it is imported",
    "learners.loop.learner -> learners.loop.sharded": "torch's FSDP: seconds, for those who shard",
    "reward_service.scorers.maths -> reward_service.answers.maths_equality": "math-verify is an extra",
    "reward_service.scorers.building -> reward_service.scorers.reward_model_scorer": "torch and transformers",
}
IMAGES = "deploy/docker"  # what images run beside the package; nobody imports it
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
MAX_ROOM_FILES = 25  # of code: recipes and dashboards are data


@dataclass(frozen=True, order=True)
class Violation:
    """What was found; `known` is how a list of what is still broken names it."""

    rule: str
    place: str
    text: str = field(compare=False, default="")

    @property
    def known(self) -> str:
        return f"{self.rule}: {self.place}"

    def __str__(self) -> str:
        return f"{self.known} {self.text}".rstrip()


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and whether it is imported inside a function."""

    name: str
    late: bool


class House:
    """The sources of one tree. Modules of ours are named without `rollcall.`"""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, Path] = {}
        for package in ALLOWED:
            for path in sorted((root / package).rglob("*.py")):
                if path.is_relative_to(root / IMAGES):
                    continue
                parts = path.relative_to(root).with_suffix("").parts
                self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.trees = {module: ast.parse(path.read_text()) for module, path in self.files.items()}

    @cached_property
    def imports(self) -> dict[str, list[Import]]:
        return {module: list(self._imports(tree)) for module, tree in self.trees.items()}

    def _imports(self, tree: ast.Module) -> Iterator[Import]:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        late = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, id(node) in late) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{'.' * node.level}{node.module or ''}"
                    whole = f"{name}.{alias.name}"
                    is_module = whole.removeprefix("rollcall.") in self.files
                    yield Import(whole if is_module or name == "rollcall" else name, id(node) in late)

    def ours(self, module: str) -> Iterator[Import]:
        for found in self.imports[module]:
            if found.name.startswith("rollcall."):
                yield Import(found.name.removeprefix("rollcall."), found.late)

    def violations(self) -> set[Violation]:
        rules = (directions, floors, circles, late_imports, confined, sizes, folders, rooms_of_tests)
        return {found for rule in rules for found in rule(self)}


def directions(house: House) -> Iterator[Violation]:
    for module, imports in house.imports.items():
        package = module.split(".")[0]
        for found in imports:
            first, _, rest = found.name.partition(".")
            target = rest.split(".")[0]
            if found.name.startswith("."):
                yield Violation("relative import", module, "hides who imports whom: write rollcall. in full")
            elif first in ALLOWED:
                yield Violation("bare import", f"{module} -> {found.name}", f"write rollcall.{found.name}")
            elif first == "rollcall" and target not in ALLOWED[package] | {package}:
                yield Violation("direction", f"{module} -> {found.name}", f"{package} never imports {target}")


def floors(house: House) -> Iterator[Violation]:
    for module in house.files:
        package, _, inside = module.partition(".")
        rooms = {room: floor for floor, together in enumerate(FLOORS[package].split()) for room in together.split("|")}
        room = inside.split(".")[0]
        if not room:
            continue
        if room not in rooms:
            yield Violation("floor", module, f"give {room} its floor in FLOORS")
            continue
        for found in house.ours(module):
            other, _, there = found.name.partition(".")
            target = there.split(".")[0]
            if other == package and rooms.get(target, rooms[room]) < rooms[room]:
                yield Violation("floor", f"{module} -> {found.name}", f"{target} stands above {room}")


def circles(house: House) -> Iterator[Violation]:
    """Every module that imports itself through others: also inside functions, also for types alone."""
    reached: dict[str, set[str]] = {}
    direct = {
        module: {found.name for found in house.ours(module) if found.name in house.files} - {module}
        for module in house.files
    }
    for module in house.files:
        seen: set[str] = set()
        ahead = list(direct[module])
        while ahead:
            here = ahead.pop()
            if here not in seen:
                seen.add(here)
                ahead += direct[here]
        reached[module] = seen
    for module, seen in reached.items():
        if module in seen:
            others = sorted(other for other in seen if module in reached[other] and other != module)
            yield Violation("circle", module, f"with {', '.join(others)}")


def late_imports(house: House) -> Iterator[Violation]:
    for module in house.files:
        for found in house.ours(module):
            place = f"{module} -> {found.name}"
            if found.late and place not in LATE and not _inside(module, LATE):
                yield Violation("late import", place, "belongs at the top of the file")


def _inside(module: str, rooms: Iterable[str]) -> bool:
    """`deploy` in the list means its __init__ alone; a room below a package means all that is in it."""
    return any(module == room or ("." in room and module.startswith(f"{room}.")) for room in rooms)


def confined(house: House) -> Iterator[Violation]:
    for module, imports in house.imports.items():
        for found in imports:
            home = CONFINED.get(found.name.split(".")[0])
            if home is not None and not f"{module}.".startswith(f"{home}."):
                yield Violation("confined", f"{module} -> {found.name}", f"only {home} knows it")


def sizes(house: House) -> Iterator[Violation]:
    for module, path in house.files.items():
        place = path.relative_to(house.root).as_posix()
        length = len(path.read_text().splitlines())
        if length > MAX_FILE_LINES:
            yield Violation("file", place, f"has {length} lines, {MAX_FILE_LINES} at the most")
        for node in ast.walk(house.trees[module]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    text = f"has {length} lines, {MAX_FUNCTION_LINES} at the most"
                    yield Violation("function", f"{place} {node.name}", text)


def folders(house: House) -> Iterator[Violation]:
    setuptools = tomllib.loads((house.root / "pyproject.toml").read_text())["tool"]["setuptools"]
    elsewhere = {name: folder.replace("/", ".") for name, folder in setuptools.get("package-dir", {}).items()}
    installed = {elsewhere.get(package, package.removeprefix("rollcall.")) for package in setuptools["packages"]}
    there = Counter(".".join(path.relative_to(house.root).parent.parts) for path in house.files.values())
    for room, length in sorted(there.items()):
        if length > MAX_ROOM_FILES:
            yield Violation("room", room, f"has {length} files, {MAX_ROOM_FILES} at the most: part it by subject")
        if room not in house.files or not ast.get_docstring(house.trees[room]):
            yield Violation("folder", room, "has no __init__.py with a docstring that says what is in it")
        if room not in installed:
            yield Violation("folder", room, "is not among pyproject's packages, and would not be installed")
    for room in sorted(installed - set(there)):
        yield Violation("folder", room, "is among pyproject's packages, and has no code")


def rooms_of_tests(house: House) -> Iterator[Violation]:
    """Tests lie in rooms like those that they test."""
    there = Counter(path.parent for path in (house.root / "tests").rglob("*.py"))
    for folder, length in sorted(there.items()):
        place = folder.relative_to(house.root).as_posix()
        if length > MAX_ROOM_FILES:
            yield Violation("room", place, f"has {length} files, {MAX_ROOM_FILES} at the most: part it by subject")
        if not (folder / "__init__.py").exists():
            yield Violation("folder", place, "has no __init__.py: its tests are no modules")
