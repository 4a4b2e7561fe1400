"""Attention over one row that holds many samples, without padding: FlexAttention, which computes what a block mask
lets be seen and no more. Known to transformers as an attention of its own, PACKED, which takes other rows as `sdpa`
does: so a model that has it takes both."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rollcall.learners.batches.placement import PACKED_MULTIPLE, PackedSamples

PACKED = "rollcall_packed"
_BLOCK = 128  # of FlexAttention's own default
_CLOSE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # how far a kernel's arithmetic may be from a plain one's
assert PACKED_MULTIPLE % _BLOCK == 0


def register() -> None:
    """Makes PACKED known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: object,
        **settings: Any,  # noqa: ANN401
    ) -> tuple[Tensor, None]:
        if isinstance(attention_mask, BlockMask):
            return attend(query, key, value, attention_mask, **settings).transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(module, query, key, value, cast(Any, attention_mask), **settings)

    AttentionInterface.register(PACKED, attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> Tensor:
    """[1, heads, T, width], of queries [1, heads, T, width], keys and values [1, fewer heads, T, width].

    Raises:
      NotImplementedError: for what this attention does not do: sinks, biases, dropout.
    """
    if dropout or s_aux is not None or position_bias is not None:
        raise NotImplementedError("packed rows: no attention sinks, position biases or dropout")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which knows this operation by no name
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    with torch.autocast(device, enabled=False):
        computed = _plain if device == "cpu" else _compiled_flex()  # FlexAttention has no gradient on CPUs
        return computed(query, key, value, mask, scaling, softcap)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None, softcap: float | None
) -> Tensor:
    score_mod = None
    if softcap is not None:
        cap = softcap

        def score_mod(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
            return cap * torch.tanh(score / cap)

    grouped = query.shape[1] != key.shape[1]
    return flex_attention(query, key, value, score_mod=score_mod, block_mask=mask, scale=scaling, enable_gqa=grouped)


@lru_cache
def _compiled_flex() -> Callable[..., Tensor]:
    # The second length that it sees makes the length a variable. With parts left out of the graph, or beyond the limit,
    # it would compute and hold every score, on the quiet: so neither may be.
    compiled: Callable[..., Tensor] = cast(Any, torch.compile)(_flex, fullgraph=True, recompile_limit=64)
    return compiled


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None, softcap: float | None
) -> Tensor:
    """The definition, which computes and holds every score."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(query.shape[2], device=query.device)
    seen = mask.mask_mod(place[:1], place[:1], place[:, None], place)
    dtype = torch.promote_types(query.dtype, torch.float32)
    return scores.to(dtype).masked_fill(~seen, -torch.inf).softmax(-1).to(value.dtype) @ value


def works_on(device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, width: int) -> bool:
    """Whether the device's kernel for such heads says what plain attention says, and its gradients: two samples to one
    prompt, at two lengths, after which the kernel is compiled for any."""
    close = []
    for length in (2 * _BLOCK, 3 * _BLOCK):
        place = torch.arange(length, device=device)
        begin = torch.where(place < 200, 0, 200)
        samples = PackedSamples(place[None], torch.zeros_like(place), torch.where(place < 200, 0, 100), begin)
        mask = block_mask(samples)
        query, key, value = inputs = [
            _waves(heads, length, width, device, dtype) for heads in (num_heads, num_kv_heads, num_kv_heads)
        ]
        same = [part.detach().double().requires_grad_() for part in inputs]
        found = attend(query, key, value, mask, scaling=width**-0.5)
        expected = _plain(same[0], same[1], same[2], mask, None, None)
        pairs = [
            (found, expected),
            *zip(
                torch.autograd.grad(found.double().square().sum(), inputs),
                torch.autograd.grad(expected.square().sum(), same),
                strict=True,
            ),
        ]
        close += [bool((one.double() - other).norm() <= _CLOSE[dtype] * other.norm()) for one, other in pairs]
    return all(close)


def _waves(heads: int, length: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers that differ from head to head, place to place, and one another."""
    count = torch.arange(heads * length * width, dtype=torch.float64, device=device)
    return (count * 0.7).sin().view(1, heads, length, width).to(dtype).requires_grad_()


def block_mask(samples: PackedSamples, window: int | None = None) -> BlockMask:
    """Who sees whom; of windowed layers, the last `window` positions alone.

    What a token sees are two stretches of the row (PackedSamples), so the blocks are counted, not tried: of T tokens
    that is [T, T / 128] numbers, not [T, T].
    """
    prompt_begin, prompt_end, begin = samples.prompt_begin, samples.prompt_end, samples.begin
    place = torch.arange(len(begin), device=begin.device)
    if window is not None:
        begin = torch.maximum(begin, place - window + 1)
        prompt_begin = torch.maximum(prompt_begin, prompt_begin + samples.positions[0] - window + 1)

    def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_prompt = (key >= prompt_begin[query]) & (key < prompt_end[query])
        return of_prompt | ((key >= begin[query]) & (key <= query))

    block = place[::_BLOCK]
    seen = _within(prompt_begin, prompt_end, block) + _within(begin, place + 1, block)  # [T, T / 128] keys
    seen = seen.view(len(block), _BLOCK, len(block))
    whole = (seen == _BLOCK).all(1)
    partly = (seen > 0).any(1) & ~whole
    mask = BlockMask.from_kv_blocks(*_ordered(partly), *_ordered(whole), BLOCK_SIZE=_BLOCK, mask_mod=sees)
    cast(Any, mask).ndim = 4  # GPT-2 asks for it
    return mask


def _within(begin: Tensor, end: Tensor, block: Tensor) -> Tensor:
    """[T, B]: how many of the places begin[t], ..., end[t] - 1 each block has."""
    last = torch.minimum(end[:, None], block + _BLOCK)
    return (last - torch.maximum(begin[:, None], block)).clamp(min=0)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of which blocks [B, B] are computed: their number in each row, and they first."""
    first = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], first.int()[None, None]
