"""Log-probabilities of many tokens without the logits of all of them: chunk after chunk, and for the gradient each
chunk once more. Of a vocabulary of 150,000, the logits of 16,384 tokens are 10 GB, and their gradient as many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from rollcall.learners.maths.sampling import Distribution, Processed, logits_gradient, process_logits, processed

Head = Callable[[Tensor], Tensor]  # of states [k, H]: logits [k, V]


def process_states(
    head: Head, *, states: Tensor, targets: Tensor, distribution: Distribution, at_once: int
) -> Processed:
    """`process_logits` of head(states), for at most `at_once` tokens at once. Chunks begin at multiples of it: what is
    said of a token does not depend on how many come after its chunk."""
    if len(states) <= at_once:
        return process_logits(logits=head(states), targets=targets, **distribution._asdict())
    parameters = _parameters_of(head, states) if torch.is_grad_enabled() else []
    found = _InChunks.apply(head, distribution, at_once, targets, states, *parameters)  # type: ignore[no-untyped-call]
    return Processed(*cast(tuple[Tensor, Tensor, Tensor], found))


class _Context(Protocol):
    """torch's, as far as it is used."""

    head: Head
    distribution: Distribution
    at_once: int
    parameters: Sequence[Tensor]
    saved_tensors: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _InChunks(torch.autograd.Function):
    """Every result has its place before the first chunk begins: small arrays made between large ones would break the
    memory up, until none of the gaps has room for a chunk."""

    @staticmethod
    def forward(
        ctx: _Context,
        head: Head,
        distribution: Distribution,
        at_once: int,
        targets: Tensor,
        states: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.head, ctx.distribution, ctx.at_once, ctx.parameters = head, distribution, at_once, parameters
        ctx.save_for_backward(targets, states)
        logprobs, entropy = (states.new_empty(len(states), dtype=torch.float32) for _ in range(2))
        outside = torch.empty_like(targets, dtype=torch.bool)
        for part in _parts(len(states), at_once):
            logprobs[part], entropy[part], outside[part] = processed(head(states[part]), targets[part], distribution)
        ctx.mark_non_differentiable(entropy, outside)
        return logprobs, entropy, outside

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        targets, states = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_parameters = [torch.zeros_like(parameter) for parameter in ctx.parameters]
        for part in _parts(len(states), ctx.at_once):
            with torch.enable_grad():
                own = states[part].detach().requires_grad_()
                logits = ctx.head(own)
            of_logits = logits_gradient(logits.detach(), targets[part], ctx.distribution, gradient[part])
            of_states[part], *more = torch.autograd.grad(logits, (own, *ctx.parameters), of_logits)
            for total in reversed(of_parameters):
                total.add_(more.pop())
            del logits, of_logits  # before the next
        return None, None, None, None, of_states, *of_parameters


def _parts(length: int, size: int) -> Iterator[slice]:
    for begin in range(0, length, size):
        yield slice(begin, begin + size)


def _parameters_of(head: Head, states: Tensor) -> list[nn.Parameter]:
    """Those that have a gradient by way of the head, found by where one token's graph ends: of tied embeddings, they
    are parameters of the body too."""
    seen: set[Node] = set()
    ends = [head(states[:1].detach()).grad_fn]
    found: list[nn.Parameter] = []
    while ends:
        node = ends.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(parameter := getattr(node, "variable", None), nn.Parameter):
            found.append(parameter)
        ends += [before for before, _ in node.next_functions]
    return found
