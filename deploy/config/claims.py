"""Which kind of run a recipe is of, as its keys say, before anything of that kind is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rollcall.deploy.config import plugins

Tree = Mapping[str, Any]
SUPERVISED = "sft"  # what a recipe calls the algorithm of supervised fine-tuning
IN_ROUNDS = ("expert_iteration", "constitutional")  # algorithms whose runs collect their own data


def algorithm_named(tree: Tree) -> Any:
    """What a recipe's settings call the algorithm, written short or as a section."""
    algorithm = tree.get("algorithm")
    return algorithm.get("name") if isinstance(algorithm, Mapping) else algorithm


def _is_supervised(tree: Tree) -> bool:
    return "task" in tree and isinstance(tree.get("algorithm"), Mapping) and algorithm_named(tree) == SUPERVISED


def _is_tabular(tree: Tree) -> bool:
    """Whether a recipe with an env names one of the methods with a table."""
    name = algorithm_named(tree)
    return "env" in tree and isinstance(name, str) and name in plugins.shipped(plugins.TABULAR)


def _is_control(tree: Tree) -> bool:
    return "env" in tree and not {"data", "design"} & tree.keys() and not _is_tabular(tree)


# By the kind's name. The first whose keys a recipe has; one that has none of any kind's is told what control lacks.
CLAIMS: Mapping[str, Callable[[Tree], bool]] = {
    "design": lambda tree: "design" in tree,
    "direct": lambda tree: "data" in tree and "algorithm" in tree and "env" not in tree,
    "reward_model": lambda tree: "data" in tree and "algorithm" not in tree and "env" not in tree,
    "supervised": _is_supervised,
    "expert_iteration": lambda tree: "task" in tree and algorithm_named(tree) == "expert_iteration",
    "constitutional": lambda tree: "task" in tree and algorithm_named(tree) == "constitutional",
    "language": lambda tree: "task" in tree and algorithm_named(tree) not in IN_ROUNDS,
    "offline": lambda tree: "env" in tree and "data" in tree,
    "bandit": lambda tree: "bandit" in tree,
    "tabular": _is_tabular,
    "control": _is_control,
}


def kind_named(tree: Tree) -> str:
    """The name of the kind of run whose keys these are."""
    return next((name for name, claims in CLAIMS.items() if claims(tree)), "control")
