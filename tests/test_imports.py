"""Who may import whom, read from the source: deploy -> all; actors, learners -> cluster; cluster -> nobody."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "cluster": {"cluster"},
    "reward_service": {"reward_service", "cluster"},
    "actors": {"actors", "cluster", "reward_service"},
    "learners": {"learners", "cluster"},
    "deploy": {"deploy", "actors", "learners", "cluster", "reward_service"},
}
# Packages that only one room may know, by the names of what they import.
CONFINED = {"ray": {"deploy"}, "vllm": {"actors"}, "fastapi": {"reward_service"}}
SOURCES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_one_direction(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] not in ALLOWED, f"{path} imports the bare {module}: write rollcall.{module}"
        if parts[0] == "rollcall":
            assert len(parts) > 1 and parts[1] in ALLOWED[package], f"{package} must not import {module}"
        if parts[0] in CONFINED:
            assert package in CONFINED[parts[0]], f"{package} must not import {module}"


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
