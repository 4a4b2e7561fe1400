"""Language: a language model learns from what it writes in answer to a task's prompts. A recipe with a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.deploy.config.kinds.language import SETTINGS
from rollcall.deploy.config.language_checks import check_language
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.policy import LoadedLanguage, misfit_of
from rollcall.deploy.report.closing import eval_line, online_lines, policy_line
from rollcall.deploy.report.counted import TOKENS
from rollcall.deploy.report.live_view import online_console
from rollcall.deploy.rundir.files import POLICY


def elsewhere(run_directory: Path) -> str:
    return (
        f"{run_directory}: a language run: transformers loads its policy from {run_directory / POLICY} "
        f"(rollcall export {run_directory} writes it)"
    )


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    return online_lines(TOKENS, summary, run_directory) + policy_line(summary, run_directory)


LANGUAGE = RunKind(
    settings=SETTINGS,
    counts=TOKENS,
    make=lambda config, run_directory: LanguageFactory(config, run_directory.resolve()),
    load=LoadedLanguage.of,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=online_console,
    unfit=check_language,
    eval_line=eval_line,
    policy="language model",
    exportable=True,
    misfit=misfit_of,
    exports=True,
)
