"""Learned reward models: of texts, a Hugging Face sequence classifier with one label; of segments, an ensemble of MLPs
over observation and action. The modules alone: how they lie on a disk is reward_model_files.py's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rollcall.cluster.inputs.strict import Strict
from rollcall.cluster.messages.arrays import Array
from rollcall.reward_service.protocol import Segment

_STD_FLOOR = 1e-6


class TextRewardModel(nn.Module):
    """A reward for each whole sequence by each member of an ensemble, heads on one body; read from its last token where
    the model is causal. Always without dropout: a sequence has one reward."""

    def __init__(self, model: nn.Module, *, pad_token_id: int) -> None:
        super().__init__()
        self.model = model
        self._pad_token_id = pad_token_id
        self._reads_last_token = isinstance(getattr(model, "score", None), nn.Linear)
        self._sees_no_padding = _is_causal(model)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """[M, b]: rewards of sequences [b, L], padded on the right, with anything; lengths int64 [b]."""
        model: Any = self.model
        present = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        token_ids = token_ids.masked_fill(~present, self._pad_token_id)
        # With causal attention nothing looks at the padding, and without a mask attention is faster.
        mask = None if self._sees_no_padding else present.long()
        if not self._reads_last_token:
            return cast(Tensor, model(input_ids=token_ids, attention_mask=mask).logits.T.clone())
        states = model.base_model(input_ids=token_ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        # No view: sharding hangs its hooks on what a module returns, and those of a view can be lost.
        return cast(Tensor, model.score(last).T.clone())


def _is_causal(model: nn.Module) -> bool:
    from transformers.modeling_layers import GenericForSequenceClassification  # what decoders' classifiers are built of

    return isinstance(model, GenericForSequenceClassification)


class SegmentArchitecture(Strict):
    """What a reward model of segments looks like, and what it takes."""

    observation_shape: tuple[int, ...] = Field(description="of one observation; flattened for the network")
    num_actions: int | None = Field(default=None, ge=2, description="of a discrete action space")
    first_action: int = Field(default=0, description="the env's name for the first of them: its space's `start`")
    action_shape: tuple[int, ...] | None = Field(default=None, description="of one action of any other space")
    hidden_sizes: tuple[int, ...] = Field(default=(64, 64), description="units of each member's hidden layers")
    activation: Literal["tanh", "relu", "leaky_relu"] = Field(default="leaky_relu", description="between the layers")
    members: int = Field(default=3, ge=1, le=64, description="networks of the ensemble")
    observation_clip: float = Field(default=10.0, gt=0, description="normalised observations stay within +- this")

    @model_validator(mode="after")
    def _one_kind_of_action(self) -> Self:
        if (self.num_actions is None) == (self.action_shape is None):
            raise ValueError("one of num_actions and action_shape is needed")
        return self

    @classmethod
    def of(cls, segments: Sequence[Segment], **settings: Any) -> Self:
        """The one that fits the segments: integer actions of one number are discrete.

        Raises:
          ValueError: when they are of different shapes.
        """
        first = segments[0]
        for segment in segments:
            shapes = (segment.observations.shape[1:], segment.actions.shape[1:], segment.actions.dtype)
            if shapes != (first.observations.shape[1:], first.actions.shape[1:], first.actions.dtype):
                raise ValueError(f"segments of different spaces: {shapes[0]} and {first.observations.shape[1:]}")
        action_shape = first.actions.shape[1:]
        found: dict[str, Any] = {"observation_shape": first.observations.shape[1:], "action_shape": action_shape}
        if action_shape == () and first.actions.array().dtype.kind in "iu":
            seen = [segment.actions.array() for segment in segments]
            first_action = settings.get("first_action", min(0, *(int(actions.min()) for actions in seen)))
            num_actions = max(2, max(int(actions.max()) for actions in seen) + 1 - first_action)
            found |= {"action_shape": None, "num_actions": num_actions, "first_action": first_action}
        return cls(**{**found, **settings})

    def arrays(self, segment: Segment) -> tuple[Array, Array]:
        """(observations float32 [T, D], actions float32 [T, A]), flattened; discrete actions as numbers [T, 1] from 0.

        Raises:
          ValueError: saying in which shape or dtype the segment is not what the model takes.
        """
        observations, actions = segment.observations.array(), segment.actions.array()
        if observations.shape[1:] != self.observation_shape:
            raise ValueError(
                f"observations of shape {list(observations.shape[1:])}, not {list(self.observation_shape)}"
            )
        if self.num_actions is not None:
            if actions.shape[1:] != () or actions.dtype.kind not in "iu":
                raise ValueError(f"actions are {actions.dtype}{list(actions.shape[1:])}, not one whole number each")
            if actions.min() < self.first_action or actions.max() >= self.first_action + self.num_actions:
                raise ValueError(
                    f"actions {actions.min()} to {actions.max()}, and there are {self.num_actions}, from "
                    f"{self.first_action}"
                )
            actions = actions.astype(np.int64) - self.first_action
        elif actions.shape[1:] != self.action_shape:
            raise ValueError(f"actions of shape {list(actions.shape[1:])}, not {list(self.action_shape or ())}")
        rows = len(observations)
        return observations.reshape(rows, -1).astype(np.float32), actions.reshape(rows, -1).astype(np.float32)


class SegmentRewardModel(nn.Module):
    """Rewards of single steps by each member of an ensemble: r_m(s, a). All members in one matrix product."""

    def __init__(self, architecture: SegmentArchitecture, *, seed: int = 0) -> None:
        super().__init__()
        self.architecture = architecture
        num_observed = int(np.prod(architecture.observation_shape, dtype=int))
        num_acted = architecture.num_actions or int(np.prod(architecture.action_shape or (), dtype=int))
        self.register_buffer("observation_mean", torch.zeros(num_observed))
        self.register_buffer("observation_std", torch.ones(num_observed))
        self.observation_mean: Tensor
        self.observation_std: Tensor
        sizes = (num_observed + num_acted, *architecture.hidden_sizes, 1)
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5  # as torch's own linear layers begin
            shape = (architecture.members, fan_in, fan_out)
            self.weights.append(nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound))
            self.biases.append(nn.Parameter(torch.zeros(architecture.members, 1, fan_out)))
        self._activation = {"tanh": torch.tanh, "relu": torch.relu, "leaky_relu": nn.functional.leaky_relu}[
            architecture.activation
        ]

    def normalise_by(self, observations: Tensor) -> None:
        """Takes mean and deviation of observations [S, D] as those that all observations are normalised by."""
        self.observation_mean.copy_(observations.mean(0))
        self.observation_std.copy_(observations.std(0, correction=0).clamp(min=_STD_FLOOR))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[M, S]: of steps with observations [S, D] and actions [S, A], as `SegmentArchitecture.arrays` gives them."""
        clip = self.architecture.observation_clip
        seen = ((observations - self.observation_mean) / self.observation_std).clamp(-clip, clip)
        if self.architecture.num_actions is not None:
            actions = nn.functional.one_hot(actions[:, 0].long(), self.architecture.num_actions).to(seen.dtype)
        hidden = torch.cat([seen, actions], -1).expand(self.architecture.members, -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = hidden if layer == last else self._activation(hidden)
        return hidden.squeeze(-1)


class Statistics(Strict):
    """Of raw rewards over a reference set, for each ensemble member: what makes them zero in the mean and one in
    deviation, so that a new model's rewards are of the size of its predecessor's."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, rewards: Tensor) -> Self:
        """Of rewards [M, R]."""
        std = rewards.double().std(-1, correction=0).clamp(min=_STD_FLOOR)
        return cls(mean=tuple(rewards.double().mean(-1).tolist()), std=tuple(std.tolist()))

    def normalise(self, rewards: Tensor) -> Tensor:
        """[M, R] -> [M, R]"""
        mean = torch.tensor(self.mean, dtype=torch.float64, device=rewards.device)
        std = torch.tensor(self.std, dtype=torch.float64, device=rewards.device)
        return (rewards.double() - mean[:, None]) / std[:, None]
