"""What vLLM does and we cannot use, put right before its first model: where it packs weights that are to be replaced,
where it changes transformers' classes for the whole process, and where it computes what nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, wraps
from typing import Any

_DRAWS = 64  # of a request's generator at a time


def install() -> None:
    """Each once per process, however often this is called."""
    _keep_matrices_as_they_are()
    _pack_experts_again()
    _leave_transformers_alone()
    _draw_seeds_in_blocks()
    _count_no_ranks()


@cache
def _keep_matrices_as_they_are() -> None:
    """On CPU, vLLM packs each matrix for oneDNN when a model is loaded, and again for each version, with a kernel to be
    made for every number of rows. A policy changes every second: torch's own product, which takes the same time
    (measured), leaves weights where new ones can be copied over them."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def keep(layer: Any, remove_weight: bool) -> None:
        import torch

        if layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = keep


@cache
def _pack_experts_again() -> None:
    """On CPU, vLLM pads and packs a layer's experts when a model is loaded, and not when it is loaded again: its kernel
    would then read plain weights as if they were packed."""
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    setup = UnquantizedFusedMoEMethod._setup_kernel

    @wraps(setup)
    def setup_and_pack(self: Any, layer: Any, w13: Any, w2: Any) -> None:
        again = self.moe_kernel is not None
        setup(self, layer, w13, w2)
        if again and self.unquantized_backend == UnquantizedMoeBackend.CPU:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = setup_and_pack  # type: ignore[method-assign]


@cache
def _leave_transformers_alone() -> None:
    """Of a model that vLLM has no code of its own for, it takes transformers' class and makes it one that can only be
    built and called within vLLM, for the whole process: the learner's model would be of that class too."""
    from vllm.config import get_current_vllm_config_or_none
    from vllm.model_executor.models.transformers.base import Base

    decorate = Base._decorate_cls_for_torch_compile

    @wraps(decorate)
    def decorate_for_vllm_alone(self: Any, cls: Any, *args: Any, **kwargs: Any) -> None:
        own_init, own_call = cls.__init__, cls.__call__
        decorate(self, cls, *args, **kwargs)
        if cls.__init__ is own_init:  # an earlier engine of this process has been here
            return
        vllms_init, vllms_call = cls.__init__, cls.__call__

        @wraps(own_init)
        def init(model: Any, *args: Any, **kwargs: Any) -> None:
            within = get_current_vllm_config_or_none() is not None
            (vllms_init if within else own_init)(model, *args, **kwargs)

        @wraps(own_call)
        def call(model: Any, *args: Any, **kwargs: Any) -> Any:
            return (vllms_call if hasattr(model, "vllm_config") else own_call)(model, *args, **kwargs)

        cls.__init__, cls.__call__ = init, call

    Base._decorate_cls_for_torch_compile = decorate_for_vllm_alone  # type: ignore[method-assign]


@cache
def _draw_seeds_in_blocks() -> None:
    """On CPU, vLLM draws one number a token from each request's generator, with a call of torch each: 2 ms of a step of
    512 requests. The same numbers come in blocks. (A GPU's model runner makes a token's noise of seed and position.)"""
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

    forward = TopKTopPSampler.forward_cpu
    streams: dict[int, tuple[Any, Iterator[int]]] = {}  # by the generator's address, which it keeps taken

    def draws(generator: Any) -> Iterator[int]:
        while True:
            yield from torch.randint(0, 2**31, (_DRAWS,), generator=generator, dtype=torch.long).tolist()

    def draw(generator: Any) -> int:
        known = streams.get(id(generator))
        if known is None:
            known = streams[id(generator)] = generator, draws(generator)
        return next(known[1])

    @wraps(forward)
    def forward_cpu(self: Any, logits: Any, generators: dict[int, Any], k: Any, p: Any) -> Any:
        if self.use_fp64_gumbel or not generators or self.logprobs_mode != "processed_logprobs":
            return forward(self, logits, generators, k, p)
        if len(streams) > 4 * len(generators) + _DRAWS:  # most are of requests that have ended
            for gone in streams.keys() - {id(generator) for generator in generators.values()}:
                del streams[gone]
        logits = apply_top_k_top_p(logits, k, p)
        seeds = torch.randint(0, 2**31, (logits.shape[0],), dtype=torch.long)
        seeds[list(generators)] = torch.tensor([draw(generator) for generator in generators.values()])
        chosen = torch.ops._C.fused_gumbel_argmax(logits.float(), seeds)
        return chosen, logits.log_softmax(dim=-1, dtype=torch.float32)

    TopKTopPSampler.forward_cpu = forward_cpu  # type: ignore[method-assign]


@cache
def _count_no_ranks() -> None:
    """With every log-probability vLLM says which rank its token has, by a function that it compiles at the first token:
    4 s of an engine's start. Nobody here reads ranks."""
    import torch
    from vllm.v1.sample import sampler

    module: Any = sampler

    def no_ranks(logprobs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(logprobs), dtype=torch.int64, device=logprobs.device)

    module.batched_count_greater_than = no_ranks
