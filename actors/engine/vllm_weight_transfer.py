"""New weights for the model of a vLLM engine, from arrays of this process: a transfer engine of ours, and the one call
that uses it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BACKEND = "rollcall"  # our engine's name in vLLM's registry
_SHARED = Path("/dev/shm")  # memory that processes of one machine have in common
_incoming: Mapping[str, Tensor] = {}  # what it loads: vLLM's own calls carry plain values only


def load(core: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """Loads `tensors`, by their names in the checkpoint, into the model of vLLM's engine core `core`. Returns the names
    of vLLM's parameters that got nothing, or not all of it: looked for in an engine's first load.

    Raises:
      Exception: from vLLM; the model is half loaded then.
    """
    global _incoming
    _incoming = tensors
    others = core.engine_core.vllm_config.parallel_config.world_size > 1
    with _in_shared_memory(tensors) if others else nullcontext("") as path:
        try:
            core.collective_rpc("start_weight_update")
            core.collective_rpc("update_weights", kwargs={"update_info": {"path": path}})
            core.collective_rpc("finish_weight_update")
        finally:
            _incoming = {}
    return sorted({name for missing in core.collective_rpc("rollcall_missing") for name in missing})


@contextmanager
def _in_shared_memory(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """The path of a file that holds them, for an engine's further processes: nothing is pickled."""
    from safetensors.torch import save_file

    folder = _SHARED if _SHARED.is_dir() else None
    with tempfile.NamedTemporaryFile(prefix="rollcall-weights-", dir=folder) as file:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file.name)
        yield file.name


def has_gpu() -> bool:
    """Whether vLLM's own transfer engines can work in this process."""
    import torch

    return torch.cuda.is_available()


def register() -> str:
    """Makes our engine known to vLLM, once per process and before its first model. Returns its name."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if _BACKEND in WeightTransferEngineFactory._registry:
        return _BACKEND

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        """Where the tensors lie: in a file of shared memory, or, without a path, in this process."""

        path: str = ""

    class ObjectStoreEngine(WeightTransferEngine):  # type: ignore[type-arg]
        """Loads arrays of this process, straight out of the object store's shared memory, or those of a file."""

        init_info_cls = WeightTransferInitInfo
        update_info_cls = UpdateInfo
        _is_first = True
        _reload: _InPlace | _Layerwise
        _loaded: frozenset[str]
        missing: Sequence[str] = ()  # its parameters that got nothing, after its first load

        def init_transfer_engine(self, init_info: Any) -> None: ...

        def start_weight_update(self) -> None:
            if self._is_first:  # what the model directory says would hide that nothing came
                _spoil(self.model.parameters())
            self._reload = reload_of(self.model, self.model_config)
            self._loaded = frozenset()

        def update_weights(self, update_info: Any) -> None:
            # Not vLLM's own, which calls torch.accelerator.synchronize(): on a CPU build that raises.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Any) -> None:
            import torch
            from safetensors.torch import load_file

            load: Any = self.model.load_weights
            tensors = load_file(update_info.path) if update_info.path else _incoming
            with torch.no_grad():
                # Copies out of them, and never writes to them. Some models do not say what they loaded.
                names = load(iter(tensors.items()))
            self._loaded |= dict(self.model.named_parameters()).keys() if names is None else names

        def finish_weight_update(self) -> None:
            self._reload.finish()
            self.missing = _without_weights(self.model, self._loaded) if self._is_first else []
            self._is_first = False

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine(_BACKEND, ObjectStoreEngine)
    return _BACKEND


def reload_of(model: Any, model_config: Any) -> _InPlace | _Layerwise:
    """Begins a load of the whole model, which `finish` ends."""
    on_gpu = any(parameter.device.type != "cpu" for parameter in model.parameters())
    return _Layerwise(model, model_config) if on_gpu else _InPlace(model, model_config.dtype)


class _InPlace:
    """New weights into the place of those before. Layers that vLLM computes with in another form than it loads them in
    (experts, padded and packed) are given room for what is loaded meanwhile. Not vLLM's own reload, of which layers
    know only what came through their parameters' loaders: a model that copies into its parameters itself (GPT-OSS's)
    would keep the experts it had, and say that it loaded them."""

    def __init__(self, model: Any, dtype: Any) -> None:
        self._model, self._dtype = model, dtype
        self._layers = [_PackedLayer(module) for module in model.modules() if _is_packed(module)]

    def finish(self) -> None:
        import torch

        with torch.no_grad():
            for layer in self._layers:
                layer.pack()
            for module in self._model.modules():
                _derive(module, self._dtype)


class _PackedLayer:
    """One layer in the form that it is loaded in, until `pack`."""

    def __init__(self, layer: Any) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
        from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor
        from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

        self._layer = layer
        as_loaded, _ = get_layerwise_info(layer).restore_metadata
        self._packed = {name: parameter for name, parameter in layer._parameters.items() if name in as_loaded}
        for name in self._packed:
            room = materialize_meta_tensor(restore_layer_refs(as_loaded[name], layer))
            _spoil([room])
            layer._parameters[name] = room

    def pack(self) -> None:
        layer = self._layer
        layer.__dict__.pop("_already_called_process_weights_after_loading", None)
        layer.quant_method.process_weights_after_loading(layer)
        for name, parameter in self._packed.items():
            parameter.data.copy_(layer._parameters[name])
            layer._parameters[name] = parameter


class _Layerwise:
    """vLLM's own reload, on GPUs: layer by layer, into the memory that CUDA graphs were captured with."""

    def __init__(self, model: Any, model_config: Any) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._model, self._model_config = model, model_config
        initialize_layerwise_reload(model)

    def finish(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize: Any = finalize_layerwise_reload
        finalize(self._model, self._model_config)


def _is_packed(module: Any) -> bool:
    """Whether a layer computes with its weights in another form than they are loaded in."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    method = getattr(module, "quant_method", None)
    own = [item for item in module._parameters.values() if item is not None]
    plain = isinstance(method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod)
    return method is not None and bool(own) and not (plain and all(item.ndim <= 2 for item in own))


def _derive(module: Any, dtype: Any) -> None:
    """What an attention layer computes of its projections beforehand (MLA), anew."""
    from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer

    if is_deferred_attention_layer(module) and not isinstance(module, Attention):
        module.process_weights_after_loading(dtype)


def _spoil(parameters: Iterable[Tensor]) -> None:
    import torch

    with torch.no_grad():
        for parameter in parameters:
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)


def _without_weights(model: Any, loaded: frozenset[str]) -> list[str]:
    """The parameters that were not loaded, or in which something was left as `_spoil` made it."""
    named = dict(model.named_parameters())
    return [name for name, item in named.items() if name not in loaded or bool(item.isnan().any())]
