"""What the documents name exists: paths, modules, links, make targets; and what is for other programs says the same as
the rest of the repository. `make check` runs it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "actors", "learners", "reward_service", "deploy")
# Not the changelog and the results: they speak of what was.
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md", ROOT / "docs" / "results.md"})
_PATH = re.compile(rf"(?<![\w./$-])(?:{'|'.join((*PACKAGES, 'tests', 'benchmarks', 'docs'))})/[\w./*-]*")
_MODULE = re.compile(r"\brollcall(?:\.\w+)+")
_FILE = re.compile(r"`(\w+\.(?:py|lua))`")
_MADE_BY_USERS = ("deploy/k8s/secrets/", "deploy/k8s/overlays/mine")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`|^ {4,}(.+)$", re.MULTILINE)
_TARGET = re.compile(r"(?:^|\s)make ((?:[a-z]+ ?)+)")


def unknown(text: str, page: Path, root: Path = ROOT) -> Iterator[str]:
    """What a page names and the tree below `root` does not have."""
    for found in _PATH.findall(_LINK.sub("]", text)):
        name = found.rstrip("./")
        if not name.startswith(_MADE_BY_USERS) and not (
            any(root.glob(name)) if "*" in name else (root / name).exists()
        ):
            yield f"path {name}"
    for name in _MODULE.findall(text):
        if not _is_module(name.split(".")[1:], root):
            yield f"module {name}"
    for name in _FILE.findall(text):
        if not any(file for folder in (*PACKAGES, "tests") for file in (root / folder).rglob(name)):
            yield f"file {name}"
    for link in _LINK.findall(text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if "://" in link:
            continue
        if not target.exists():
            yield f"link {link}"
        elif anchor and anchor not in _anchors(target.read_text()):
            yield f"heading {link}"
    known = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    for code in _CODE.findall(text):
        for targets in _TARGET.findall("".join(code)):
            yield from (f"make {target}" for target in targets.split()[:1] if target not in known)


def _is_module(parts: list[str], root: Path) -> bool:
    """Whether these are a module, or one name in a module."""
    if len(parts) == 1 and re.search(rf"\b{parts[0]}\b", (root / "deploy" / "package" / "__init__.py").read_text()):
        return True  # of `rollcall` itself
    path = root.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    holders = (path.parent.with_suffix(".py"), path.parent / "__init__.py")
    return any(holder.exists() and re.search(rf"\b{parts[-1]}\b", holder.read_text()) for holder in holders)


def _anchors(text: str) -> set[str]:
    """As the usual forges make them of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert list(unknown(page.read_text(), page)) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("in `cluster/gone.py`", "path cluster/gone.py"),
        ("in deploy/k8s/gone.", "path deploy/k8s/gone"),
        ("all of `tests/gone_*.py`", "path tests/gone_*.py"),
        ("`rollcall.deploy.gone`", "module rollcall.deploy.gone"),
        ("see `gone.py`", "file gone.py"),
        ("[here](docs/gone.md)", "link docs/gone.md"),
        ("[here](README.md#gone)", "heading README.md#gone"),
        ("`make gone`", "make gone"),
        ("    make gone   # a block of code", "make gone"),
    ],
)
def test_what_does_not_exist_is_found(text: str, missing: str) -> None:
    assert list(unknown(text, ROOT / "README.md")) == [missing]


def test_what_exists_is_not() -> None:
    text = "[a](docs/design.md), `rollcall.deploy.train`, `cluster/messages/`, tests/*.py; `make check`, they make do"
    assert list(unknown(text, ROOT / "README.md")) == []


def test_the_architecture_is_one_page() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 100
    rooms = {path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    unnamed = [room.name for room in sorted(rooms) if f"`{room.name}`" not in text and f"/{room.name}`" not in text]
    assert not unnamed, f"ARCHITECTURE.md says nothing of {unnamed}"


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_every_package_says_that_it_is_typed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()
        assert "py.typed" in data[f"rollcall.{package}"]


@pytest.mark.parametrize("name", ["check", "proofs"])
def test_workflows_may_only_read_and_run_what_exists(name: str) -> None:
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for job in workflow["jobs"].values():
        assert "permissions" not in job and job["timeout-minutes"] < 360
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v1"))
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert not list(unknown("\n".join(f"`{command}`" for command in commands), path))
        for proof in job.get("strategy", {}).get("matrix", {}).get("proof", ()):
            module = proof.split()[0]
            assert module == "pytest" or ROOT.joinpath(*module.split(".")).with_suffix(".py").exists()


def test_hooks_before_a_commit_download_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert all(hook["language"] == "system" for hook in hooks)
    assert {hook["entry"].split()[0] for hook in hooks} <= {"make", ".venv/bin/ruff", ".venv/bin/python"}
