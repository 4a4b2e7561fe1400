"""A control run's outside actors, from both sides: what they are told of the run, and the actor that is made of that in
another place. It is the one that the run's own processes have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from gymnasium import spaces
from pydantic import JsonValue, ValidationError

from rollcall.actors.envs.environment import make_vector_env
from rollcall.actors.policy import Policy
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_module
from rollcall.deploy.config import plugins
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.outside import OutsideShards

# What an actor is made of. Neither addresses nor files of the run are told.
_TOLD = ("seed", "total_env_steps", "total_learner_steps", "max_policy_lag", "env", "policy", "actors", "algorithm")


def outside_shards(
    config: RunConfig, found: tuple[spaces.Space[Any], spaces.Space[Any]], policy: Callable[[], Policy]
) -> OutsideShards | None:
    """None where the run has no outside actors."""
    actors = config.actors
    if actors.outside is None:
        return None
    settings = config.model_dump(mode="json", include=set(_TOLD))
    settings["policy"]["init_from"] = settings["actors"]["outside"] = None
    settings["actors"]["num"] = 1
    told: Mapping[str, JsonValue] = {
        "env": config.env.id,
        "unit": config.algorithm_class.unit,
        "unroll_length": actors.unroll_length,
        "num_envs": config.envs_per_shard,
        "modules": list(plugins.modules_of(config.env.id, config.algorithm_name)),
        "settings": settings,
    }
    return OutsideShards(
        config=actors.outside,
        first_shard=actors.first_outside_shard,
        observation_space=found[0],
        action_space=found[1],
        policy_config=config.policy,
        policy=policy(),
        masks_actions=_masks_actions(config),
        unroll_length=actors.unroll_length,
        num_envs=config.envs_per_shard,
        reward_clip=config.env.reward_clip,
        told=told,
    )


def _masks_actions(config: RunConfig) -> bool:
    """Found out by looking: a mask may come in an env's info, of which no space tells."""
    with closing(make_vector_env(config.env, 1)) as group:
        return group.reset().action_mask is not None


def config_told(told: Mapping[str, JsonValue]) -> RunConfig:
    """The run's configuration as far as an actor needs it, out of what it was told.

    Raises:
      BadInput: in one line: a module of the run's own that is not here, or settings of another release.
    """
    modules = told.get("modules")
    for module in modules if isinstance(modules, list) else ():
        try:
            import_module(str(module))
        except BadInput as error:
            raise BadInput(f"the run needs its own module {module!r} here: {error}") from None
    try:
        return RunConfig.model_validate_json(json.dumps(told.get("settings")), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"the run's settings are of another release than this one: {where}: {first['msg']}") from None
