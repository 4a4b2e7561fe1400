"""The sources keep the rules of the house (house.py), and each rule is broken once in a small tree, to see that it is
noticed. `make check` runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.house import ALLOWED, House

ROOT = Path(__file__).resolve().parents[1]


def test_the_house_keeps_its_rules() -> None:
    found = House(ROOT).violations()
    broken = "\n".join(str(violation) for violation in sorted(found))
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
    "a room of too many tests": (
        {"tests/deploy/__init__.py": "", **{f"tests/deploy/test_{n}.py": "" for n in range(25)}},
        {"room: tests/deploy"},
    ),
    "a folder of tests that is no package": ({"tests/deploy/test_plan.py": ""}, {"folder: tests/deploy"}),
    "a room of too many files": ({f"deploy/config/part_{n}.py": "" for n in range(24)}, {"room: deploy.config"}),
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
    records = "rollcall.cluster.messages.experience, rollcall.cluster.messages.weights"
    code = f"import sys, {records}; sys.exit(bool({{'ray', 'torch'}} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_parameter_servers_process_imports_no_torch() -> None:
    code = "import sys, rollcall.deploy.runtimes.on_ray.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_packages_cannot_be_imported_bare() -> None:
    code = "import actors"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd="/", timeout=60, check=False)
    assert b"ModuleNotFoundError" in process.stderr
