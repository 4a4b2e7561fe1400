"""The learner's side of vLLM's own weight-transfer engines (NCCL, CUDA IPC): GPU to GPU, past the object store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

Transport = Literal["nccl", "ipc"]


class EngineControl(Protocol):
    """One generation engine as vLLM's trainer side sees it: calls that are carried out between two of its steps."""

    def call(self, method: str, arguments: Mapping[str, Any]) -> None:
        """One of vLLM's control calls, in the engine's process; returns when it is done.

        Raises:
          Exception: when the engine refused it, died, or did not answer in time.
        """


class WeightSender:
    """Sends tensors of this process to one engine. One call at a time: vLLM's packing has its CUDA streams in common.
    Builds on vLLM's own trainer engines, which lead the engine through each update by way of `EngineControl`."""

    def __init__(self, transport: Transport, engine: EngineControl, *, address: tuple[str, int]) -> None:
        """Meets the engine. `address`: host and port that are free in this process, where NCCL's two ends meet.

        Raises:
          Exception: from vLLM or NCCL, when they do not meet.
        """
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        class Source(WeightSource):
            tensors: Mapping[str, Any] = {}

            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(name, item.dtype, tuple(item.shape)) for name, item in self.tensors.items()]

            def __iter__(self) -> Any:
                return iter(self.tensors.items())

        self._source = Source()
        host, port = address
        # A group of two for each engine: one that dies takes nobody else's weights along.
        info = (
            NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=2, rank=0)
            if transport == "nccl"
            else IPCTrainerInitInfo(rank=0)
        )
        self._trainer: Any = None
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            info, client=_Client(engine, self.abort), source=self._source
        )

    def send(self, tensors: Mapping[str, Any]) -> None:
        """Replaces the engine's weights by `tensors`, by their names in the checkpoint. They must stay as they are
        until this returns.

        Raises:
          Exception: from vLLM, NCCL or the engine's process; the engine's model may be half loaded then.
        """
        self._source.tensors = tensors
        try:
            self._trainer.send_weights()
        finally:
            self._source.tensors = {}

    def abort(self) -> None:
        """Ends what is under way, from any thread: a broadcast that its receiver has left never ends by itself."""
        if self._trainer is not None:
            self._trainer.shutdown()


class _Client:
    """vLLM's `VLLMWeightSyncClient`, by way of `EngineControl`."""

    def __init__(self, engine: EngineControl, abort: Any) -> None:
        self._engine = engine
        self._abort = abort

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._call("start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update", {})

    def _call(self, method: str, arguments: Mapping[str, Any]) -> None:
        try:
            self._engine.call(method, arguments)
        except BaseException:
            self._abort()
            raise
