"""The kinds of runs there are. The one list of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollcall.deploy.config.claims import kind_named
from rollcall.deploy.kinds.control.control_kind import CONTROL
from rollcall.deploy.kinds.control.design_kind import DESIGN
from rollcall.deploy.kinds.control.offline_kind import OFFLINE
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.kinds.language.language_kind import LANGUAGE
from rollcall.deploy.kinds.language.supervised import SUPERVISED
from rollcall.deploy.kinds.preferences.direct import DIRECT
from rollcall.deploy.kinds.preferences.reward_model import REWARD_MODEL
from rollcall.deploy.kinds.selection.constitutional import CONSTITUTIONAL
from rollcall.deploy.kinds.selection.expert_iteration import EXPERT_ITERATION
from rollcall.deploy.kinds.tabular.bandit import BANDIT
from rollcall.deploy.kinds.tabular.table import TABULAR

KINDS: tuple[RunKind, ...] = (
    DESIGN,
    DIRECT,
    REWARD_MODEL,
    SUPERVISED,
    EXPERT_ITERATION,
    CONSTITUTIONAL,
    LANGUAGE,
    OFFLINE,
    BANDIT,
    TABULAR,
    CONTROL,
)


def kind_of(tree: Mapping[str, Any]) -> RunKind:
    """Of a recipe, or of a run's config.yaml."""
    name = kind_named(tree)
    return next(kind for kind in KINDS if kind.name == name)
