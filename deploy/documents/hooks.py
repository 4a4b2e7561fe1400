"""What MkDocs calls while it builds the site (mkdocs.yml names this file): generated pages, the pages of the top level,
and links that are right in the repository made right in the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from rollcall.deploy.cli.main import build_parser
from rollcall.deploy.documents.commands_page import commands_page
from rollcall.deploy.documents.python_page import python_page
from rollcall.deploy.documents.settings_page import settings_page

ROOT = Path(__file__).resolve().parents[2]
# Pages of the top level, and what they are called in the site. The README is its first page.
TOP_LEVEL = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def generated() -> dict[str, str]:
    """Pages that are made of the code, by their place in the site."""
    return {
        "reference/configuration.md": settings_page(),
        "reference/commands.md": commands_page(build_parser()),
        "reference/python.md": python_page(),
    }


def on_files(files: Any, config: Any) -> Any:
    """MkDocs': the files of docs/, to which the others are added."""
    from mkdocs.structure.files import File

    pages = generated() | {goal: (ROOT / source).read_text() for source, goal in TOP_LEVEL.items()}
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs': the text of each page before it becomes HTML."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, place: str) -> str:
    """Links as they are right for a page at `place` of the site. One to a file that is no page of it (source code, say)
    becomes that file's path."""
    at_top = next((source for source, goal in TOP_LEVEL.items() if goal == place), None)
    folder = "" if at_top else posixpath.dirname(f"docs/{place}")

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path or target.startswith("mailto:"):
            return found.group()
        there = posixpath.normpath(posixpath.join(folder, path))
        goal = TOP_LEVEL.get(there)
        if goal is None and there.startswith("docs/"):
            goal = there.removeprefix("docs/")
        if goal is None:
            return f"{text} (`{there}`)" if text.strip("`") != there else f"`{there}`"
        relative = posixpath.relpath(goal, posixpath.dirname(place) or ".")
        return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, markdown)
