"""From named observations to features: one-hots, flattened vectors, images, and the recurrent core.
Knows nothing of actions, values or algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollcall.learners.models.activation import Activation
from rollcall.learners.models.images import CNN, NATURE, SMALL, image_shape, to_channels_first
from rollcall.learners.models.initialisation import initialise


class Tanh(nn.Module):
    """tanh(x), in compiled code as 2 sigmoid(2x) - 1, within 2e-7 of it: there torch's tanh takes four times as long,
    which was two fifths of a small network's gradient step."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(2.0 * inputs) - 1.0 if torch.compiler.is_compiling() else torch.tanh(inputs)


ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "tanh": Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}


def flatten_space(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    """Named plain spaces: a nested Dict's names are joined with "."; a plain space is named "observation".

    Raises:
      ValueError: naming a space that is not Box, Discrete, MultiDiscrete, MultiBinary or a Dict of those.
    """
    return _flatten(space, "") if isinstance(space, gym.spaces.Dict) else {"observation": _checked(space)}


def _flatten(space: gym.spaces.Dict, prefix: str) -> dict[str, gym.Space[Any]]:
    named: dict[str, gym.Space[Any]] = {}
    for name, item in space.spaces.items():
        if isinstance(item, gym.spaces.Dict):
            named.update(_flatten(item, f"{prefix}{name}."))
        else:
            named[f"{prefix}{name}"] = _checked(item)
    return named


def _checked(space: gym.Space[Any]) -> gym.Space[Any]:
    supported = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
    if not isinstance(space, supported):
        raise ValueError(
            f"observation space {space} is not supported: "
            "use Box, Discrete, MultiDiscrete, MultiBinary or a Dict of those"
        )
    return space


def vector_size(space: gym.Space[Any]) -> int:
    """Features of a space that is not an image."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape or (), dtype=np.int64))


def vector_features(values: Tensor, space: gym.Space[Any]) -> Tensor:
    """[..., *space.shape] -> float32 [..., vector_size]: one-hot for choices, bytes over 255, the rest as it is (what
    ByteRanges has scaled among it)."""
    if isinstance(space, gym.spaces.Discrete):
        return F.one_hot(values.long() - int(space.start), int(space.n)).float()
    if isinstance(space, gym.spaces.MultiDiscrete):
        flat = values.long().flatten(values.dim() - len(space.nvec.shape))
        starts, sizes = space.start.reshape(-1).tolist(), space.nvec.reshape(-1).tolist()
        parts = [F.one_hot(flat[..., k] - starts[k], sizes[k]) for k in range(len(sizes))]
        return torch.cat(parts, -1).float()
    shape = space.shape or ()
    features = values.float()
    if values.dtype == torch.uint8 and isinstance(space, gym.spaces.Box):
        features = features * (1.0 / 255.0)
    return features.flatten(values.dim() - len(shape)) if shape else features.unsqueeze(-1)


class ByteRanges(nn.Module):
    """Brings bytes whose space does not go from 0 to 255 from their own bounds to 0..1.

    The bounds are buffers, hence part of the weights: a policy scales as it did when it learnt.
    """

    def __init__(self, spaces: Mapping[str, gym.Space[Any]]) -> None:
        super().__init__()
        self.names = tuple(name for name, space in spaces.items() if self.concerns(space))
        for index, name in enumerate(self.names):
            space = cast(gym.spaces.Box, spaces[name])
            low = torch.from_numpy(space.low.astype(np.float32))
            width = torch.from_numpy(space.high.astype(np.float32)) - low
            self.register_buffer(f"low_{index}", low)
            self.register_buffer(f"scale_{index}", 1.0 / width.clamp(min=1.0))

    @staticmethod
    def concerns(space: gym.Space[Any]) -> bool:
        return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and not _is_full_range(space)

    def init_missing(self) -> None:
        """Scales as releases did that had no ByteRanges in their weights: all bytes by 255."""
        for index in range(len(self.names)):
            self.get_buffer(f"low_{index}").zero_()
            self.get_buffer(f"scale_{index}").fill_(1.0 / 255.0)

    def forward(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scaled = dict(observations)
        for index, name in enumerate(self.names):
            low, scale = self.get_buffer(f"low_{index}"), self.get_buffer(f"scale_{index}")
            scaled[name] = (observations[name].float() - low) * scale
        return scaled


def _is_full_range(space: gym.spaces.Box) -> bool:
    return bool((space.low == 0).all() and (space.high == 255).all())


class MLP(nn.Module):
    """Linear layers, each followed by the activation. No layers: the identity."""

    def __init__(self, num_inputs: int, sizes: Sequence[int], activation: Activation, *, orthogonal: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in sizes:
            linear = nn.Linear(num_inputs, size)
            initialise(linear, float(np.sqrt(2.0)), orthogonal)
            layers += [linear, ACTIVATIONS[activation]()]
            num_inputs = size
        self.layers = nn.Sequential(*layers)
        self.num_features = num_inputs

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


class Torso(nn.Module):
    """Features of named observations: each image through its own CNN, all the rest side by side through one MLP. An
    image of less than 36 x 36 is one only where a CNN is asked for."""

    def __init__(
        self,
        spaces: Mapping[str, gym.Space[Any]],
        *,
        kind: Literal["auto", "mlp", "cnn"],
        hidden_sizes: Sequence[int],
        activation: Activation,
        orthogonal: bool,
        image_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`image_dtype`: that CNNs compute in, float32 or bfloat16."""
        super().__init__()
        self.image_dtype = image_dtype
        least = {"auto": NATURE.least_side, "cnn": SMALL.least_side}
        shapes = {name: None if kind == "mlp" else image_shape(space, least[kind]) for name, space in spaces.items()}
        self.images = {name: spaces[name] for name, shape in shapes.items() if shape is not None}
        self.vectors = {name: space for name, space in spaces.items() if name not in self.images}
        if kind == "cnn" and not self.images:
            raise ValueError(f"torso=cnn, but no observation is an image of at least 3 x 3: {dict(spaces)}; use mlp")
        found = [shape for shape in shapes.values() if shape is not None]
        sizes = [NATURE if min(shape[1:]) >= NATURE.least_side else SMALL for shape in found]
        self.cnns = nn.ModuleList(
            CNN(size, *shape, orthogonal=orthogonal) for size, shape in zip(sizes, found, strict=True)
        )
        self.num_features = sum(size.num_features for size in sizes)
        self.mlp: MLP | None = None
        if self.vectors:
            num_inputs = sum(vector_size(space) for space in self.vectors.values())
            self.mlp = MLP(num_inputs, hidden_sizes, activation, orthogonal=orthogonal)
            self.num_features += self.mlp.num_features

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """name -> [..., *shape] to [..., num_features]; any leading axes."""
        parts = [
            self._image_features(observations[name], space, cnn)
            for (name, space), cnn in zip(self.images.items(), self.cnns, strict=True)
        ]
        if self.mlp is not None:
            vectors = [vector_features(observations[name], space) for name, space in self.vectors.items()]
            parts.append(self.mlp(vectors[0] if len(vectors) == 1 else torch.cat(vectors, -1)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def keep_casts(self) -> None:
        """As the CNNs' own."""
        for cnn in self.cnns:
            cast(CNN, cnn).keep_casts()

    def _image_features(self, frames: Tensor, space: gym.Space[Any], cnn: nn.Module) -> Tensor:
        assert isinstance(space, gym.spaces.Box)
        lead = frames.shape[: frames.dim() - len(space.shape)]
        channels_first = to_channels_first(frames.reshape(-1, *space.shape), space)
        # channels_last makes the CPU's convolutions a third faster in training; on bytes the copy is cheap.
        pixels = channels_first.contiguous(memory_format=torch.channels_last).to(self.image_dtype)
        features: Tensor = cnn(pixels, 1.0 / 255.0 if frames.dtype == torch.uint8 else 1.0)
        return features.float().reshape(*lead, -1)


class RecurrentCore(nn.Module):
    """An LSTM or GRU whose state restarts where an episode does. States are [num_states, B, hidden]: (h, c) or (h,)."""

    def __init__(self, kind: Literal["lstm", "gru"], num_inputs: int, size: int, *, orthogonal: bool) -> None:
        super().__init__()
        self.size = size
        self.num_states = 2 if kind == "lstm" else 1
        self.cell: nn.LSTM | nn.GRU = (nn.LSTM if kind == "lstm" else nn.GRU)(num_inputs, size)
        if orthogonal:
            for name, parameter in self.cell.named_parameters():
                nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: features [B, F] to (outputs [B, hidden], the state after it)."""
        w_ih, w_hh = cast(Tensor, self.cell.weight_ih_l0), cast(Tensor, self.cell.weight_hh_l0)
        b_ih, b_hh = cast(Tensor, self.cell.bias_ih_l0), cast(Tensor, self.cell.bias_hh_l0)
        if self.num_states == 2:
            outputs, memory = torch.lstm_cell(features, (state[0], state[1]), w_ih, w_hh, b_ih, b_hh)
            return outputs, torch.stack((outputs, memory))
        outputs = torch.gru_cell(features, state[0], w_ih, w_hh, b_ih, b_hh)
        return outputs, outputs.unsqueeze(0)

    def unroll(
        self, features: Tensor, state: Tensor, episode_starts: Tensor, *, keep_after: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """T steps: features [T, B, F], the state before them, episode_starts [T, B].

        Cut where any env restarts, each piece one call of the fused kernel. Measured at T=128, B=8, 17-25 restarts:
        3-4 times faster forward and backward than a loop over a cell, 2 times than packing every episode.

        Returns:
          outputs [T, B, hidden]; the state after step T-1; the states after each step of `keep_after` (and some more).
        """
        num_steps = features.shape[0]
        restarts = [t for t, any_env in enumerate(episode_starts.any(dim=1).tolist()) if any_env]
        cuts = sorted({0, num_steps, *restarts, *(t + 1 for t in keep_after)})
        outputs: list[Tensor] = []
        states: dict[int, Tensor] = {}
        for begin, end in pairwise(cuts):
            state = state * (~episode_starts[begin]).to(state.dtype).unsqueeze(-1)
            output, state = self._run(features[begin:end], state)
            outputs.append(output)
            states[end - 1] = state
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), state, states

    def _run(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.cell, nn.LSTM):
            outputs, (hidden, memory) = self.cell(features, (state[0:1], state[1:2]))
            return outputs, torch.cat((hidden, memory))
        outputs, hidden = self.cell(features, state)
        return outputs, hidden
