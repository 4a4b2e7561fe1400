"""DPO (Rafailov et al., 2023, arXiv:2305.18290): a policy from comparisons, without a reward model or sampling. This
file must never know where comparisons come from, nor what steps the optimiser."""

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


class DPOConfig(DirectMethodConfig):
    """Settings of DPO."""

    name: Literal["dpo"] = Field(default="dpo", description="the algorithm")
    beta: float = Field(default=0.1, gt=0, description="how near to the reference: larger is nearer")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of labels that are wrong (conservative DPO); 0: none"
    )


class DPO:
    """-log sigmoid(beta * difference of log-ratios), a mean over comparisons."""

    Config = DPOConfig
    name = "dpo"
    unit: Unit = "prompt"
    corrects_policy_lag = False
    needs_critic = False
    needs_reference = True

    def __init__(self, config: DPOConfig) -> None:
        self.config = config

    @property
    def beta(self) -> float:
        """What makes a reward of a log-ratio."""
        return self.config.beta

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
        config = self.config
        return preference_losses.dpo_loss(
            differences=differences, beta=config.beta, label_smoothing=config.label_smoothing
        )

    def stops_early(self, metrics: Metrics) -> bool:
        return False


DIRECT_METHOD = DPO
