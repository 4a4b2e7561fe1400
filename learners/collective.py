"""What the processes of one learner say to each other: sums of gradients and metrics, over gloo on CPUs and NCCL on
GPUs. Knows tensors, nothing of losses."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor


class Collective:
    """This process's place among `num_processes`. With one process, everything is free."""

    def __init__(self, *, rank: int = 0, num_processes: int = 1) -> None:
        self.rank = rank
        self.num_processes = num_processes

    @classmethod
    def join(
        cls, *, rank: int, num_processes: int, address: str, device: torch.device, timeout_s: float = 600.0
    ) -> Collective:
        """Meets the others at `address`: "host:port" of process 0, or "file:///path" of a file that is not there yet.
        Every later collective has this deadline too: it must leave process 0 the time to write a large model's
        checkpoint, while the others are at the next step."""
        torch.distributed.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            init_method=address if "://" in address else f"tcp://{address}",
            rank=rank,
            world_size=num_processes,
            timeout=timedelta(seconds=timeout_s),
        )
        return cls(rank=rank, num_processes=num_processes)

    def sum_(self, tensor: Tensor) -> None:
        """Replaces `tensor` by its sum over all processes, in the same order everywhere."""
        if self.num_processes > 1:
            torch.distributed.all_reduce(tensor)

    def leave(self) -> None:
        if self.num_processes > 1:
            torch.distributed.destroy_process_group()
