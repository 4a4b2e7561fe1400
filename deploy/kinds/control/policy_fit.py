"""Whether a policy can begin with another one's weights: its settings, its spaces, and what they make of a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from rollcall.actors.envs.observations import Space
from rollcall.actors.envs.plain_spaces import alike
from rollcall.deploy.kinds.control.initial_weights import misfit
from rollcall.deploy.kinds.control.policy import LoadedControl
from rollcall.learners.models.policy_config import PolicyConfig

# Settings of a control policy that say how it begins, or how it learns; of the others its weights are what they are.
_FREE = (
    "init_from",
    "warm_start",
    "orthogonal_init",
    "log_std_init",
    "normalise_rewards",
    "reward_clip",
    "random_start",
    "q.epsilons",
    "q.noise_std",
)
_OF_ANY_STRENGTH = ("exploration_noise",)  # where both have some; without it, it is another network
# These show in the shapes of the weights, or change nothing where they do not.
_SHOWN = ("shared_torso", "recurrent_size", "observation_clip")


def misfit_between(
    policy: PolicyConfig,
    loaded: LoadedControl,
    spaces: Callable[[], tuple[Space, Space]],
    models: Callable[[], Mapping[str, nn.Module]],
) -> str:
    """Why the loaded policy is none of a run with such a policy, spaces and models; empty when it is."""
    ours, theirs = policy.model_dump(mode="json"), loaded.config.policy.model_dump(mode="json")
    for name, value, own in _differences(theirs, ours):
        if name in (*_FREE, *_SHOWN) or (name in _OF_ANY_STRENGTH and None not in (value, own)):
            continue
        return (
            f"its policy.{name} is {json.dumps(value)}, and this run's {json.dumps(own)}: write "
            f"policy.{name}={json.dumps(value)}"
        )
    observations, actions = spaces()
    if not alike(observations, loaded.observation_space):
        return f"it sees {loaded.observation_space}, and this env shows {observations}: begin from a run of such an env"
    if actions != loaded.action_space:
        return f"its actions are {loaded.action_space}, and this env takes {actions}: begin from a run of such an env"
    return misfit(models(), dict(loaded.weights.tensors()))


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], within: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(name, their value, ours), of settings in sections with a dot."""
    for name, value in theirs.items():
        own = ours.get(name)
        if isinstance(value, dict) and isinstance(own, dict):
            yield from _differences(value, own, f"{within}{name}.")
        elif value != own:
            yield f"{within}{name}", value, own
