"""Training from Python: what `rollcall train` does, as a function."""

from __future__ import annotations

import multiprocessing
from typing import Any

from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import recipe_name
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.drive.signals import stop_on_signals
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.recipes import Recipe, kind_of_config, load_recipe


def train(config: RootConfig | str, **overrides: Any) -> dict[str, Any]:
    """Trains and returns what summary.json holds, with the run directory under "run_directory".

    `config` is a configuration, a shipped recipe's name or a YAML file, of whatever kind of run. Overrides are nested
    mappings or dotted keys: `train("cartpole-ppo", seed=1, actors={"num": 2}, **{"algorithm.clip_range": 0.1})`. In the
    main thread Ctrl-C stops with a checkpoint, as on the command line.

    A script that trains does so under `if __name__ == "__main__":`: envs in processes of their own import it.

    Raises:
      BadInput: on anything that `rollcall train` would refuse with exit code 2.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)  # an env's process that imports the script; the one that began it says what is wrong
    if isinstance(config, RootConfig):
        if overrides:
            raise ValueError(
                f"overrides {sorted(overrides)} go with a recipe; of a RunConfig use model_copy(update=...)"
            )
        recipe, named = Recipe(kind_of_config(config), config.resolved()), config.name
    else:
        recipe, named = load_recipe(config, values=overrides), recipe_name(config)
    run = new_run(recipe, named=named, explicit="name" in overrides)
    with stop_on_signals(run.directory) as stop:
        summary = carry_out(run, stop_requested=stop.is_set)
    return {**summary, "run_directory": str(run.directory)}
