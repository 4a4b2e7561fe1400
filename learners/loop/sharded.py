"""A learner's models in pieces: each process holds its share of every parameter, gradient and optimiser state, and a
layer is gathered for the moment in which it is computed (FSDP: Zhao et al., 2023, arXiv:2304.11277; torch's
fully_shard). Torch's distributed state dicts are not used: a checkpoint here has one flat array for any number of
processes, which they would only be cut out of again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import TensorSpec
from rollcall.learners.collective import Collective
from rollcall.learners.loop.optimizer_config import OptimizerConfig
from rollcall.learners.loop.parameters import FsdpUnits, make_rule
from rollcall.learners.loop.rules import PARAMETERS, decays, gradient_norm
from rollcall.learners.models.flat import Whole, place
from rollcall.learners.models.halves import split_into

Rows = TypeVar("Rows", Array, Tensor)


class ShardedParameters:
    """Steps this process's shards of the trained parameters. Of a parameter [n, ...], process r of N holds the rows
    from r * ceil(n / N) on, ceil(n / N) of them as far as there are.

    The optimiser knows nothing of it: it is given the shards as plain parameters, their gradients views of one buffer,
    into which backward adds the sums over all processes.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        units: FsdpUnits,
        device: torch.device,
        collective: Collective,
        optimizer: OptimizerConfig,
        learning_rate: float,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        """`dtype` and `offload` as ReplicatedParameters'."""
        self._collective = collective
        self._learning_rate = learning_rate
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)
        self._mesh = init_device_mesh(device.type, (collective.num_processes,))
        rests = self._halved(models) if dtype == torch.bfloat16 else []
        self._roots = [_shard(model, units, self._mesh) for model in models.values() if _has_parameters(model)]
        for model in models.values():
            if not _has_parameters(model):
                model.to(device)
        named = nn.ModuleDict(dict(models)).named_parameters()
        trained = [(name, cast(DTensor, parameter)) for name, parameter in named if parameter.requires_grad]
        self._specs, self._size = place(trained)  # as flatten_module places them: of that form is the checkpoint
        self._trained = [parameter for _, parameter in trained]
        self._shards, self._gradient = _as_plain(self._trained, self._mesh)
        pairs = zip(trained, self._shards, strict=True)
        decayed = [
            (index, slice(0, shard.numel()))
            for index, ((name, parameter), shard) in enumerate(pairs)
            if decays(name, parameter)
        ]
        rests = [rest.to(self.device) for rest in rests]
        self._rule = make_rule(self._shards, rests, decayed, optimizer, learning_rate=learning_rate, offload=offload)

    @property
    def device(self) -> torch.device:
        return self._gradient.device

    @property
    def gradient(self) -> Tensor:
        return self._gradient

    def flat(self) -> Tensor:
        raise ValueError(
            "learner.sharding=fsdp: this algorithm's update reads and writes whole parameters, and each process holds "
            "a part of them: set learner.sharding=none"
        )

    def places(self) -> Iterable[tuple[nn.Parameter, TensorSpec]]:
        return zip(cast(Sequence[nn.Parameter], self._trained), self._specs, strict=True)

    def zero_gradients(self) -> None:
        self._gradient.zero_()

    def sum_gradients(self, loss: Tensor) -> None:
        self._gradient[:1].add_(loss * 0.0)  # the gradients are summed already; their norm is everyone's

    def gradient_norm(self) -> Tensor:
        square = gradient_norm(self._gradient).double().square()  # double: a float32 square overflows early
        self._collective.sum_(square)
        return square.sqrt().float()

    def clip_gradients(self, max_norm: float, norm: Tensor) -> None:
        self._rule.scale_gradients((max_norm / (norm + 1e-6)).clamp(max=1.0))

    def scale_learning_rates(self, share: float) -> None:
        self._rule.set_learning_rate(self._learning_rate * share)

    def step(self, skip: Tensor, models: Collection[str] | None = None) -> None:
        assert models is None, "models in pieces are stepped together"
        self._let_go()
        self._rule.step(skip)

    def tensors(self) -> dict[str, Tensor]:
        return self._rule.state_tensors()

    def state(self) -> dict[str, Array]:
        state = {}
        for name in self._rule.names():
            tensors = self._rule.live(name)
            if tensors[0].dim() == 0:  # a count of steps, the same for all
                state[name] = tensors[0].cpu().numpy()
                continue
            flat = np.zeros(self._size if self._collective.rank == 0 else 0, np.float32)
            for index, (spec, parameter) in enumerate(zip(self._specs, self._trained, strict=True)):
                value = self._in_full(parameter, name, index)
                if self._collective.rank == 0:
                    flat[spec.offset : spec.offset + spec.size] = value.reshape(-1).cpu().numpy()
            state[name] = flat
        return state

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        names = self._rule.names()
        return {name: () if self._rule.live(name)[0].dim() == 0 else (self._size,) for name in names}

    def load_state(self, state: Mapping[str, Array]) -> None:
        for name in self._rule.names():
            for index, (spec, tensor) in enumerate(zip(self._specs, self._rule.live(name), strict=True)):
                value = state[name]
                if tensor.dim() > 0:
                    value = self._rows(value[spec.offset : spec.offset + spec.size].reshape(spec.shape))
                self._rule.write(name, index, torch.from_numpy(np.array(value)))

    @property
    def in_pieces(self) -> bool:
        return True

    def whole(self) -> Whole | None:
        self._let_go()  # a gathered model would show its parameters as they were when it was gathered
        if self._gradient.dtype == torch.float32:
            return _gathered
        numbers = {id(parameter): index for index, parameter in enumerate(self._trained)}

        def in_full(tensor: Tensor) -> Tensor:
            index = numbers.get(id(tensor))
            return _gathered(tensor) if index is None else self._in_full(self._trained[index], PARAMETERS, index)

        return in_full

    def _let_go(self) -> None:
        """The parts of a model outside its units stay gathered after a forward pass, until backward: also after one
        that has none."""
        for root in self._roots:
            root.reshard()

    def _rows(self, value: Rows) -> Rows:
        """This process's."""
        share = -(-len(value) // self._collective.num_processes)
        begin = self._collective.rank * share
        return value[begin : begin + share]

    def _in_full(self, parameter: DTensor, name: str, index: int) -> Tensor:
        shard = self._rule.read(name, index).view(self._shards[index].shape)
        return _from_shard(parameter, shard, self._mesh).full_tensor()

    def _halved(self, models: Mapping[str, nn.Module]) -> list[Tensor]:
        """Makes what is trained bfloat16. Returns this process's rows of the other halves."""
        rests = []
        for parameter in nn.ModuleDict(dict(models)).parameters():
            if parameter.requires_grad:
                upper = torch.empty_like(parameter.data, dtype=torch.bfloat16)
                rest = torch.empty_like(parameter.data, dtype=torch.int16)
                split_into(parameter.data, upper, rest)
                parameter.data = upper
                rests.append(self._rows(rest).clone())
        return rests


def _shard(model: nn.Module, units: FsdpUnits, mesh: DeviceMesh) -> FSDPModule:
    """In place: units first, then what they leave. On a GPU, each unit is moved there and cut before the next."""
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # gradients are summed so, whatever they are kept in
    for part in [*units(model), model]:
        shard = fully_shard(part, mesh=mesh, mp_policy=precision)
        # Losses are weighted sums over the whole minibatch: gradients add up, and are not averaged. Of the two ways to
        # say so, gloo knows this one.
        shard.set_gradient_divide_factor(1.0)
        shard.set_force_sum_reduction_for_comms(True)
    return shard


def _as_plain(parameters: Sequence[DTensor], mesh: DeviceMesh) -> tuple[list[nn.Parameter], Tensor]:
    """The shards as parameters of their own, in the same memory; their gradients side by side. Backward adds to a
    gradient that is there already: to these."""
    with torch.no_grad():
        locals_ = [parameter.to_local() for parameter in parameters]
        specs, size = place((str(index), tensor) for index, tensor in enumerate(locals_))
        gradient = torch.zeros(size, device=locals_[0].device, dtype=locals_[0].dtype)
        shards = []
        for spec, parameter, tensor in zip(specs, parameters, locals_, strict=True):
            view = gradient[spec.offset : spec.offset + spec.size].view(spec.shape)
            parameter.grad = _from_shard(parameter, view, mesh)
            shard = nn.Parameter(tensor)
            shard.grad = view
            shards.append(shard)
    return shards, gradient


def _from_shard(parameter: DTensor, shard: Tensor, mesh: DeviceMesh) -> DTensor:
    """A shard as the whole that it is a part of, of the shape of a parameter."""
    return DTensor.from_local(
        shard, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def _has_parameters(model: nn.Module) -> bool:
    return next(model.parameters(), None) is not None


def _gathered(tensor: Tensor) -> Tensor:
    own = tensor.detach()
    return own.full_tensor() if isinstance(own, DTensor) else own
