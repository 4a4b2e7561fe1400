"""Images for a policy: which observations are some, in which layout they come, and the CNNs that take them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollcall.learners.models.initialisation import initialise


@dataclass(frozen=True)
class Convolutions:
    """Of a CNN: (filters, kernel, stride) of each, and how many features all end in."""

    layers: tuple[tuple[int, int, int], ...]
    num_features: int
    least_side: int  # the smallest image that the layers leave a pixel of


NATURE = Convolutions(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512, least_side=36)  # Mnih et al., 2015
SMALL = Convolutions(((16, 3, 1),), 128, least_side=3)  # Young and Tian, 2019: for the 10 x 10 of MinAtar


def image_shape(space: gym.Space[Any], least_side: int = NATURE.least_side) -> tuple[int, int, int] | None:
    """(channels, height, width) if a space is an image for a CNN, else None.

    The layout is read off the shape: channels are the smaller of the first and the last axis ([84, 84, 3] is HWC,
    [4, 84, 84] a stack of four grey frames). [S, H, W, C] or [S, C, H, W] is a stack of S images; two axes of uint8 are
    one grey image. With a side smaller than `least_side` it is none.
    """
    if not isinstance(space, gym.spaces.Box):
        return None
    shape = space.shape
    if len(shape) == 2 and space.dtype == np.uint8:
        found = (1, *shape)
    elif len(shape) in (3, 4):
        stack = shape[0] if len(shape) == 4 else 1
        first, middle, last = shape[-3:]
        found = (stack * first, middle, last) if first < last else (stack * last, first, middle)
    else:
        return None
    return found if min(found[1:]) >= least_side else None


def to_channels_first(frames: Tensor, space: gym.spaces.Box) -> Tensor:
    """[N, *space.shape] -> [N, C, H, W], laid out as image_shape says."""
    shape = space.shape
    if len(shape) == 2:
        return frames.unsqueeze(1)
    if shape[-3] >= shape[-1]:
        frames = frames.movedim(-1, -3)
    return frames.flatten(1, 2) if len(shape) == 4 else frames


class CNN(nn.Module):
    """Convolutions and a linear layer, each with ReLU whatever the other layers of a policy use."""

    def __init__(self, size: Convolutions, channels: int, height: int, width: int, *, orthogonal: bool) -> None:
        super().__init__()
        convolutions: dict[str, nn.Conv2d] = {}
        inputs = channels
        for index, (filters, kernel, stride) in enumerate(size.layers):
            # Their names are those of older weights, in which each had its ReLU next to it.
            convolutions[str(2 * index)] = nn.Conv2d(inputs, filters, kernel, stride=stride)
            inputs, height, width = filters, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.convolutions = nn.ModuleDict(convolutions)
        self.projection = nn.Linear(inputs * height * width, size.num_features)
        self._strides = [stride for _, _, stride in size.layers]
        for layer in self._layers():
            initialise(layer, float(np.sqrt(2.0)), orthogonal)
        self._kept: dict[tuple[torch.dtype, float], list[tuple[Tensor, Tensor]]] | None = None

    def keep_casts(self) -> None:
        """For acting, after every load: in inference mode, weights in the dtype of the frames are made once and not at
        each call, where they would take longer than the few frames."""
        self._kept = {}

    def forward(self, frames: Tensor, scale: float) -> Tensor:
        """[N, C, H, W] -> [N, num_features], in the dtype of the frames. `scale`: of each pixel; the first layer's few
        weights are multiplied by it instead."""
        *convolutions, projection = self._cast(frames.dtype, scale)
        features = frames
        for index, (weight, bias) in enumerate(convolutions):
            # The last one's ReLU follows the change of layout: its gradient then lies as the linear layer's does.
            features = F.conv2d(features if index == 0 else features.relu_(), weight, bias, self._strides[index])
        return F.linear(features.flatten(1).relu_(), *projection).relu_()

    def _layers(self) -> list[nn.Conv2d | nn.Linear]:
        return [*cast(list[nn.Conv2d], self.convolutions.values()), self.projection]

    def _cast(self, dtype: torch.dtype, scale: float) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer, the first one's weight scaled."""
        kept = self._kept if torch.is_inference_mode_enabled() else None
        if kept is not None and (dtype, scale) in kept:
            return kept[dtype, scale]
        scales = [scale] + [1.0] * len(self._strides)
        made = [
            ((layer.weight if by == 1.0 else layer.weight * by).to(dtype), cast(Tensor, layer.bias).to(dtype))
            for layer, by in zip(self._layers(), scales, strict=True)
        ]
        if kept is not None:
            kept[dtype, scale] = made
        return made
