"""The weights of another run that a control run begins with, as they lie in its own directory. Knows the names and
shapes of tensors; where they come from is beginning.py's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.checkpoint import read_state
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.learners.algorithm import TARGET
from rollcall.learners.models.flat import persistent_buffers
from rollcall.learners.models.networks import CRITIC_CHILDREN
from rollcall.learners.update import follow

_CRITIC = tuple(f"actor_critic.{child}." for child in CRITIC_CHILDREN)
_ANEW = ("actor_critic.exploration.", "actor_critic.random_start.")  # schedules, which begin anew
_FREE = (*_CRITIC, *_ANEW)  # what one of two runs may have alone


def take_up(models: Mapping[str, nn.Module], directory: Path) -> None:
    """Writes the weights that lie there into the models, normaliser statistics included. A critic or a reward
    normaliser that the other run had not begins afresh.

    Raises:
      BadInput: when it is not there, or does not fit.
    """
    state = read_state(directory, "weights")
    if state is None:
        raise BadInput(f"{directory}: the weights that the run begins with are not there: begin it again")
    tensors = state[0]
    problem = misfit(models, tensors)
    if problem:
        raise BadInput(f"{directory}: {problem}")
    with torch.no_grad():
        for name, tensor in _own(models).items():
            if name in tensors:
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))
    if TARGET + "actor_critic" in models:  # which was copied from what the run would have begun with otherwise
        follow(models[TARGET + "actor_critic"], models["actor_critic"])


def misfit(models: Mapping[str, nn.Module], tensors: Mapping[str, Array]) -> str:
    """Why the tensors are not these models'; empty when they are. A model may be missing that only learning needs: the
    critic, or what normalises rewards."""
    own = _own(models)
    for name, tensor in own.items():
        needed = name.startswith("actor_critic.") and not name.startswith(_FREE)
        if name not in tensors and (needed or (_has_critic(tensors) and name.startswith(_CRITIC))):
            return f"its policy has no {name}: it is another network"
        if name in tensors and tuple(tensor.shape) != tensors[name].shape:
            return f"its {name} has shape {tensors[name].shape}, and this run's {tuple(tensor.shape)}"
    for name in tensors:
        if name not in own and name.startswith("actor_critic.") and not name.startswith(_FREE):
            return f"its policy has {name}, and this run's has not: it is another network"
    return ""


def _has_critic(tensors: Mapping[str, Array]) -> bool:
    return any(name.startswith(_CRITIC) for name in tensors)


def _own(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by the names under which they are published, of what a policy and its learning share."""
    return {
        f"{model}.{name}": tensor
        for model in ("actor_critic", "reward_normaliser")
        if model in models
        for name, tensor in [*models[model].named_parameters(), *persistent_buffers(models[model])]
        if not f"{model}.{name}".startswith(_ANEW)
    }
