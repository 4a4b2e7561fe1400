"""IPO (Azar et al., 2023, arXiv:2310.12036): as DPO with a squared loss, which stays near the reference even where a
preference is always answered the same way. This file must never know where comparisons come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.algorithms.preferences import direct_preference
from rollcall.learners.algorithms.preferences.direct_preference import (
    DirectMethodConfig,
    Referenced,
    ReferencedMinibatch,
    ReferencedPart,
)
from rollcall.learners.batches.preference_batch import PreferenceBatch
from rollcall.learners.batches.preference_experience import EachCandidate
from rollcall.learners.maths import preference_losses


class IPOConfig(DirectMethodConfig):
    """Settings of IPO."""

    name: Literal["ipo"] = Field(default="ipo", description="the algorithm")
    tau: float = Field(
        default=0.1, gt=0, description="how near to the reference: log-ratios are to differ by 1 / (2 tau)"
    )


class IPO:
    """(difference of log-ratios - 1 / (2 tau))^2, a mean over comparisons; log-ratios are sums over tokens."""

    Config = IPOConfig
    name = "ipo"
    unit: Unit = "prompt"
    corrects_policy_lag = False
    needs_critic = False
    needs_reference = True

    def __init__(self, config: IPOConfig) -> None:
        self.config = config

    @property
    def beta(self) -> float:
        """What makes a reward of a log-ratio."""
        return self.config.tau

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}

    def prepare(self, models: Models, batch: PreferenceBatch, each_candidate: EachCandidate) -> Referenced:
        return direct_preference.with_reference(models, batch, each_candidate)

    def minibatches(self, prepared: Referenced, generator: torch.Generator) -> Iterator[ReferencedMinibatch]:
        return direct_preference.minibatches(prepared, self.config.budget)

    def loss(self, models: Models, part: ReferencedPart) -> tuple[Tensor, Metrics]:
        ratios = direct_preference.log_ratios(models, part)
        differences = part.part.pairs.differences(ratios)
        losses = direct_preference.judged(self.pair_losses, differences, part.part.pairs.tied)
        return direct_preference.weighed_loss(losses, differences, ratios, part, beta=self.beta)

    def pair_losses(self, differences: Tensor) -> Tensor:
        """[P]"""
        return preference_losses.ipo_loss(differences=differences, tau=self.config.tau)

    def stops_early(self, metrics: Metrics) -> bool:
        return False


DIRECT_METHOD = IPO
