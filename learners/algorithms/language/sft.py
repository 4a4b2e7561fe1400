"""Supervised fine-tuning: imitation of demonstrations by maximum likelihood, the loss on their author's tokens alone
(the first step of RLHF: Ouyang et al., 2022, arXiv:2203.02155). As an algorithm of the learner like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.batches.token_batch import TokenBatch, TokenMinibatch, TokenPart
from rollcall.learners.maths.sampling import Processed


class SFTConfig(BaseModel):
    """Settings of supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sft"] = Field(default="sft", description="the algorithm")
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass")


class SFT:
    """-log pi(token), a mean over the batch's demonstrated tokens."""

    name = "sft"
    unit: Unit = "prompt"
    corrects_policy_lag = False
    needs_critic = False

    def __init__(self, config: SFTConfig) -> None:
        self.config = config

    def prepare(self, models: Models, batch: TokenBatch, each_token: object = None) -> TokenBatch:
        return batch

    def minibatches(self, prepared: TokenBatch, generator: torch.Generator) -> Iterator[TokenMinibatch[None]]:
        weights = torch.full_like(prepared.tokens.behaviour_logprobs, 1.0 / prepared.num_sampled)
        parts = prepared.micro_batches(range(prepared.num_samples), self.config.token_budget)
        yield TokenMinibatch(
            batch=prepared, weights=weights, metric_weights=weights, targets=None, parts=parts, ends_epoch=True
        )

    def loss(self, models: Models, part: TokenPart[None]) -> tuple[Tensor, Metrics]:
        now = cast(Processed, models["policy"](part.rows))
        loss = -(part.weights * now.logprobs).sum()
        return loss, {
            "negative_log_likelihood": loss.detach(),
            "entropy": (part.weights * now.entropy).sum(),
        }

    def stops_early(self, metrics: Metrics) -> bool:
        return False

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}
