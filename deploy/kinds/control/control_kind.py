"""Control: a policy network learns to act in a gymnasium env, from what actors do there. A recipe with an env."""

from __future__ import annotations

from functools import partial

from rollcall.actors.envs.environment import spaces_of
from rollcall.deploy.config import plugins
from rollcall.deploy.config.checks import Problem, check_env, check_settings
from rollcall.deploy.config.run_config import RunConfig
from rollcall.deploy.kinds.control.beginning import misfit_of
from rollcall.deploy.kinds.control.experts import unfit
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.control.policy import LoadedControl, elsewhere
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.report.closing import eval_line, online_lines
from rollcall.deploy.report.counted import ENV_STEPS
from rollcall.deploy.report.live_view import online_console


def problems_of(config: RunConfig, *, scored: bool = False) -> list[Problem]:
    """In the settings of a run with an env and a policy network. `scored`: by the reward service, whatever they say."""
    scored = scored or config.preferences is not None or config.reward is not None
    return check_settings(config) or check_env(config.env, config.policy, config.build_algorithm(), scored=scored)


CONTROL = RunKind(
    name="control",
    config=RunConfig,
    counts=ENV_STEPS,
    make=lambda config, run_directory: ControlFactory(config, run_directory.resolve()),
    load=LoadedControl.of,
    elsewhere=elsewhere,
    closing_lines=partial(online_lines, ENV_STEPS),
    console=online_console,
    eval_line=eval_line,
    policy="network",
    misfit=misfit_of,
    unfit_expert=lambda config, loaded: unfit(loaded, spaces_of(config.env)),
    problems=problems_of,
    fits=lambda algorithm: not plugins.is_language(algorithm),
)
