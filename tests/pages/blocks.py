"""The blocks of code of a page, and the commands in them: read from the page, never copied."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from rollcall.deploy.config.catalogue import known_settings
from tests import ROOT

Sort = Literal["commands", "python", "yaml", "json", "protocol", "formula"]

PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "CHANGELOG.md"})
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# What lines of commands begin with. A line that begins with anything else in a block of commands is an error of the
# page, or a program that has to be named here.
PROGRAMS = (
    *("rollcall", ".venv/bin/rollcall", "ray", "make", "pip", "python", "python3", ".venv/bin/python"),
    *(".venv/bin/pre-commit", ".", "source", "export", "tail", "ls", "node", "tensorboard", "vllm", "docker", "helm"),
    *("kubectl", "deploy/k8s/secrets/make.sh"),
)
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# As Markdown has it: indented lines after an empty one; empty lines between two of them belong to it.
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)(?:(?: {4}.*\n)|(?:\n(?= {4})))*")
ROOTS = {one["setting"].partition(".")[0] for one in json.loads(known_settings.FILE.read_text())["settings"]}
_FENCED_SORTS: dict[str, Sort] = {"bash": "commands", "python": "python", "yaml": "yaml", "json": "json"}
# Before the program: a variable for it, a bracket of a subshell, the prompt of a dialogue.
_BEFORE = re.compile(r"^(?:\$ |\(umask \d+; |[A-Z_]+=\S+ )*")


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of the page, counted from 1
    title: str  # of a fenced block: the file that it is
    text: str
    sort: Sort


@dataclass(frozen=True)
class Command:
    """A line of commands as it would be typed, without its comment; one that goes on in the next line is one."""

    page: str
    line: int
    text: str
    answer: tuple[str, ...] | None = None  # of a dialogue ("$ ..."): the lines that it prints


def blocks(name: str) -> list[Block]:
    text = (ROOT / name).read_text()
    found = []
    for match in _FENCE.finditer(text):
        language, title, inner = match.groups()
        sort = _FENCED_SORTS.get(language) or sort_of(inner)
        found.append(Block(name, _line(text, match.start(3)), title or "", inner, sort))
    plain = _FENCE.sub(lambda match: re.sub(r"[^\n]+", "x", match.group()), text)
    for match in _INDENTED.finditer(plain):
        inner = re.sub(r"^ {4}", "", match.group(), flags=re.MULTILINE)
        found.append(Block(name, _line(plain, match.start()), "", inner, sort_of(inner)))
    return sorted(found, key=lambda block: block.line)


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def sort_of(text: str) -> Sort:
    first = text.splitlines()[0]
    if program_of(first):
        return "commands"
    if re.match(r"(?:GET|POST) /", first):
        return "protocol"
    if first.startswith('{"'):
        return "json"
    if _is_python(text):
        return "python"
    return "yaml" if _is_yaml(text) else "formula"


def program_of(line: str) -> str:
    """The program that a line begins with, or nothing where it begins with none of them."""
    words = _BEFORE.sub("", line).split()
    return words[0] if words and words[0] in PROGRAMS else ""


def _is_python(text: str) -> bool:
    with suppress(SyntaxError):
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        tree = ast.parse(text)
        return any(isinstance(node, kinds) for node in tree.body) or "rollcall." in text
    return False


def _is_yaml(text: str) -> bool:
    with suppress(yaml.YAMLError):
        return all(set(fragment) <= ROOTS or "apiVersion" in fragment for fragment in fragments(text))
    return False


def fragments(text: str) -> list[dict[str, Any]]:
    """The YAML documents of a block: where a key of the first level comes again, the next one begins."""
    parts: list[list[str]] = [[]]
    seen: set[str] = set()
    for line in text.splitlines():
        key = re.match(r"(\w+):", line)
        if key and key.group(1) in seen:
            parts.append([])
            seen.clear()
        if key:
            seen.add(key.group(1))
        parts[-1].append(line)
    found = [yaml.safe_load("\n".join(part)) for part in parts]
    if not all(isinstance(fragment, dict) for fragment in found):
        raise yaml.YAMLError("no mapping")
    return found


def json_values(text: str) -> list[Any]:
    """The JSON values of a block, one after the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        value, place = decoder.raw_decode(text, place)
        found.append(value)
        place += len(text[place:]) - len(text[place:].lstrip())
    return found


def commands(name: str) -> dict[str, Command]:
    """All commands of a page in its order, by what they say: the second that says the same has " (2)" behind it."""
    found: dict[str, Command] = {}
    for block in blocks(name):
        for command in commands_of(block) if block.sort == "commands" else ():
            number = sum(other.text == command.text for other in found.values()) + 1
            found[command.text if number == 1 else f"{command.text} ({number})"] = command
    return found


def commands_of(block: Block) -> Iterator[Command]:
    lines = block.text.split("\n")
    at = 0
    while at < len(lines):
        begun = at
        text = lines[at]
        while text.endswith("\\"):
            at += 1
            text = text.removesuffix("\\").rstrip() + " " + lines[at].strip()
        at += 1
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        answer = None
        if text.startswith("$ "):
            answer = []
            while at < len(lines) and lines[at] and not lines[at].startswith("$ "):
                answer.append(lines[at])
                at += 1
        said = None if answer is None else tuple(answer)
        yield Command(block.page, block.line + begun, _without_comment(text.removeprefix("$ ")), said)


def _without_comment(text: str) -> str:
    return " ".join(re.sub(r"(?:^|\s)#.*", "", text).split())


def inline_commands(name: str) -> Iterator[str]:
    """Commands within the prose: `rollcall ...` between backticks, over line ends too."""
    prose = _INDENTED.sub("", _FENCE.sub("", (ROOT / name).read_text()))
    for code in re.findall(r"`(rollcall [^`]+)`", prose):
        yield " ".join(code.split())
