"""The policy half of an MLP, with or without a recurrent core, as operations into fixed buffers: what acting costs is
calling them, and modules call many more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.models.activation import Activation
from rollcall.learners.models.networks import ActorCritic

_IN_PLACE: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "silu": lambda inputs: F.silu(inputs, inplace=True),
    "gelu": lambda inputs: inputs.copy_(F.gelu(inputs)),
    "elu": lambda inputs: F.elu(inputs, inplace=True),
}


class FusedActing:
    """For one vector observation and a number of envs. Its weights are views of the module's, and follow a load."""

    def __init__(self, module: ActorCritic, num_envs: int) -> None:
        (self._name,) = module.observation_spaces
        space = module.observation_spaces[self._name]
        assert module.torso.mlp is not None
        inputs = torch.zeros(num_envs, *(space.shape or ()))
        self._inputs = inputs.numpy()  # what an observation is copied into, whatever its dtype
        self._flat_inputs = inputs.flatten(1)
        self._mean: Array | None = None  # float64 [*shape]: what is taken off a float64 observation
        self._normaliser: tuple[Tensor, Tensor, float, Tensor] | None = (
            None  # shift, scale, clip, where to put the result
        )
        if module.observation_normaliser is not None:
            moments = module.observation_normaliser.moments(self._name)
            self._mean = moments.mean.numpy()
            self._normaliser = (
                moments.shift.view(-1),
                moments.scale.view(-1),
                module.observation_normaliser.clip,
                torch.empty_like(self._flat_inputs),
            )
        self._activation = _IN_PLACE[module.config.activation]
        linears = [layer for layer in module.torso.mlp.layers if isinstance(layer, nn.Linear)]
        self._layers = [
            (linear.weight.detach().t(), linear.bias.detach(), torch.empty(num_envs, linear.out_features))
            for linear in linears
        ]
        self._core = module.core
        self._head = (module.policy_head.weight.detach().t(), module.policy_head.bias.detach())

    @staticmethod
    def fits(module: ActorCritic) -> bool:
        spaces = list(module.observation_spaces.values())
        return (
            len(spaces) == 1
            and isinstance(spaces[0], gym.spaces.Box)
            and len(spaces[0].shape) > 0
            and spaces[0].dtype != np.uint8  # the torso scales those
            and module.torso.mlp is not None
            and (module.q is None or module.q.config.is_plain)
        )

    def forward(
        self, observations: Mapping[str, Array], state: Tensor | None, episode_starts: Array, outputs: Tensor
    ) -> Tensor | None:
        """Writes the policy head's outputs [B, *] into `outputs`.

        `state` [num_states, B, hidden] begins anew where episode_starts [B] is true. Returns the one after this step;
        None without recurrence."""
        features = self._normalised(observations[self._name])
        for weight, bias, buffer in self._layers:
            features = self._activation(torch.addmm(bias, features, weight, out=buffer))
        if self._core is not None:
            assert state is not None
            if episode_starts.any():
                state = state * torch.from_numpy(~episode_starts).unsqueeze(-1)
            features, state = self._core.step(features, state)
        torch.addmm(self._head[1], features, self._head[0], out=outputs)
        return state

    def _normalised(self, shown: Array) -> Tensor:
        """[B, F], in a buffer."""
        if self._normaliser is None or self._mean is None:
            np.copyto(self._inputs, shown, casting="unsafe")
            return self._flat_inputs
        shift, scale, clip, normalised = self._normaliser
        if shown.dtype == np.float64:  # cut to float32 when the mean is off it, as RunningMoments does
            np.subtract(shown, self._mean, out=self._inputs, casting="same_kind")
            return torch.mul(self._flat_inputs, scale, out=normalised).clamp_(-clip, clip)
        np.copyto(self._inputs, shown, casting="unsafe")
        return torch.sub(self._flat_inputs, shift, out=normalised).mul_(scale).clamp_(-clip, clip)
