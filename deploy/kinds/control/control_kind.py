"""Control: a policy network learns to act in a gymnasium env, from what actors do there. A recipe with an env."""

from __future__ import annotations

from functools import partial

from rollcall.actors.envs.environment import spaces_of
from rollcall.deploy.config.checks import check_device, check_env
from rollcall.deploy.config.kinds.control import SETTINGS
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.control.beginning import misfit_of
from rollcall.deploy.kinds.control.experts import unfit
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.control.policy import LoadedControl, elsewhere
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.report.closing import eval_line, online_lines
from rollcall.deploy.report.counted import ENV_STEPS
from rollcall.deploy.report.live_view import online_console


def unfit_of(config: RunConfig, *, scored: bool = False) -> list[Problem]:
    """Of a run with an env and a policy network. `scored`: by the reward service, whatever its settings say."""
    scored = scored or config.preferences is not None or config.reward is not None
    return check_device(config) or check_env(config.env, config.policy, config.build_algorithm(), scored=scored)


CONTROL = RunKind(
    settings=SETTINGS,
    counts=ENV_STEPS,
    make=lambda config, run_directory: ControlFactory(config, run_directory.resolve()),
    load=LoadedControl.of,
    elsewhere=elsewhere,
    closing_lines=partial(online_lines, ENV_STEPS),
    console=online_console,
    unfit=unfit_of,
    eval_line=eval_line,
    policy="network",
    exportable=True,
    misfit=misfit_of,
    unfit_expert=lambda config, loaded: unfit(loaded, spaces_of(config.env)),
)
