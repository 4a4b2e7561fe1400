"""Training from Python: what `rollcall train` does, as a function."""

from __future__ import annotations

import multiprocessing
from typing import Any

from rollcall.deploy.config.load import AnyConfig, load_config
from rollcall.deploy.config.run_config import CommonConfig
from rollcall.deploy.config.settings import recipe_name
from rollcall.deploy.drive.runs import carry_out, claim_directory, stop_on_signals
from rollcall.deploy.kinds.init_from import begin_run, beginning_of


def train(config: AnyConfig | str, **overrides: Any) -> dict[str, Any]:
    """Trains and returns what summary.json holds, with the run directory under "run_directory".

    `config` is a RunConfig, a shipped recipe's name or a YAML file. Overrides are nested mappings or dotted keys:
    `train("cartpole-ppo", seed=1, actors={"num": 2}, **{"algorithm.clip_range": 0.1})`. In the main thread Ctrl-C stops
    with a checkpoint, as on the command line.

    A script that trains does so under `if __name__ == "__main__":`: envs in processes of their own import it.

    Raises:
      BadInput: on anything that `rollcall train` would refuse with exit code 2.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)  # an env's process that imports the script; the one that began it says what is wrong
    if isinstance(config, CommonConfig):
        if overrides:
            raise ValueError(
                f"overrides {sorted(overrides)} go with a recipe; of a RunConfig use model_copy(update=...)"
            )
        resolved: AnyConfig = config.resolved()
        recipe = config.name
    else:
        resolved, recipe = load_config(config, values=overrides), recipe_name(config)
    beginning = beginning_of(resolved)
    directory = claim_directory(resolved.name, explicit="name" in overrides)
    resolved = resolved.model_copy(update={"name": directory.name})
    begin_run(resolved, directory, beginning, recipe=recipe)
    with stop_on_signals(directory) as stop:
        summary = carry_out(resolved, directory, resume=False, stop=stop)
    return {**summary, "run_directory": str(directory)}
