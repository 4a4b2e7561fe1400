"""Parameters side by side in one buffer, so that an optimiser step, clipping and publishing are one operation each; and
networks to Weights and back. Knows nothing of what the networks compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.messages import Array, TensorSpec, Weights

# Every parameter begins on a cache line: kernels choose their path by alignment, and so would the last bit of a result.
_ALIGNMENT = 16  # elements; 64 bytes of float32

_NamedTensors = Sequence[tuple[TensorSpec, Tensor]]


@dataclass(frozen=True)
class FlatParameters:
    """One module's parameters as one: what to give an optimiser, to clip and to all-reduce.

    The module's parameters are views of `parameter`, their gradients views of `gradient`. Never set a gradient to None
    (`zero_grad(set_to_none=True)`): that cuts the view. The gaps of the alignment hold zeros, and have zero gradients.
    """

    parameter: nn.Parameter  # float32 [size]; its .grad is `gradient`
    gradient: Tensor  # float32 [size]


def flatten_module(module: nn.Module, *, only_trained: bool = False) -> FlatParameters:
    """Moves all parameters of a module into one contiguous float32 buffer. Keeps their values; drops their gradients.
    `only_trained`: those without requires_grad (a reference model's, an adapter's base) stay where they are.

    Raises:
      ValueError: if a parameter is not float32, or they are not all on one device.
    """
    named = list(module.named_parameters())
    if only_trained:
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no parameters to flatten")
    device = named[0][1].device
    for name, parameter in named:
        if parameter.dtype != torch.float32 or parameter.device != device:
            raise ValueError(
                f"parameter {name} is {parameter.dtype} on {parameter.device}: flattening needs float32 on {device}"
            )
    specs, size = _place(named, 0)
    values = torch.zeros(size, device=device)
    gradients = torch.zeros(size, device=device)
    for spec, (_, parameter) in zip(specs, named, strict=True):
        view = values[spec.offset : spec.offset + spec.size].view(spec.shape)
        view.copy_(parameter.data)
        parameter.data = view
        parameter.grad = gradients[spec.offset : spec.offset + spec.size].view(spec.shape)
    flat = nn.Parameter(values)
    flat.grad = gradients
    return FlatParameters(flat, gradients)


def module_weights(
    models: Mapping[str, nn.Module], policy_id: str, *, epoch: int, version: int, names: Sequence[str] | None = None
) -> Weights:
    """Parameters and buffers (normaliser statistics among them) of the models called `names` (default: all) as Weights.

    A flattened model's parameters are one copy. A tensor is called "<model>.<its name in the model>".
    """
    buffers_of: dict[str, list[Array]] = {}
    sizes: dict[str, int] = {}
    index: list[TensorSpec] = []
    for name in list(models) if names is None else names:
        module = models[name]
        specs, totals = _layout(module, name)
        for dtype, flat in _flat_arrays(module, specs, totals):
            buffers_of.setdefault(dtype, []).append(flat)
        index += [replace(spec, offset=spec.offset + sizes.get(spec.dtype, 0)) for spec, _ in specs]
        for dtype, total in totals.items():
            sizes[dtype] = sizes.get(dtype, 0) + total
    buffers = {dtype: parts[0] if len(parts) == 1 else np.concatenate(parts) for dtype, parts in buffers_of.items()}
    unsigned = Weights(policy_id, epoch, version, tuple(index), buffers)
    return replace(unsigned, checksum=unsigned.compute_checksum())


def load_module_weights(
    module: nn.Module, weights: Weights, *, name: str = "actor_critic", without: Sequence[str] = ()
) -> None:
    """Copies the tensors of the model called `name` into a module. What weights hold of other models is left aside, and
    so is what they hold of this model's children `without`, for a module that has none of them.

    Raises:
      ValueError: naming the first tensor in which the index and the module differ; nothing is copied then.
    """
    specs, _ = _layout(module, name)
    left_aside = tuple(f"{name}.{child}." for child in without)
    given = [
        spec for spec in weights.index if spec.name.startswith(f"{name}.") and not spec.name.startswith(left_aside)
    ]
    for theirs, pair in zip_longest(given, specs):
        ours = pair[0] if pair else None
        if theirs is None or ours is None or _signature(theirs) != _signature(ours):
            raise ValueError(
                f"weights {weights.policy_id} version {weights.version} do not fit {type(module).__name__} {name!r}: "
                f"they hold {_describe(theirs)} where it has {_describe(ours)}"
            )
    pairs = [(theirs, ours, tensor) for theirs, (ours, tensor) in zip(given, specs, strict=True)]
    flat = _flat_view(module)
    if flat is not None:
        begin = given[0].offset  # a module's parameters come first
        parameters = [pair for pair in pairs if isinstance(pair[2], nn.Parameter)]
        if all(theirs.offset - begin == ours.offset for theirs, ours, _ in parameters):
            used = parameters[-1][1].offset + parameters[-1][1].size
            _copy_into(flat[:used], weights.buffers["float32"][begin : begin + used])
            pairs = [pair for pair in pairs if not isinstance(pair[2], nn.Parameter)]
    for theirs, _, tensor in pairs:
        part = weights.buffers[theirs.dtype][theirs.offset : theirs.offset + theirs.size]
        _copy_into(tensor, part.reshape(theirs.shape))


def _signature(spec: TensorSpec) -> tuple[str, str, tuple[int, ...]]:
    # Not the offset: weights that were packed anew, without gaps, hold the same tensors.
    return spec.name, spec.dtype, tuple(spec.shape)


def _describe(spec: TensorSpec | None) -> str:
    return "nothing" if spec is None else f"{spec.name} {spec.dtype}{list(spec.shape)}"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")  # numpy's name too, for all that numpy has


def _place(named: Iterable[tuple[str, Tensor]], offset: int) -> tuple[list[TensorSpec], int]:
    """Aligned places for tensors of one dtype from `offset` on, and where the next would begin."""
    specs = []
    for name, tensor in named:
        specs.append(TensorSpec(name, _dtype_name(tensor), tuple(tensor.shape), offset))
        offset += -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT
    return specs, offset


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that are state. The others are computed anew by whoever builds the module."""
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _layout(module: nn.Module, name: str) -> tuple[_NamedTensors, dict[str, int]]:
    """Every tensor of a module with its place, parameters first, and the size of each dtype's buffer."""
    placed: list[tuple[TensorSpec, Tensor]] = []
    totals: dict[str, int] = {}
    tensors: Iterator[tuple[str, Tensor]]
    for tensors in (iter(module.named_parameters()), _persistent_buffers(module)):
        for key, tensor in tensors:
            dtype = _dtype_name(tensor)
            specs, totals[dtype] = _place([(f"{name}.{key}", tensor)], totals.get(dtype, 0))
            placed.append((specs[0], tensor))
    return placed, totals


def _flat_view(module: nn.Module) -> Tensor | None:
    """A flattened module's parameters as one tensor, or None if they do not lie as flatten_module would put them.

    The module may be one of several that were flattened together: its parameters are then a stretch of their buffer.
    """
    named = list(module.named_parameters())
    if not named or any(parameter.dtype != torch.float32 for _, parameter in named):
        return None
    specs, size = _place(named, 0)
    first = named[0][1]
    storage, begin = first.untyped_storage(), first.storage_offset()
    if storage.nbytes() < (begin + size) * first.element_size():
        return None
    for spec, (_, parameter) in zip(specs, named, strict=True):
        in_place = parameter.storage_offset() == begin + spec.offset and parameter.is_contiguous()
        if not in_place or parameter.untyped_storage().data_ptr() != storage.data_ptr():
            return None
    return first.detach().as_strided((size,), (1,), begin)


def _flat_arrays(module: nn.Module, specs: _NamedTensors, totals: Mapping[str, int]) -> Iterator[tuple[str, Array]]:
    """A fresh flat array for each dtype, filled from a module's tensors."""
    flat = _flat_view(module)
    for dtype, total in totals.items():
        array = np.zeros(total, dtype=np.dtype(dtype))
        if flat is not None and dtype == "float32":
            array[: flat.numel()] = flat.cpu().numpy()
        for spec, tensor in specs:
            if spec.dtype == dtype and (flat is None or not isinstance(tensor, nn.Parameter)):
                array[spec.offset : spec.offset + spec.size] = tensor.detach().cpu().numpy().reshape(-1)
        yield dtype, array


def _copy_into(tensor: Tensor, array: Array) -> None:
    """Copies an array, which may be read-only, into a tensor of the same shape."""
    if tensor.device.type == "cpu":
        np.copyto(tensor.detach().numpy(), array)
    else:
        tensor.detach().copy_(torch.from_numpy(array.copy()))
