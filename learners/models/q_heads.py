"""What actions are worth, as a network says it: one number for each, or the distribution of its return; with streams
for the state and the actions apart, and weights with noise to explore by. Knows nothing of algorithms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollcall.learners.models.initialisation import initialise
from rollcall.learners.models.q_config import QConfig


class NoisyLinear(nn.Linear):
    """Weights are mean + deviation * noise, the noise factorised (Fortunato et al., 2018, arXiv:1706.10295, eq. 9-11).
    It stays as it is until it is drawn anew; where it is 0 the weights are the means."""

    input_noise: Tensor
    output_noise: Tensor

    def __init__(self, num_inputs: int, num_outputs: int, std: float) -> None:
        super().__init__(num_inputs, num_outputs)  # within 1 / sqrt(inputs), as there
        std /= math.sqrt(num_inputs)
        self.weight_std = nn.Parameter(torch.full((num_outputs, num_inputs), std))
        self.bias_std = nn.Parameter(torch.full((num_outputs,), std))
        self.register_buffer("input_noise", torch.zeros(num_inputs), persistent=False)
        self.register_buffer("output_noise", torch.zeros(num_outputs), persistent=False)

    def draw(self, generator: torch.Generator | None) -> None:
        """None: no noise."""
        for noise in (self.input_noise, self.output_noise):
            if generator is None:
                noise.zero_()
            else:
                normal = torch.randn(noise.shape, generator=generator)
                noise.copy_(normal.sign() * normal.abs().sqrt())

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight + self.weight_std * torch.outer(self.output_noise, self.input_noise)
        return F.linear(input, weight, self.bias + self.bias_std * self.output_noise)


class QValues(nn.Module):
    """What the outputs of a linear layer mean. Z numbers for each action: its value, or what a distribution takes
    (logits of bins, or quantiles); with dueling streams Z more for the state."""

    support: Tensor  # [Z]: what the bins stand for

    def __init__(self, num_actions: int, config: QConfig) -> None:
        super().__init__()
        self.config = config
        self.num_actions = num_actions
        self.num_atoms = 1 if config.returns == "mean" else config.atoms
        support = torch.linspace(config.least_return, config.most_return, config.atoms)
        self.register_buffer("support", support, persistent=False)

    @property
    def num_outputs(self) -> int:
        return self.num_atoms * (self.num_actions + self.config.dueling)

    def layer(self, num_features: int, *, orthogonal: bool) -> nn.Linear:
        if self.config.noisy:
            return NoisyLinear(num_features, self.num_outputs, self.config.noise_std)
        linear = nn.Linear(num_features, self.num_outputs)
        initialise(linear, 1.0, orthogonal)
        return linear

    def forward(self, outputs: Tensor) -> Tensor:
        """[..., num_outputs] -> [..., n, Z]"""
        streams = outputs.view(*outputs.shape[:-1], -1, self.num_atoms)
        if not self.config.dueling:
            return streams
        actions, state = streams[..., :-1, :], streams[..., -1:, :]
        return state + actions - actions.mean(-2, keepdim=True)

    def values(self, returns: Tensor) -> Tensor:
        """[..., n, Z] -> [..., n]: the mean of each action's return."""
        if self.config.returns == "categorical":
            return returns.softmax(-1) @ self.support
        return returns.squeeze(-1) if self.num_atoms == 1 else returns.mean(-1)


class Exploration(nn.Module):
    """Epsilons. They are buffers, hence part of the weights: the learner lowers them, and actors follow with the next
    version, the same in every runtime and after a resume."""

    epsilons: Tensor  # float32 [config.epsilons]

    def __init__(self, number: int) -> None:
        super().__init__()
        self.register_buffer("epsilons", torch.ones(number))

    def of_envs(self, first: int, number: int) -> Tensor:
        """[number]: of the run's envs from `first` on."""
        return self.epsilons[torch.arange(first, first + number) % len(self.epsilons)]
