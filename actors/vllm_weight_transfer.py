"""New weights for the model of a vLLM engine, from arrays of this process: a transfer engine of ours, and the one call
that uses it. Must never know where the arrays come from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from rollcall.cluster.messages import Array

_BACKEND = "rollcall"  # our engine's name in vLLM's registry
_incoming: Mapping[str, Array] = {}  # what it loads: vLLM's own calls carry plain values only


def load(core: Any, tensors: Mapping[str, Array]) -> None:
    """Loads `tensors`, by their names in the checkpoint, into the model of vLLM's engine core `core`.

    Raises:
      Exception: from vLLM; the model is half loaded then.
    """
    global _incoming
    _incoming = tensors
    try:
        core.collective_rpc("start_weight_update")
        core.collective_rpc("update_weights", kwargs={"update_info": {}})
        core.collective_rpc("finish_weight_update")
    finally:
        _incoming = {}


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
    _keep_weights_as_they_are()

    class ObjectStoreEngine(WeightTransferEngine):  # type: ignore[type-arg]
        """Loads arrays of this process, straight out of the object store's shared memory."""

        init_info_cls = WeightTransferInitInfo
        update_info_cls = WeightTransferUpdateInfo

        def init_transfer_engine(self, init_info: Any) -> None:
            self._in_place = False

        def start_weight_update(self) -> None:
            self._in_place = _is_plain(self.model)
            if not self._in_place:
                initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: Any) -> None:
            # Not vLLM's own, which calls torch.accelerator.synchronize(): on a CPU build that raises.
            self.receive_weights(update_info)

        def receive_weights(self, update_info: Any) -> None:
            import torch

            # Loading copies out of these arrays and never writes to them; torch warns of read-only ones it cannot know.
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                load: Any = self.model.load_weights
                load((name, torch.from_numpy(array)) for name, array in _incoming.items())

        def finish_weight_update(self) -> None:
            if not self._in_place:
                finalize: Any = finalize_layerwise_reload
                finalize(self.model, self.model_config)

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine(_BACKEND, ObjectStoreEngine)
    return _BACKEND


def _keep_weights_as_they_are() -> None:
    """On CPU, vLLM packs each matrix for oneDNN when a model is loaded, and again for each version, with a kernel to be
    made for every number of rows. A policy changes every second: torch's own product, which takes the same time
    (measured), leaves weights where new ones can be copied over them."""
    from vllm.model_executor.layers import utils

    def keep(layer: Any, remove_weight: bool) -> None:
        import torch

        if layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight)

    pack = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = keep


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
