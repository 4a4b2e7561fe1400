"""Language: a language model learns from what it writes in answer to a task's prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from rollcall.deploy.config import plugins
from rollcall.deploy.config.checks import Problem
from rollcall.deploy.config.language_checks import check_language
from rollcall.deploy.config.language_config import LanguageConfig
from rollcall.deploy.config.settings import KeyPath, Settings
from rollcall.deploy.config.validation import validated
from rollcall.deploy.kinds.kind import POLICY, StoredRun
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.policy import LoadedLanguage, misfit_of
from rollcall.deploy.report.closing import eval_line, online_lines, policy_line
from rollcall.deploy.report.counted import TOKENS
from rollcall.deploy.report.progress import online_console
from rollcall.deploy.report.recorders import Recorder

RENAMED: Mapping[KeyPath, KeyPath] = {("eval", "episodes"): ("eval", "num_rows")}


class LanguageKind:
    """A recipe with a task."""

    name = "language"
    config = LanguageConfig
    counts = TOKENS
    data = ""
    policy: Literal["language model"] = "language model"
    exports = True
    renamed = RENAMED

    def claims(self, tree: Mapping[str, Any]) -> bool:
        return "task" in tree

    def read(self, settings: Settings) -> LanguageConfig:
        return validated(settings, LanguageConfig)

    def problems(self, config: LanguageConfig) -> list[Problem]:
        return check_language(config)

    def fits(self, algorithm: type[Any]) -> bool:
        return plugins.is_language(algorithm)

    def elsewhere(self, run_directory: Path) -> str:
        return (
            f"{run_directory}: a language run: transformers loads its policy from {run_directory / POLICY} "
            f"(rollcall export {run_directory} writes it)"
        )

    def misfit(self, config: LanguageConfig, loaded: LoadedLanguage) -> str:
        return misfit_of(config, loaded)

    def load(self, run: StoredRun) -> LoadedLanguage:
        return LoadedLanguage.of(run)

    def make(self, config: LanguageConfig, run_directory: Path) -> LanguageFactory:
        return LanguageFactory(config, run_directory.resolve())

    def console(self, stream: TextIO, *, live: bool) -> Recorder:
        return online_console(stream, live=live)

    def closing_lines(self, summary: Mapping[str, Any], run_directory: Path) -> list[str]:
        return online_lines(summary, run_directory, self.counts) + policy_line(summary, run_directory)

    def eval_line(self, result: Mapping[str, Any]) -> str:
        return eval_line(result)


LANGUAGE = LanguageKind()
