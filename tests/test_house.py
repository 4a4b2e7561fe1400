"""The rules of the house, read from the sources: who imports whom, how long a file is, what stands where. `make check`
runs them. CONTRIBUTING.md says why they are so. Each rule is broken once in a small tree, to see that it is noticed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
# The rooms of a package, top floor first: a room imports only those after it.
FLOORS = {
    "cluster": "metrics loop parameter_server checkpoint books store messages inputs errors seeds",
    "reward_service": "raters service labelling preferences scheduling scorers answers workers sandbox models"
    " client scorer protocol",
    "actors": "scoring control language engine envs tasks policy",
    "learners": "algorithms loop batches data models algorithm maths",
    "deploy": "cli tools drive runtimes kinds report rundir config preferences",
}
# Who may import modules of ours inside a function, and why.
LATE = {
    "deploy.cli": "`rollcall --help` answers before torch and Ray are imported",
    "deploy": "`import rollcall.deploy` costs nothing until something of it is called",
    "learners.loop.learner": "sharding imports torch's FSDP: seconds, for those who shard",
    "reward_service.scorers.maths": "math-verify is an extra",
}
IMAGES = "deploy/docker"  # what images run beside the package; nobody imports it
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
# What is still broken: "rule: place". To be emptied, never to be added to.
KNOWN = frozenset(
    {
        "circle: cluster.store.run_lock",
        "circle: cluster.store.store",
        "circle: deploy.config.load",
        "circle: deploy.config.preference_config",
        "circle: deploy.drive.launch",
        "circle: deploy.drive.offline",
        "circle: deploy.drive.run_watch",
        "circle: deploy.drive.runs",
        "circle: deploy.kinds.control_parts",
        "circle: deploy.kinds.export",
        "circle: deploy.kinds.language_parts",
        "circle: deploy.kinds.parts",
        "circle: deploy.kinds.policies",
        "circle: deploy.kinds.preference_loop",
        "circle: deploy.kinds.preference_run",
        "circle: deploy.kinds.preference_runs",
        "circle: deploy.kinds.reward_train",
        "circle: deploy.kinds.text_preferences",
        "circle: deploy.kinds.warm_start",
        "circle: deploy.preferences.text_models",
        "circle: deploy.runtimes.on_ray.launch",
        "circle: deploy.runtimes.on_ray.members",
        "circle: deploy.runtimes.on_ray.processes",
        "circle: deploy.runtimes.on_ray.runtime",
        "circle: deploy.runtimes.serial_runtime",
        "circle: reward_service.scorers.combined",
        "circle: reward_service.service.scorer_config",
        "file: actors/engine/vllm_engine.py",
        "file: cluster/loop/coordinator.py",
        "file: cluster/store/store.py",
        "file: deploy/cli/main.py",
        "file: deploy/drive/runs.py",
        "file: learners/loop/learner.py",
        "floor: actors.envs.state -> actors.control.unroll",
        "floor: cluster.errors -> cluster.inputs.user_code",
        "floor: deploy.config.load -> deploy.rundir.earlier_runs",
        "floor: deploy.kinds.export -> deploy.drive.runs",
        "floor: deploy.kinds.init_from -> deploy.drive.runs",
        "floor: deploy.kinds.policies -> deploy.drive.runs",
        "floor: deploy.kinds.preference_loop -> deploy.drive.offline",
        "floor: deploy.kinds.preference_loop -> deploy.drive.runs",
        "floor: deploy.kinds.preference_run -> deploy.drive.offline",
        "floor: deploy.kinds.preference_runs -> deploy.drive.offline",
        "floor: deploy.kinds.preference_runs -> deploy.drive.runs",
        "floor: deploy.kinds.reward_train -> deploy.drive.offline",
        "floor: deploy.kinds.sft -> deploy.drive.runs",
        "floor: deploy.kinds.text_preferences -> deploy.drive.offline",
        "floor: deploy.kinds.text_preferences -> deploy.drive.runs",
        "floor: deploy.preferences.text_models -> deploy.kinds.export",
        "floor: deploy.rundir.resubmission -> deploy.drive.runs",
        "floor: learners.batches.control -> learners.loop.collective",
        "floor: learners.batches.language -> learners.loop.collective",
        "floor: learners.batches.preference_experience -> learners.loop.collective",
        "floor: learners.data.demonstrations -> learners.batches.token_batch",
        "floor: learners.data.demonstrations -> learners.loop.collective",
        "floor: learners.models.causal_model -> learners.batches.token_batch",
        "floor: learners.models.lora -> learners.loop.flat",
        "floor: learners.models.networks -> learners.batches.gym_batch",
        "floor: learners.models.normaliser -> learners.batches.gym_batch",
        "floor: learners.models.policy -> learners.loop.flat",
        "floor: learners.models.token_policy -> learners.batches.token_batch",
        "floor: reward_service.scheduling.batch_queue -> reward_service.service.refusals",
        "floor: reward_service.scheduling.batcher -> reward_service.service.metrics",
        "floor: reward_service.scheduling.batcher -> reward_service.service.refusals",
        "floor: reward_service.scheduling.cache -> reward_service.service.metrics",
        "floor: reward_service.scheduling.registry -> reward_service.service.metrics",
        "floor: reward_service.scheduling.registry -> reward_service.service.refusals",
        "floor: reward_service.scheduling.scoring -> reward_service.service.metrics",
        "floor: reward_service.scheduling.scoring -> reward_service.service.refusals",
        "floor: reward_service.scorers.combined -> reward_service.service.scorer_config",
        "function: actors/engine/vllm_engine.py __init__",
        "function: actors/envs/local_group.py step",
        "function: deploy/cli/main.py build_parser",
        "function: deploy/drive/runs.py carry_out",
        "late import: deploy.config.checks -> learners.models.networks",
        "late import: deploy.config.load -> deploy.config.preference_config",
        "late import: deploy.drive.launch -> deploy.drive.reward_launch",
        "late import: deploy.drive.launch -> deploy.runtimes.on_ray.launch",
        "late import: deploy.drive.launch -> deploy.runtimes.serial_runtime",
        "late import: deploy.drive.launch -> reward_service.labelling.routes",
        "late import: deploy.drive.launch -> reward_service.service.auth",
        "late import: deploy.drive.runs -> deploy.config.language_config",
        "late import: deploy.drive.runs -> deploy.drive.launch",
        "late import: deploy.drive.runs -> deploy.kinds.export",
        "late import: deploy.kinds.export -> deploy.drive.runs",
        "late import: deploy.kinds.export -> deploy.kinds.policies",
        "late import: deploy.kinds.export -> deploy.kinds.preference_runs",
        "late import: deploy.kinds.parts -> deploy.kinds.control_parts",
        "late import: deploy.kinds.parts -> deploy.kinds.language_parts",
        "late import: deploy.kinds.parts -> reward_service.client",
        "late import: deploy.kinds.policies -> deploy.kinds.language_parts",
        "late import: deploy.runtimes.on_ray.launch -> deploy.runtimes.on_ray.members",
        "late import: deploy.runtimes.on_ray.launch -> deploy.runtimes.on_ray.nodes",
        "late import: deploy.runtimes.on_ray.launch -> deploy.runtimes.on_ray.runtime",
        "late import: deploy.runtimes.on_ray.nodes -> actors.engine.vllm_engine",
        "late import: deploy.runtimes.on_ray.processes -> deploy.kinds.language_parts",
        "late import: deploy.tools.bench.gym -> deploy.report.recorders",
        "late import: deploy.tools.bench.weights -> deploy.runtimes.on_ray.cluster",
        "late import: deploy.tools.bench.weights -> deploy.runtimes.on_ray.weights",
        "late import: deploy.tools.bench.weights -> learners.models.tiny_model",
        "late import: deploy.tools.bench.weights -> learners.models.token_policy",
        "late import: deploy.tools.reward_label -> reward_service.service.config",
        "late import: deploy.tools.reward_label -> reward_service.service.server",
        "late import: reward_service.sandbox.jail -> reward_service.sandbox.jail_tests",
        "late import: reward_service.service.scorer_config -> reward_service.scorers.reward_model_scorer",
    }
)


@dataclass(frozen=True, order=True)
class Violation:
    """What was found; `known` is how KNOWN names it."""

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
        rules = (directions, floors, circles, late_imports, confined, sizes, folders)
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
        rooms = FLOORS[package].split()
        room = inside.split(".")[0]
        if not room:
            continue
        if room not in rooms:
            yield Violation("floor", module, f"give {room} its floor in FLOORS")
            continue
        for found in house.ours(module):
            other, _, there = found.name.partition(".")
            target = there.split(".")[0]
            if other == package and target in rooms and rooms.index(target) < rooms.index(room):
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
            if found.late and not _inside(module, LATE):
                yield Violation("late import", f"{module} -> {found.name}", "belongs at the top of the file")


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
    installed = {package.removeprefix("rollcall.") for package in setuptools["packages"]}
    there = {".".join(path.relative_to(house.root).parent.parts) for path in house.files.values()}
    for room in sorted(there):
        if room not in house.files or not ast.get_docstring(house.trees[room]):
            yield Violation("folder", room, "has no __init__.py with a docstring that says what is in it")
        if room not in installed:
            yield Violation("folder", room, "is not among pyproject's packages, and would not be installed")
    for room in sorted(installed - there):
        yield Violation("folder", room, "is among pyproject's packages, and has no code")


def test_the_house_keeps_its_rules() -> None:
    found = House(ROOT).violations()
    broken = "\n".join(str(violation) for violation in sorted(found) if violation.known not in KNOWN)
    assert not broken, f"the rules of the house (CONTRIBUTING.md) are broken:\n{broken}"


# A small tree without a fault, and what each fault looks like in it: (files that differ, what is found).
SOUND: Mapping[str, str] = {
    **{f"{package}/__init__.py": '"""A room."""\n' for package in ALLOWED},
    "cluster/errors.py": "class Refused(Exception): ...\n",
    "cluster/seeds.py": "",
    "deploy/cli/__init__.py": '"""Commands."""\n',
    "deploy/cli/main.py": "def main():\n    from rollcall.deploy.config import load\n",
    "deploy/config/__init__.py": '"""Settings."""\n',
    "deploy/config/load.py": "from rollcall.cluster.errors import Refused\n",
    "pyproject.toml": "[tool.setuptools]\n"
    f"packages = {[f'rollcall.{room}' for room in [*ALLOWED, 'deploy.cli', 'deploy.config']]}\n",
}
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
FAULTS: Mapping[str, tuple[Mapping[str, str], set[str]]] = {
    "a package that imports upwards": (
        {"cluster/seeds.py": "import rollcall.deploy"},
        {"direction: cluster.seeds -> rollcall.deploy"},
    ),
    "the same by its name alone": (
        {"cluster/seeds.py": "from rollcall import deploy"},
        {"direction: cluster.seeds -> rollcall.deploy"},
    ),
    "a bare import": ({"deploy/config/load.py": "import cluster"}, {"bare import: deploy.config.load -> cluster"}),
    "a relative import": ({"deploy/config/load.py": "from . import x"}, {"relative import: deploy.config.load"}),
    "a room that imports one above it": (
        {"deploy/config/load.py": "from rollcall.deploy.cli import commands"},
        {"floor: deploy.config.load -> deploy.cli"},
    ),
    "a room that has no floor": ({"cluster/extra.py": ""}, {"floor: cluster.extra"}),
    "a circle": (
        {"cluster/seeds.py": "import rollcall.cluster.errors", "cluster/errors.py": "import rollcall.cluster.seeds"},
        {"circle: cluster.seeds", "circle: cluster.errors", "floor: cluster.seeds -> cluster.errors"},
    ),
    "a circle through a function and a type": (
        {
            "deploy/cli/main.py": "def f():\n    from rollcall.deploy.cli import other",
            "deploy/cli/other.py": f"{TYPES}from rollcall.deploy.cli.main import f",
        },
        {"circle: deploy.cli.main", "circle: deploy.cli.other"},
    ),
    "an import of ours inside a function": (
        {"deploy/config/load.py": "def f():\n    import rollcall.cluster.errors"},
        {"late import: deploy.config.load -> cluster.errors"},
    ),
    "Ray outside deploy": ({"cluster/seeds.py": "import ray.util"}, {"confined: cluster.seeds -> ray.util"}),
    "vLLM outside its room": ({"deploy/config/load.py": "import vllm"}, {"confined: deploy.config.load -> vllm"}),
    "a long file": ({"cluster/seeds.py": "\n" * 351}, {"file: cluster/seeds.py"}),
    "a long function": (
        {"cluster/seeds.py": "async def f():\n" + "    x = 1\n" * 60},
        {"function: cluster/seeds.py f"},
    ),
    "a folder without a docstring": ({"deploy/cli/__init__.py": "x = 1"}, {"folder: deploy.cli"}),
    "a folder that is not installed": (
        {"deploy/tools/__init__.py": '"""A room."""'},
        {"folder: deploy.tools"},
    ),
    "a package without code": (
        {"pyproject.toml": SOUND["pyproject.toml"].replace("= [", "= ['rollcall.gone', ")},
        {"folder: gone"},
    ),
}


def small_house(folder: Path, differing: Mapping[str, str]) -> House:
    for name, text in {**SOUND, **differing}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return House(folder)


def test_a_sound_tree_breaks_no_rule(tmp_path: Path) -> None:
    assert small_house(tmp_path, {}).violations() == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_broken_rule_is_found(fault: str, tmp_path: Path) -> None:
    differing, expected = FAULTS[fault]
    assert {violation.known for violation in small_house(tmp_path, differing).violations()} == expected


def test_messages_import_neither_ray_nor_torch() -> None:
    code = "import sys, rollcall.cluster.messages.records; sys.exit(bool({'ray', 'torch'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_parameter_servers_process_imports_no_torch() -> None:
    code = "import sys, rollcall.deploy.runtimes.on_ray.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_packages_cannot_be_imported_bare() -> None:
    code = "import actors"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd="/", timeout=60, check=False)
    assert b"ModuleNotFoundError" in process.stderr
