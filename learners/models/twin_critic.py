"""Two critics of actions side by side: each layer of both is one batched product. What algorithms that learn from
replay train beside a policy; who acts needs none of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rollcall.learners.models.initialisation import initialise
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.models.torsos import ACTIVATIONS, Torso

NUM_CRITICS = 2  # each with weights of its own: the smaller value of two is less optimistic (Fujimoto et al., 2018)


class TwinCritic(nn.Module):
    """Q(s, a) of both critics: of given actions, or of every action there is. Layers and activation are the policy's;
    of images, both see the features of one CNN."""

    def __init__(
        self,
        observation_spaces: Mapping[str, gym.Space[Any]],
        config: PolicyConfig,
        *,
        action_size: int = 0,
        num_actions: int = 1,
    ) -> None:
        """Either `action_size` numbers make an action, which is given, or there are `num_actions` to be valued all."""
        super().__init__()
        # Without layers of its own: what it gives are vectors as they are, and the CNN's features.
        self.torso = Torso(
            observation_spaces,
            kind=config.torso,
            hidden_sizes=(),
            activation=config.activation,
            orthogonal=config.orthogonal_init,
            image_dtype=getattr(torch, config.image_dtype),
        )
        sizes = (self.torso.num_features + action_size, *config.hidden_sizes, num_actions)
        self.activation = ACTIVATIONS[config.activation]()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (num_inputs, num_outputs) in enumerate(pairwise(sizes)):
            pair = [nn.Linear(num_inputs, num_outputs) for _ in range(NUM_CRITICS)]
            for linear in pair:
                initialise(linear, 1.0 if layer == len(sizes) - 2 else math.sqrt(2.0), config.orthogonal_init)
            self.weights.append(nn.Parameter(torch.stack([linear.weight.detach().t() for linear in pair])))
            self.biases.append(nn.Parameter(torch.stack([linear.bias.detach() for linear in pair]).unsqueeze(1)))

    def forward(
        self, observations: Mapping[str, Tensor], actions: Tensor | None = None, *, frozen: bool = False
    ) -> Tensor:
        """[2, B] of actions [B, action_size], or [2, B, num_actions] of all.

        `frozen`: the gradient goes through to the actions and changes no weight: what an actor's loss asks for.
        """
        features = self.torso(observations)
        if frozen:
            features = features.detach()
        if actions is not None:
            features = torch.cat((features, actions), -1)
        outputs: Tensor = features.expand(NUM_CRITICS, *features.shape)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if frozen:
                weight, bias = weight.detach(), bias.detach()
            outputs = torch.baddbmm(bias, outputs, weight)
            if layer < last:
                outputs = self.activation(outputs)
        return outputs if actions is None else outputs.squeeze(-1)
