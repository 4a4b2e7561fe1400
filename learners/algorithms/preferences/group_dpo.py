"""Group-robust direct preference optimisation (Ramesh et al., 2024, "Group Robust Preference Optimization in
Reward-free RLHF", arXiv:2405.20304): the policy whose worst group's loss is least, with DPO's loss (GR-DPO) or IPO's
(GR-IPO).

Algorithm 1, mirror descent: min over policies, max over alpha in the simplex, of sum_g alpha_g * mean loss of group g.
For every step, with the losses of the policy as it is,
  1. alpha_g <- alpha_g * exp(group_step * (N / N_g) * loss), then alpha <- alpha / sum(alpha)      (lines 6, 7)
  2. theta <- theta - learning_rate * (N / N_g) * alpha_g * gradient of the loss                    (line 8)
where the paper draws one comparison at a time from all N; here both are means over a batch. N_g / N is how often a
group is drawn, and need not be its share of the data: `draw: evenly` takes the groups in turn (as the authors'
published code does), so that N / N_g is the number of groups. Both have the same expectation; drawn evenly, a small
group is not learnt from few comparisons at a time with large weights. With alpha held at N_g / N this is DPO itself.
The optimiser is the learner's (Adam, say) in place of the paper's projected gradient step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.preferences.direct_preference import (
    DirectAlgorithm,
    DirectMethod,
    Referenced,
    ReferencedMinibatch,
    ReferencedPart,
)
from rollcall.learners.algorithms.preferences.group_dpo_config import DECLARED, GroupDPOConfig
from rollcall.learners.batches.preference_batch import PreferenceBatch
from rollcall.learners.maths import preference_losses

GROUPS = "groups"


class GroupWeights(nn.Module):
    """alpha, and how often each group is drawn, in any unit: buffers, so that a checkpoint has them."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"group sizes {sizes}: needs two groups or more, and a comparison of each")
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.float32))
        self.register_buffer("alpha", torch.full((len(sizes),), 1.0 / len(sizes)))
        self.sizes: Tensor
        self.alpha: Tensor


def pair_losses(config: GroupDPOConfig, differences: Tensor) -> Tensor:
    """Of each pair [P]."""
    if config.base == "ipo":
        return preference_losses.ipo_loss(differences=differences, tau=config.beta)
    return preference_losses.dpo_loss(differences=differences, beta=config.beta, label_smoothing=config.label_smoothing)


class GroupDPO:
    """Group weights by exponentiated gradient, the policy by the learner's optimiser."""

    Config = GroupDPOConfig
    name = "group_dpo"
    unit: Unit = "prompt"
    needs = DECLARED.needs

    def __init__(self, config: GroupDPOConfig, *, group_sizes: list[int]) -> None:
        """`group_sizes`: comparisons of each group in the whole training set; their batches must be drawn as
        `config.draw` says."""
        self.config = config
        self._direct = DirectAlgorithm(DirectMethod(GroupDPOConfig, pair_losses), config)
        self._group_sizes = group_sizes if config.draw == "by_size" else [1] * len(group_sizes)
        self.beta, self.pair_losses = self._direct.beta, self._direct.pair_losses

    def extra_models(self) -> Models:
        return {GROUPS: GroupWeights(self._group_sizes)}

    @torch.no_grad()
    def prepare(self, context: Context, batch: PreferenceBatch) -> Referenced:
        """The step of the group weights, by the losses before the policy's own step."""
        referenced = self._direct.prepare(context, batch)
        now = self._direct.each_response(context, batch, name="policy")
        pairs, groups = batch.pairs, _groups(context.models)
        alpha = preference_losses.exponentiated_gradient(
            group_weights=groups.alpha,
            losses=self._direct.judged(pairs.differences(now - referenced.reference_logprobs), pairs),
            group=pairs.group,
            group_sizes=groups.sizes,
            sample_weights=pairs.weights[0],
            step=self.config.group_step,
        )
        if bool(alpha.isfinite().all()):  # a step that is not finite is skipped, and leaves the weights as they were
            groups.alpha.copy_(alpha)
        importance = preference_losses.importance_weights(group=pairs.group, group_sizes=groups.sizes)
        return replace(referenced, pair_scale=importance * groups.alpha[pairs.group])

    def minibatches(self, context: Context, prepared: Referenced) -> Iterator[ReferencedMinibatch]:
        return self._direct.minibatches(context, prepared)

    def loss(self, context: Context, part: ReferencedPart) -> Loss:
        groups, found = _groups(context.models), self._direct.loss(context, part)
        with torch.no_grad():
            share = part.part.pairs.weights[0].sum()  # of the batch, so that the parts' metrics add up
            of_groups = {f"group_weight_{g}": groups.alpha[g] * share for g in range(len(groups.alpha))}
        return Loss(found.loss, found.metrics | of_groups)


def _groups(models: Models) -> GroupWeights:
    groups = models[GROUPS]
    assert isinstance(groups, GroupWeights)
    return groups


DIRECT_METHOD = GroupDPO
