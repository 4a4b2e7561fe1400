"""Low-rank adapters beside a language model's frozen matrices (LoRA: Hu et al., 2021, arXiv:2106.09685), through peft.
The only file that knows peft, which is imported when there are adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.learners.models.flat import Readable, Whole
from rollcall.learners.models.language.lora_config import ALL_LINEAR, LoraConfig

_ADAPTER = "default"


def add_adapters(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Freezes a model and puts adapters beside its target layers. B is zero: the model says what it said before.

    Raises:
      BadInput: when peft is not installed, or as target_names.
    """
    names = target_names(model, config)
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError:
        raise BadInput(
            "LoRA needs the package peft: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu] on a machine with a GPU)"
        ) from None
    settings = PeftConfig(r=config.rank, lora_alpha=cast(int, config.alpha), target_modules=names, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # A is random
        inject_adapter_in_model(settings, model, _ADAPTER)


def target_names(model: nn.Module, config: LoraConfig) -> list[str]:
    """The full names of the layers that get adapters. Never the output layer: where it is tied to the embedding, a
    change of the one would have to be one of the other.

    Raises:
      BadInput: when a target is none of the model's linear layers.
    """
    output = cast(Any, model).get_output_embeddings()
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not output]
    wanted = (config.targets,) if isinstance(config.targets, str) else config.targets
    if wanted == (ALL_LINEAR,) and linear:
        return linear
    chosen: set[str] = set()
    for target in wanted or ("",):
        found = {name for name in linear if f".{name}".endswith(f".{target}")} if target else set()
        if not found:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear)) or "none at all"
            raise BadInput(f"lora.targets: the model has no linear layer {target!r} for an adapter, but {known}")
        chosen |= found
    return [name for name in linear if name in chosen]


class _LoraLayer(Protocol):
    """peft's, as far as we look into it."""

    lora_A: Mapping[str, nn.Linear]
    lora_B: Mapping[str, nn.Linear]
    scaling: Mapping[str, float]

    def get_base_layer(self) -> nn.Linear: ...


def merged_parameters(module: nn.Module, whole: Whole = Tensor.detach) -> Iterator[Readable]:
    """The parameters as they would be without adapters, under the names from before: W + alpha / rank * B A, anew each
    time. W itself stays, so no rounding adds up over versions. `whole`: how a parameter is read."""
    from peft.tuners.lora import LoraLayer

    layers = [cast(_LoraLayer, part) for part in module.modules() if isinstance(part, LoraLayer)]
    adapted = {id(layer.get_base_layer().weight): layer for layer in layers}
    adapters = {id(part[_ADAPTER].weight) for layer in layers for part in (layer.lora_A, layer.lora_B)}
    for name, parameter in module.named_parameters():
        if id(parameter) in adapters:
            continue
        layer = adapted.get(id(parameter))
        value = partial(whole, parameter) if layer is None else partial(_merged, layer, whole)
        yield Readable(name.replace(".base_layer.", "."), parameter, value)


@torch.no_grad()
def _merged(layer: _LoraLayer, whole: Whole) -> Tensor:
    weight, a, b = (
        whole(part.weight).float() for part in (layer.get_base_layer(), layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER])
    )
    return torch.addmm(weight, b, a, alpha=layer.scaling[_ADAPTER])


def merged_tensors(module: nn.Module, whole: Whole = Tensor.detach) -> dict[str, Tensor]:
    """A module's state dict as it would be without adapters."""
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name: tensor for name, tensor in module.state_dict().items() if name not in parameters}
    return {readable.name: readable.value() for readable in merged_parameters(module, whole)} | buffers


class WithoutAdapters(nn.Module):
    """A model as it was before its adapters: the reference, without a second copy of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._adapted = (model,)  # in a tuple, so that it is no child: its parameters are counted once

    def forward(self, *inputs: object, **settings: object) -> object:
        from peft.tuners.tuners_utils import BaseTunerLayer

        (model,) = self._adapted
        layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
        # Not enable_adapters(): that also takes requires_grad away and gives it back, which sharded parameters copy
        # when they are gathered for the first time.
        try:
            for layer in layers:
                layer._disable_adapters = True
            return model(*inputs, **settings)
        finally:
            for layer in layers:
                layer._disable_adapters = False


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Of a model with adapters: these alone, float32 copies, by peft's names in adapter_model.safetensors."""
    ending = f".{_ADAPTER}.weight"
    return {
        f"base_model.model.{name.removesuffix(ending)}.weight": parameter.detach().float().clone().contiguous()
        for name, parameter in model.named_parameters()
        if name.endswith(ending) and ".lora_" in name
    }


def adapted_names(model: nn.Module) -> list[str]:
    """Of a model with adapters: names of the layers that have one. The last parts of the names alone, once each, where
    these mean no other layer too: other programs know layers by them."""
    ending = f".lora_A.{_ADAPTER}"
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    adapted = [name.removesuffix(ending) for name in linear if name.endswith(ending)]
    short = list(dict.fromkeys(name.rpartition(".")[2] for name in adapted))
    plain = {name.removesuffix(".base_layer") for name in linear if ".lora_" not in name}
    return short if {name for name in plain if name.rpartition(".")[2] in short} == set(adapted) else adapted
