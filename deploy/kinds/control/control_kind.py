"""Control: a policy network learns to act in a gymnasium env, from what actors do there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from rollcall.deploy.config import plugins
from rollcall.deploy.config.checks import Problem, check_env, check_settings
from rollcall.deploy.config.run_config import RunConfig
from rollcall.deploy.config.settings import KeyPath, Settings
from rollcall.deploy.config.validation import validated
from rollcall.deploy.kinds.control.beginning import misfit_of
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.control.policy import LoadedControl, elsewhere
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.report.closing import eval_line, online_lines
from rollcall.deploy.report.counted import ENV_STEPS
from rollcall.deploy.report.progress import online_console
from rollcall.deploy.report.recorders import Recorder


class ControlKind:
    """A recipe with an env."""

    name = "control"
    config = RunConfig
    counts = ENV_STEPS
    data = ""
    policy: Literal["network"] = "network"
    exports = False
    renamed: Mapping[KeyPath, KeyPath] = {}

    def claims(self, tree: Mapping[str, Any]) -> bool:
        return "env" in tree

    def read(self, settings: Settings) -> RunConfig:
        return validated(settings, RunConfig)

    def problems(self, config: RunConfig) -> list[Problem]:
        return check_settings(config) or check_env(config)

    def fits(self, algorithm: type[Any]) -> bool:
        return not plugins.is_language(algorithm)

    def elsewhere(self, run_directory: Path) -> str:
        return elsewhere(run_directory)

    def misfit(self, config: RunConfig, loaded: LoadedControl) -> str:
        return misfit_of(config, loaded)

    def load(self, run: StoredRun) -> LoadedControl:
        return LoadedControl.of(run)

    def make(self, config: RunConfig, run_directory: Path) -> ControlFactory:
        return ControlFactory(config, run_directory.resolve())

    def console(self, stream: TextIO, *, live: bool) -> Recorder:
        return online_console(stream, live=live)

    def closing_lines(self, summary: Mapping[str, Any], run_directory: Path) -> list[str]:
        return online_lines(summary, run_directory, self.counts)

    def eval_line(self, result: Mapping[str, Any]) -> str:
        return eval_line(result)


CONTROL = ControlKind()
