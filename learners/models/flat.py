"""Parameters side by side in one buffer, so that an optimiser step, clipping and publishing are one operation each; and
networks to Weights and back. Knows nothing of what the networks compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import BFLOAT16, TensorSpec, Weights, new_buffer
from rollcall.learners.models.halves import split_into

# Every parameter begins on a cache line: kernels choose their path by alignment, and so would the last bit of a result.
_ALIGNMENT = 16  # elements; 64 bytes of float32
Whole = Callable[[Tensor], Tensor]


class Readable(NamedTuple):
    """A parameter as others are to see it."""

    name: str
    tensor: Tensor  # of its dtype and shape
    value: Callable[[], Tensor]


class ReadOut(Protocol):
    """What is published of a module in place of its parameters as they lie there."""

    def __call__(self, module: nn.Module, whole: Whole = ..., /) -> Iterable[Readable]:
        """`whole` reads one parameter, wherever its pieces are."""


class _Placed(NamedTuple):
    spec: TensorSpec
    tensor: Tensor
    value: Callable[[], Tensor]


@dataclass(frozen=True)
class FlatParameters:
    """One module's parameters as one: what to give an optimiser, to clip and to all-reduce.

    The module's parameters are views of `parameter`, their gradients views of `gradient`. Never set a gradient to None
    (`zero_grad(set_to_none=True)`): that cuts the view. The gaps of the alignment hold zeros, and have zero gradients.
    """

    parameter: nn.Parameter  # float32 or bfloat16 [size]; its .grad is `gradient`
    gradient: Tensor  # of its dtype [size]
    specs: Sequence[TensorSpec]  # where each of the module's lies
    rest: Tensor | None = None  # int16 [size]: of bfloat16, what is missing to the float32 that it was


def flatten_module(
    module: nn.Module, *, only_trained: bool = False, dtype: torch.dtype = torch.float32
) -> FlatParameters:
    """Moves all parameters of a module into one contiguous buffer, float32 or in two halves of it (halves.py). Keeps
    their values; drops their gradients. `only_trained`: those without requires_grad (a reference model's, an adapter's
    base) stay where they are.

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
    specs, size = place(named)
    values = torch.zeros(size, device=device, dtype=dtype)
    rest = torch.zeros(size, device=device, dtype=torch.int16) if dtype == torch.bfloat16 else None
    gradients = torch.zeros(size, device=device, dtype=dtype)
    for spec, (_, parameter) in zip(specs, named, strict=True):
        own = slice(spec.offset, spec.offset + spec.size)
        view = values[own].view(spec.shape)
        if rest is None:
            view.copy_(parameter.data)
        else:
            split_into(parameter.data, view, rest[own].view(spec.shape))
        parameter.data = view
        parameter.grad = gradients[own].view(spec.shape)
    flat = nn.Parameter(values)
    flat.grad = gradients
    return FlatParameters(flat, gradients, specs, rest)


def module_weights(
    models: Mapping[str, nn.Module],
    policy_id: str,
    *,
    epoch: int,
    version: int,
    names: Sequence[str] | None = None,
    read_out: Callable[[nn.Module], Iterable[Readable]] | None = None,
    dtype: torch.dtype | None = None,
) -> Weights:
    """Parameters and buffers (normaliser statistics among them) of the models called `names` (default: all) as Weights.

    A flattened model's parameters are one copy. A tensor is called "<model>.<its name in the model>". `read_out`:
    whence the parameters come; None: they are the modules' own. `dtype`: of parameters; None: as they have it. They are
    rounded where they lie, one after the other.
    """
    buffers_of: dict[str, list[Array]] = {}
    sizes: dict[str, int] = {}
    index: list[TensorSpec] = []
    for name in list(models) if names is None else names:
        module = models[name]
        placed, totals = _layout(module, name, read_out, dtype)
        flat = _flat_view(module) if read_out is None and dtype in (None, torch.float32) else None
        for kind, array in _flat_arrays(placed, totals, flat).items():
            buffers_of.setdefault(kind, []).append(array)
        index += [replace(spec, offset=spec.offset + sizes.get(spec.dtype, 0)) for spec, _, _ in placed]
        for kind, total in totals.items():
            sizes[kind] = sizes.get(kind, 0) + total
    buffers = {kind: parts[0] if len(parts) == 1 else np.concatenate(parts) for kind, parts in buffers_of.items()}
    unsigned = Weights(policy_id, epoch, version, tuple(index), buffers)
    return replace(unsigned, checksum=unsigned.compute_checksum())


def own_parameters(module: nn.Module, whole: Whole = Tensor.detach) -> Iterator[Readable]:
    """The ReadOut of a module that publishes its own parameters."""
    return (Readable(name, parameter, partial(whole, parameter)) for name, parameter in module.named_parameters())


def load_module_weights(
    module: nn.Module, weights: Weights, *, name: str = "actor_critic", without: Sequence[str] = ()
) -> None:
    """Copies the tensors of the model called `name` into a module. What weights hold of other models is left aside, and
    so is what they hold of this model's children `without`, for a module that has none of them. A child with a method
    `init_missing` that the weights do not know, since they are older than it, does as was done before it.

    Raises:
      ValueError: naming the first tensor in which the index and the module differ; nothing is copied then.
    """
    placed, _ = _layout(module, name)
    younger = init_missing(module, name, [spec.name for spec in weights.index])
    placed = [item for item in placed if not item.spec.name.startswith(younger)]
    left_aside = tuple(f"{name}.{child}." for child in without)
    given = [
        spec for spec in weights.index if spec.name.startswith(f"{name}.") and not spec.name.startswith(left_aside)
    ]
    for theirs, own in zip_longest(given, placed):
        ours = own.spec if own else None
        if theirs is None or ours is None or _signature(theirs) != _signature(ours):
            raise ValueError(
                f"weights {weights.policy_id} version {weights.version} do not fit {type(module).__name__} {name!r}: "
                f"they hold {_describe(theirs)} where it has {_describe(ours)}"
            )
    pairs = [(theirs, ours, tensor) for theirs, (ours, tensor, _) in zip(given, placed, strict=True)]
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


def init_missing(module: nn.Module, name: str, known: Collection[str]) -> tuple[str, ...]:
    """Lets the children of a module called `name` that have an `init_missing`, and of whose tensors none is `known`, do
    as was done before there was such a child. Returns the beginnings of their tensors' names."""
    found = []
    for child_name, child in module.named_children():
        prefix = f"{name}.{child_name}."
        init: Callable[[], None] | None = getattr(child, "init_missing", None)
        if init is not None and not any(key.startswith(prefix) for key in known):
            init()
            found.append(prefix)
    return tuple(found)


def _signature(spec: TensorSpec) -> tuple[str, str, tuple[int, ...]]:
    # Not the offset: weights that were packed anew, without gaps, hold the same tensors.
    return spec.name, spec.dtype, tuple(spec.shape)


def _describe(spec: TensorSpec | None) -> str:
    return "nothing" if spec is None else f"{spec.name} {spec.dtype}{list(spec.shape)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")  # numpy's name too, for all that numpy has


def place(named: Iterable[tuple[str, Tensor]], offset: int = 0) -> tuple[list[TensorSpec], int]:
    """Aligned places for tensors of one dtype from `offset` on, and where the next would begin."""
    specs = []
    for name, tensor in named:
        specs.append(TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape), offset))
        offset += -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT
    return specs, offset


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that are state. The others are computed anew by whoever builds the module."""
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _layout(
    module: nn.Module,
    name: str,
    read_out: Callable[[nn.Module], Iterable[Readable]] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Sequence[_Placed], dict[str, int]]:
    """Every tensor of a module with its place, parameters first, and the size of each dtype's buffer. `dtype`: of the
    parameters, if not their own."""
    placed: list[_Placed] = []
    totals: dict[str, int] = {}
    buffers = (Readable(key, tensor, tensor.detach) for key, tensor in persistent_buffers(module))
    for tensors, wanted in (((read_out or own_parameters)(module), dtype), (buffers, None)):
        for key, tensor, value in tensors:
            kind = dtype_name(tensor.dtype if wanted is None or not tensor.is_floating_point() else wanted)
            ((spec,), totals[kind]) = place([(f"{name}.{key}", tensor)], totals.get(kind, 0))
            placed.append(_Placed(replace(spec, dtype=kind), tensor, value))
    return placed, totals


def _flat_view(module: nn.Module) -> Tensor | None:
    """A flattened module's parameters as one tensor, or None if they do not lie as flatten_module would put them.

    The module may be one of several that were flattened together: its parameters are then a stretch of their buffer.
    """
    named = list(module.named_parameters())
    if not named or any(parameter.dtype != torch.float32 for _, parameter in named):
        return None
    specs, size = place(named)
    first = named[0][1]
    storage, begin = first.untyped_storage(), first.storage_offset()
    if storage.nbytes() < (begin + size) * first.element_size():
        return None
    for spec, (_, parameter) in zip(specs, named, strict=True):
        in_place = parameter.storage_offset() == begin + spec.offset and parameter.is_contiguous()
        if not in_place or parameter.untyped_storage().data_ptr() != storage.data_ptr():
            return None
    return first.detach().as_strided((size,), (1,), begin)


def _flat_arrays(placed: Sequence[_Placed], totals: Mapping[str, int], flat: Tensor | None) -> dict[str, Array]:
    """A fresh flat array for each dtype, filled from the placed tensors; from `flat`, if they lie there side by side,
    their parameters. Values are read in the order of their places: reading them may take several processes."""
    arrays: dict[str, Array] = {dtype: new_buffer(dtype, total) for dtype, total in totals.items()}
    if flat is not None:
        arrays["float32"][: flat.numel()] = flat.cpu().numpy()
    for spec, tensor, value in placed:
        if flat is None or not isinstance(tensor, nn.Parameter):
            rounded = value().to(getattr(torch, spec.dtype)).cpu().reshape(-1)
            if spec.dtype == BFLOAT16:
                rounded = rounded.view(torch.uint16)
            arrays[spec.dtype][spec.offset : spec.offset + spec.size] = rounded.numpy()
    return arrays


def _copy_into(tensor: Tensor, array: Array) -> None:
    """Copies an array, which may be read-only, into a tensor of the same shape."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    if tensor.device.type == "cpu":
        np.copyto(tensor.numpy(), array)
    else:
        tensor.copy_(torch.from_numpy(array.copy()))
