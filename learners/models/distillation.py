"""Random network distillation (Burda et al., 2018, arXiv:1810.12894): how badly a network foretells what another one,
random and fixed, says of an observation, is how new the observation is. Knows nothing of policies or losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rollcall.learners.maths.returns import running_returns
from rollcall.learners.models.initialisation import initialise
from rollcall.learners.models.normaliser import RunningMoments
from rollcall.learners.models.torsos import Torso

NUM_FEATURES = 64  # that the fixed network says of an observation
_CLIP = 5.0  # of normalised observations, as in the paper


class RandomNetworkDistillation(nn.Module):
    """The fixed network and the one that follows it, a critic for what their distance pays, and the statistics that
    make both inputs and rewards of a known scale. All three networks see observations alone: no memory, no action."""

    collected: Tensor

    def __init__(self, spaces: Mapping[str, gym.Space[Any]], hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.boxes = tuple(name for name, space in spaces.items() if isinstance(space, gym.spaces.Box))
        self.moments = nn.ModuleList(RunningMoments(spaces[name].shape or ()) for name in self.boxes)
        self.target = _network(spaces, hidden_sizes, NUM_FEATURES)
        self.predictor = _network(spaces, (*hidden_sizes, hidden_sizes[-1] if hidden_sizes else 64), NUM_FEATURES)
        self.critic = _network(spaces, hidden_sizes, 1)
        _fix(self.target)
        self.return_moments = RunningMoments(())
        self.register_buffer("collected", torch.zeros(()))  # mean over envs of the running return, after a batch

    def take_in(self, observations: Mapping[str, Tensor], mask: Tensor) -> None:
        """Observations [T, B, ...] into the statistics, where mask [T, B] is True."""
        for name, moments in zip(self.boxes, self.moments, strict=True):
            assert isinstance(moments, RunningMoments)
            moments.update(observations[name], mask)

    def error(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[...]: the predictor's mean squared error, with gradient."""
        seen = self._normalised(observations)
        with torch.no_grad():
            wanted = self.target(seen)
        error: Tensor = (self.predictor(seen) - wanted).square().mean(-1)
        return error

    def values(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[...]: the critic's, of intrinsic returns."""
        values: Tensor = self.critic(self._normalised(observations)).squeeze(-1)
        return values

    @torch.no_grad()
    def rewards(self, errors: Tensor, *, discount: float, mask: Tensor) -> Tensor:
        """Errors [T, B] over the standard deviation of their running discounted returns, these ones included.

        Whose the columns of the next batch are is not known here: a running return goes on from the mean over envs.
        """
        returns = running_returns(
            rewards=errors, before=self.collected.expand(errors.shape[1]), discount=discount, mask=mask
        )
        if bool(returns.isfinite().all()):
            self.return_moments.update(returns, mask)
            self.collected.copy_(returns[-1].mean())
        return errors * self.return_moments.scale

    def _normalised(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen = dict(observations)
        for name, moments in zip(self.boxes, self.moments, strict=True):
            assert isinstance(moments, RunningMoments)
            seen[name] = moments.normalise(observations[name], _CLIP)
        return seen


def _network(spaces: Mapping[str, gym.Space[Any]], hidden_sizes: Sequence[int], num_outputs: int) -> nn.Sequential:
    torso = Torso(spaces, kind="auto", hidden_sizes=hidden_sizes, activation="relu", orthogonal=True)
    head = nn.Linear(torso.num_features, num_outputs)
    initialise(head, 1.0, True)
    return nn.Sequential(torso, head)


def _fix(module: nn.Module) -> None:
    """Makes buffers of its parameters: nothing trains them, and a checkpoint keeps them."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach())
