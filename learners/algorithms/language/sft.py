"""Supervised fine-tuning: imitation of demonstrations by maximum likelihood, the loss on their author's tokens alone
(the first step of RLHF: Ouyang et al., 2022, arXiv:2203.02155). As an algorithm of the learner like any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss
from rollcall.learners.algorithms.language.sft_config import DECLARED, SFTConfig
from rollcall.learners.batches.token_batch import TokenBatch, TokenMinibatch, TokenPart
from rollcall.learners.maths.sampling import Processed


class SFT:
    """-log pi(token), a mean over the batch's demonstrated tokens."""

    Config = SFTConfig
    name = "sft"
    unit: Unit = "prompt"
    needs = DECLARED.needs

    def __init__(self, config: SFTConfig) -> None:
        self.config = config

    def prepare(self, context: Context, batch: TokenBatch) -> TokenBatch:
        return batch

    def minibatches(self, context: Context, prepared: TokenBatch) -> Iterator[TokenMinibatch[None]]:
        weights = torch.full_like(prepared.tokens.behaviour_logprobs, 1.0 / prepared.num_sampled)
        parts = prepared.micro_batches(range(prepared.num_samples), self.config.token_budget)
        yield TokenMinibatch(
            batch=prepared, weights=weights, metric_weights=weights, targets=None, parts=parts, ends_epoch=True
        )

    def loss(self, context: Context, part: TokenPart[None]) -> Loss:
        now = cast(Processed, context.models["policy"](part.rows))
        loss = -(part.weights * now.logprobs).sum()
        entropy = (part.weights * now.entropy).sum()
        return Loss(loss, {"negative_log_likelihood": loss.detach(), "entropy": entropy})


SUPERVISED_METHOD = SFT
