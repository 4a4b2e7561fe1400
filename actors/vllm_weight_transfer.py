"""New weights for the model of a vLLM engine, from arrays of this process: a transfer engine of ours, and the one call
that uses it. Must never know where the arrays come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BACKEND = "rollcall"  # our engine's name in vLLM's registry
_incoming: Mapping[str, Tensor] = {}  # what it loads: vLLM's own calls carry plain values only
_missing: list[str] = []  # what it found without weights afterwards


def load(core: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """Loads `tensors`, by their names in the checkpoint, into the model of vLLM's engine core `core`. Returns the names
    of vLLM's parameters that got nothing, or not all of it: looked for in an engine's first load.

    Raises:
      Exception: from vLLM; the model is half loaded then.
    """
    global _incoming
    _incoming = tensors
    _missing.clear()
    try:
        core.collective_rpc("start_weight_update")
        core.collective_rpc("update_weights", kwargs={"update_info": {}})
        core.collective_rpc("finish_weight_update")
    finally:
        _incoming = {}
    return list(_missing)


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
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    if _BACKEND in WeightTransferEngineFactory._registry:
        return _BACKEND

    class ObjectStoreEngine(WeightTransferEngine):  # type: ignore[type-arg]
        """Loads arrays of this process, straight out of the object store's shared memory."""

        init_info_cls = WeightTransferInitInfo
        update_info_cls = WeightTransferUpdateInfo

        _in_place = False
        _is_first = True
        _loaded: frozenset[str] = frozenset()

        def init_transfer_engine(self, init_info: Any) -> None: ...

        def start_weight_update(self) -> None:
            self._in_place = _is_plain(self.model)
            self._loaded = frozenset()
            if not self._in_place:
                initialize_layerwise_reload(self.model)
            elif self._is_first:  # what the model directory says would hide that nothing came
                _spoil(self.model)

        def update_weights(self, update_info: Any) -> None:
            # Not vLLM's own, which calls torch.accelerator.synchronize(): on a CPU build that raises.
            self.receive_weights(update_info)

        def receive_weights(self, update_info: Any) -> None:
            import torch

            load: Any = self.model.load_weights
            with torch.no_grad():
                # Copies out of them, and never writes to them. Some models do not say what they loaded.
                names = load(iter(_incoming.items()))
            self._loaded |= dict(self.model.named_parameters()).keys() if names is None else names

        def finish_weight_update(self) -> None:
            if not self._in_place:
                finalize: Any = finalize_layerwise_reload
                finalize(self.model, self.model_config)
            if self._is_first:
                _missing[:] = _without_weights(self.model, self._loaded)
            self._is_first = False

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine(_BACKEND, ObjectStoreEngine)
    return _BACKEND


def _spoil(model: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)


def _without_weights(model: Any, loaded: frozenset[str]) -> list[str]:
    """The parameters that were not loaded, or in which something was left as `_spoil` made it."""
    named = dict(model.named_parameters())
    return [name for name, item in named.items() if name not in loaded or bool(item.isnan().any())]


def _is_plain(model: Any) -> bool:
    """Whether every weight of a model on CPU is computed with as it was loaded, so that new ones go into its place."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    plain = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod, type(None))
    return all(parameter.device.type == "cpu" and parameter.ndim <= 2 for parameter in model.parameters()) and all(
        type(getattr(module, "quant_method", None)) in plain
        and (isinstance(module, Attention) or not hasattr(module, "process_weights_after_loading"))
        for module in model.modules()
    )
