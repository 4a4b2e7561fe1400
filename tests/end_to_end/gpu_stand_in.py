"""own_task.py's task, and stand-ins for the few CUDA calls that vLLM's engine for IPC makes, which every process of a
run gets by importing the task. All else is vLLM's own code and ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from own_task import LongAnswers, LongAnswersConfig  # type: ignore[import-not-found]
from vllm.distributed.weight_transfer import ipc_engine

from rollcall.actors.engine import vllm_weight_transfer


class OnStandInsConfig(LongAnswersConfig):
    name: str = "gpu_stand_in:OnStandIns"


class OnStandIns(LongAnswers):
    Config = OnStandInsConfig


def export(tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
    """As torch's reduce_tensor; the seventh argument is the device's index."""
    return None, (tensor.numpy().tobytes(), str(tensor.dtype), tuple(tensor.shape), None, None, None, 0)


def rebuild(data: bytes, dtype: str, shape: tuple[int, ...], *_: Any) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype.removeprefix("torch.")))
    return flat.reshape(shape)


engine: Any = ipc_engine
engine.reduce_tensor, engine.rebuild_cuda_tensor = export, rebuild
cuda: Any = torch.cuda
cuda.get_device_properties = lambda device=None: SimpleNamespace(uuid="GPU-0")
cuda.ipc_collect = lambda: None
torch.accelerator.current_device_index = lambda: 0
torch.accelerator.synchronize = lambda device=None: None
vllm_weight_transfer.has_gpu = lambda: True
vllm_weight_transfer.register()  # on a CPU, vLLM would go on with matrices that it packed when the model was loaded
