"""The documentation site: it builds without a warning, its generated pages have everything, and what the tutorials and
the migration pages say is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import BaseModel

from rollcall.deploy.cli.main import build_parser
from rollcall.deploy.config import plugins
from rollcall.deploy.documents.commands_page import commands_page
from rollcall.deploy.documents.hooks import relinked
from rollcall.deploy.documents.python_page import PUBLIC, python_page
from rollcall.deploy.documents.settings_page import _rows, settings_page
from rollcall.deploy.kinds.registry import KINDS
from tests import ROOT
from tests.needs import needs, require

DOCS = ROOT / "docs"


class Links(HTMLParser):
    """A page's links and the anchors that it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and (link := found.get("href")):
            self.links.add(link)


@needs("mkdocs")
def test_the_site_builds_without_a_warning_and_no_link_inside_is_broken(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error::SyntaxWarning",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's, of a successor
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    pages = {path.resolve(): Links(path.read_text()) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 50
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("/") or path.name == "404.html":
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            there = pages.get(target)
            if (there is None and not target.exists()) or (
                there is not None and parts.fragment and unquote(parts.fragment) not in there.anchors
            ):
                broken.append(f"{path.relative_to(tmp_path)}: {link}")
    assert not broken


def settings() -> dict[str, str]:
    """Every setting of every kind of run and of every plug-in, and the model that it stands in."""
    found: dict[str, str] = {}
    models: list[tuple[type[BaseModel], str]] = [(kind.config, "") for kind in KINDS]
    for plugin, section in (
        (plugins.ALGORITHM, "algorithm."),
        (plugins.DIRECT_METHOD, "algorithm."),
        (plugins.TASK, "task."),
    ):
        models += [(plugins.find(plugin, name).Config, section) for name in plugins.shipped(plugin)]
    for model, prefix in models:
        for row, _ in _rows(model, prefix):
            found[row.partition(": ")[0]] = model.__name__
    return found


def test_the_configuration_page_has_every_setting_with_what_it_does() -> None:
    page = settings_page()
    known = settings()
    assert {
        "learner.learning_rate",
        "actors.engine.max_model_len",
        "algorithm.gae_lambda",
        "task.judge",
    } <= known.keys()
    assert [name for name in known if f"`{name}`" not in page] == []
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(line.count("|") - line.count("\\|") == 5 for line in lines)
    undescribed = [line.split("|")[1] for line in lines if line.replace("\\|", "").split("|")[4].strip() == ""]
    assert len(undescribed) < 0.15 * len(lines), undescribed


def test_the_pages_of_commands_and_python_have_all_that_there_is() -> None:
    commands, python = commands_page(build_parser()), python_page()
    assert {f"## rollcall {name}" for name in ("train", "eval", "export", "reward serve", "bench gym")} <= set(
        commands.splitlines()
    )
    assert "`--onnx FILE`" in commands
    for _, _, names in PUBLIC:
        assert all(f"### {name}" in python for name in names)


@pytest.mark.parametrize(
    ("place", "markdown", "expected"),
    [
        ("index.md", "[a](docs/data.md#rows)", "[a](data.md#rows)"),
        ("index.md", "[a](ARCHITECTURE.md)", "[a](architecture.md)"),
        ("migration/trl.md", "[a](../data.md)", "[a](../data.md)"),
        ("algorithms/ppo.md", "[a](../../ARCHITECTURE.md#x)", "[a](../architecture.md#x)"),
        ("data.md", "[files](../reward_service/preferences/files.py)", "files (`reward_service/preferences/files.py`)"),
        ("data.md", "[a](#here) [b](https://x.y)", "[a](#here) [b](https://x.y)"),
        ("index.md", "![c](docs/algorithms/curves/x.svg)", "![c](algorithms/curves/x.svg)"),
    ],
)
def test_links_of_the_repository_become_the_sites(place: str, markdown: str, expected: str) -> None:
    assert relinked(markdown, place) == expected


@pytest.mark.parametrize("page", ["migration/sb3", "migration/trl", "troubleshooting", "tracking", "data"])
def test_settings_that_a_page_names_exist(page: str) -> None:
    known = settings()
    sections = {name.rpartition(".")[0] for name in known} | {name.split(".")[0] for name in known}
    roots = {name.split(".")[0] for name in known if "." in name}
    files = (".jsonl", ".load", ".save")  # names of files and of others' functions
    named = {
        found
        for code in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)\b[^`]*`", (DOCS / f"{page}.md").read_text())
        if (found := code).split(".")[0] in roots and not found.endswith(files)
    }
    assert named, page
    assert sorted(name for name in named if name not in known and name not in sections) == []


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """(language, title, content) of each fenced block, in order."""
    pattern = r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$"
    yield from re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("name", ["control", "language"])
def test_a_tutorials_commands_run_in_their_order_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    if name == "language":
        require("vllm", "transformers", "peft")
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ran = 0
    for language, title, content in blocks(DOCS / "start" / f"tutorial-{name}.md"):
        if title:
            (tmp_path / title).write_text(content)
        elif language == "bash":
            for command in content.strip().splitlines():
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
                assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
                ran += 1
    assert ran >= 7


def test_the_documents_own_task_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class on the page of tasks, loaded as a recipe would."""
    (content,) = (content for language, _, content in blocks(DOCS / "tasks.md") if language == "python")
    (tmp_path / "my_task.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_task", None)
    found = plugins.find(plugins.TASK, "my_task:Capitals")
    task = found(found.Config())
    row = task.rows("train")[0]
    assert task.judge(row, "It is Paris.").correct and not task.judge(row, "Rome").correct


@pytest.mark.long
@pytest.mark.parametrize("name", ["control", "language"])
def test_a_notebooks_cells_run_in_their_order(name: str, tmp_path: Path) -> None:
    """As a kernel would run them: one module, which nobody imports again."""
    if name == "language":
        require("vllm", "transformers")
    notebook = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 3
    runner = "import json, sys\nfor cell in json.loads(sys.argv[1]):\n    exec(cell, globals())"
    done = subprocess.run(
        [sys.executable, "-c", runner, json.dumps(cells)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
