"""Whether a control run can begin with another one's weights."""

from __future__ import annotations

from pathlib import Path

from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.control.policy import LoadedControl
from rollcall.deploy.kinds.control.policy_fit import misfit_between


def misfit_of(config: RunConfig, loaded: LoadedControl) -> str:
    """Why the loaded policy is none of the new run; empty when it is."""
    members = ControlFactory(config, Path().resolve())
    return misfit_between(config.policy, loaded, lambda: members.spaces, members.models)
