"""Every command that a page shows is run as it stands on the page, or said not to be: those of docs/ here, in the order
of the page, in an empty folder, made shorter by settings at their end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollcall.deploy.cli.completion import commands_of
from rollcall.deploy.cli.main import build_parser
from rollcall.deploy.config.catalogue.known_settings import refuse_unknown
from rollcall.deploy.config.settings import preference_recipes, shipped_recipes
from tests import ROOT
from tests.deploy.drive.design.coding_server import UPRIGHT, CodingServer, answer
from tests.deploy.tools.manifests.manifest_builds import built
from tests.needs import needs, require
from tests.pages.blocks import NAMES, blocks, commands, inline_commands, program_of, sort_of
from tests.pages.control_lines import CONTROL, LONG
from tests.pages.elsewhere import NOT_HERE, WHOLE
from tests.pages.language_lines import ENGINE, LANGUAGE
from tests.pages.running import Elsewhere, Line, Page, carry_out, home_of_its_own

TABLES = (CONTROL, LONG, LANGUAGE, ENGINE, NOT_HERE)


def entries(name: str) -> Iterator[tuple[str, Line | Elsewhere]]:
    for table in TABLES:
        if name in table:
            yield from table[name].lines.items()


def any_to_run(page: Page) -> bool:
    return any(isinstance(line, Line) for line in page.lines.values())


# What is said of each command.


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_is_run_or_said_not_to_be(name: str) -> None:
    """Both ways: nothing is said of a command that the page no longer has."""
    known = [command for command, _ in entries(name)]
    if name in WHOLE:
        assert not known
        return
    assert len(known) == len(set(known)), "once each"
    assert sorted(commands(name)) == sorted(known)


def test_nothing_is_said_of_pages_that_there_are_not() -> None:
    assert {*WHOLE, *(name for table in TABLES for name in table)} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_a_page_is_of_a_sort_that_is_tested(name: str) -> None:
    """What is none of them, formulas and drawings, stands on few pages, and has no line that begins with a program."""
    for block in blocks(name):
        place = f"{name}:{block.line}"
        if block.sort == "formula":
            assert name.startswith("docs/algorithms/") or name in ("ARCHITECTURE.md", "docs/design.md"), place
            assert not any(program_of(line) for line in block.text.splitlines()), place
        if block.sort == "commands":
            for command in commands(name).values():
                assert program_of(command.text), f"{name}:{command.line}: {command.text.split()[0]} is no program"


@pytest.mark.parametrize(
    ("text", "sort"),
    [
        ("rollcall train cartpole-ppo", "commands"),
        ("KEY=value ray job submit", "commands"),
        ("$ rollcall runs\nnone", "commands"),
        ("x = f(y)\nimport os", "python"),
        ("p * loss(chosen is better) + (1 - p) * loss(rejected is better)", "formula"),
        ("clipped:      E[ min(r A) ]", "formula"),
        ("algorithm: {name: dqn}\nreplay: {}", "yaml"),
        ('{"prompt": "2+2?"}', "json"),
        ("GET /v1/weights", "protocol"),
    ],
)
def test_what_a_block_is(text: str, sort: str) -> None:
    assert sort_of(text) == sort


def test_the_tests_that_are_named_there_are() -> None:
    for table in TABLES:
        for page in table.values():
            for line in page.lines.values():
                if isinstance(line, Elsewhere):
                    check_reason(line)
    for line in WHOLE.values():
        check_reason(line)


def check_reason(line: Elsewhere) -> None:
    assert len(line.why) > 15
    for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", line.why):
        assert (ROOT / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


def test_make_run_is_the_command_that_the_readme_shows() -> None:
    rules = re.findall(r"^run: .*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rules == ["rollcall train arithmetic-grpo"] and rules[0] in commands("README.md")


@needs("kubectl")
def test_what_kubectl_is_told_of_is_in_the_manifests() -> None:
    """kind/name, or kind name, and the namespace."""
    there = {(str(document["kind"]).lower(), document["metadata"]["name"]) for document in built("local")}
    there.add(("service", "rollcall-head-svc"))  # KubeRay makes it: the cluster's name and -head-svc
    text = "\n".join(commands("docs/kubernetes.md"))
    kinds = "rayjob|raycluster|statefulset|deployment|cronjob|service"
    named = re.findall(rf"\b({kinds})[/ ]([a-z-]+)", text)
    assert len(named) >= 6 and set(named) <= there, sorted(set(named) - there)
    assert set(re.findall(r"-n (\S+)", text)) == {"rollcall", "kuberay-system"} and ("namespace", "rollcall") in there


@pytest.mark.parametrize("name", NAMES)
def test_commands_within_sentences_are_ones_that_there_are(name: str) -> None:
    """Names, options, and settings of shipped recipes; placeholders stand for the rest."""
    root = build_parser()
    for text in inline_commands(name):
        words = shlex.split(text)[1:]
        if words[0].isupper() or "..." in words[-1]:
            continue
        parser = root
        for word in words:
            flag, below = word.partition("=")[0], commands_of(parser)
            if flag.startswith("--"):
                assert flag in parser._option_string_actions, f"{name}: {text}: there is no {flag}"
            elif below:
                assert word in below, f"{name}: {text}: there is no {word}"
                parser = below[word]
        settings = [word for word in words if "=" in word and not word.startswith("-")]
        if words[0] in ("train", "sft") and words[1:2] and words[1] in shipped_recipes() | preference_recipes():
            refuse_unknown(words[1], settings)


# The commands themselves.


@pytest.mark.parametrize("name", CONTROL)
def test_a_pages_commands_run_in_its_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page(name, CONTROL[name], tmp_path, monkeypatch, capsys)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, page in LONG.items() if any_to_run(page)])
def test_a_pages_longer_commands_run_in_its_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with CodingServer([answer(UPRIGHT)]) as server:
        monkeypatch.setenv("CODING_SERVER", server.url)
        monkeypatch.setenv("MY_KEY", "a-key")
        run_page(name, LONG[name], tmp_path, monkeypatch, capsys)
        assert name != "docs/reward_design.md" or "Bearer a-key" in server.keys


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_pages_commands_for_language_run_in_its_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page(name, LANGUAGE[name], tmp_path, monkeypatch, capsys)


@pytest.mark.long
@pytest.mark.parametrize("name", ENGINE)
def test_a_pages_commands_with_an_engine_run_in_its_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page(name, ENGINE[name], tmp_path, monkeypatch, capsys)


def run_page(
    name: str, page: Page, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require(*page.needs)
    home_of_its_own(folder, patch)
    page.prepare(folder)
    ran = 0
    for key, command in commands(name).items():
        line = page.lines.get(key)
        if isinstance(line, Line):
            carry_out(command, line, capsys, apart=page.apart)
            ran += 1
    assert ran
