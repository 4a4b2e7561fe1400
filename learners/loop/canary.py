"""What a learner says of fixed tokens, beside each version of its weights: for engines to see that they have them
rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.fingerprints import fingerprints
from rollcall.cluster.messages.weights import Canary
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.models.language.token_policy import TokenPolicy, canary_tokens

NUM_TOKENS = 64


@torch.no_grad()
def canary(policy: TokenPolicy, *, room: int, dtype: str) -> Canary:
    """Of a policy as it is now. Where it lies in pieces, every process calls.

    Args:
      room: tokens that an engine has room for; one of them it generates when it is asked for log-probabilities.
      dtype: of the policy's forward pass.
    """
    token_ids = canary_tokens(policy.model, min(NUM_TOKENS, room - 1))
    tokens = torch.tensor(token_ids, device=next(policy.parameters()).device)
    rows = TokenRows(tokens[None], torch.arange(len(tokens) - 1, device=tokens.device), tokens[1:])
    logprobs = policy(rows, as_sampled=False).logprobs
    return Canary(np.array(token_ids, np.int32), logprobs.float().cpu().numpy(), dtype)


def with_fingerprints(canary: Canary, published: Mapping[str, Tensor], dtype: str) -> Canary:
    """`canary` with the fingerprints of what is published beside it, in an engine's dtype."""
    floating = {name: tensor for name, tensor in published.items() if tensor.is_floating_point()}
    return replace(canary, fingerprints=fingerprints(floating, dtype))
