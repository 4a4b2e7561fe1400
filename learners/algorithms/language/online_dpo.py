"""On-line DPO (Guo et al., 2024, "Direct Language Model Alignment from Online AI Feedback", arXiv:2402.04792): the
pairs of DPO's loss are samples of the newest policy, ordered by the run's reward (a rule, a reward model, a judge), and
learnt from once, as all experience is.

For every prompt of a batch with samples y_1 ... y_K of rewards R, its best y_w and its worst y_l (or every pair that
differs):

  loss = -log sigmoid(beta * h),   h = log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l)          (DPO; IPO's is a choice)

with the frozen reference that the run began with. Nothing in it asks who sampled the pair: a batch that is some
versions old is learnt from as it is, and its lag is known, as everywhere. Log-probabilities are of the model itself,
without the temperature or the nucleus that it was sampled with: those say which pairs are seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.language.online_dpo_config import DECLARED, OnlineDPOConfig
from rollcall.learners.batches.sample_pairs import PairMinibatch, PairPart, SamplePairs
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows
from rollcall.learners.maths import losses, preference_losses
from rollcall.learners.maths.sampling import Processed


@dataclass(frozen=True)
class Paired:
    """A batch, its pairs, and what does not change while it is learnt from."""

    batch: TokenBatch
    pairs: SamplePairs
    reference_logprobs: Tensor  # [S]


class OnlineDPO:
    """A mean over prompts whose samples differ in reward; the others say nothing."""

    Config = OnlineDPOConfig
    name = "online_dpo"
    unit: Unit = "prompt"
    needs = DECLARED.needs

    def __init__(self, config: OnlineDPOConfig, *, max_tokens: int | None = None) -> None:
        """`max_tokens`: the longest completion, which nothing here depends on."""
        self.config = config

    @torch.no_grad()
    def prepare(self, context: Context, batch: TokenBatch) -> Paired:
        config = self.config
        pairs = SamplePairs.of(rewards=batch.rewards, group=batch.group, every=config.pairs == "all")
        reference = torch.zeros(batch.num_sampled, device=batch.rewards.device)
        minibatch = PairMinibatch(batch, pairs, reference, pairs.parts(batch, config.pass_tokens))
        if pairs.members:
            for part in minibatch.shards(context.collective.rank, context.collective.num_processes):
                reference[part.indices] = _of_the_model(context.models, "reference", part.rows).logprobs.float()
            context.collective.sum_(reference)
        num_prompts = len({*batch.group.tolist()})
        gaps = batch.rewards[pairs.better] - batch.rewards[pairs.worse]
        # On the losses' device: the metrics of a batch are read together.
        context.noted["pairs"] = gaps.new_tensor(float(len(gaps)))
        context.noted["tied_fraction"] = gaps.new_tensor(1.0 - len(pairs.members) / num_prompts)
        context.noted["reward_gap"] = (pairs.weights * gaps).sum()
        return Paired(batch, pairs, reference)

    def minibatches(self, context: Context, prepared: Paired) -> Iterator[PairMinibatch]:
        """One, the whole batch; none where no prompt has a pair."""
        pairs = prepared.pairs
        if pairs.members:
            parts = pairs.parts(prepared.batch, self.config.pass_tokens)
            yield PairMinibatch(prepared.batch, pairs, prepared.reference_logprobs, parts)

    def loss(self, context: Context, part: PairPart) -> Loss:
        """The part's share of the mean over prompts, and its share of the metrics."""
        now = _of_the_model(context.models, "policy", part.rows)
        log_ratios = now.logprobs - part.reference_logprobs
        # [n]: log pi / ref of each sample: its implicit reward in units of beta.
        of_samples = preference_losses.sums_by_owner(values=log_ratios, owner=part.owner, num_owners=part.num_samples)
        differences = of_samples[part.better] - of_samples[part.worse]
        loss = (part.weights * self.pair_losses(differences)).sum()
        with torch.no_grad():
            right, weights = differences.sign() / 2 + 0.5, part.weights
            metrics = {
                "implicit_accuracy": (weights * right).sum(),
                "implicit_margin": self.config.beta * (weights * differences).sum(),
                "better_log_ratio": (weights * of_samples[part.better]).sum(),
                "worse_log_ratio": (weights * of_samples[part.worse]).sum(),
                "kl_reference": part.token_share * losses.k3(-log_ratios).sum(),
                "entropy": part.token_share * now.entropy.sum(),
            }
        return Loss(loss, metrics)

    def pair_losses(self, differences: Tensor) -> Tensor:
        """[P], of differences of log-ratios [P], better minus worse."""
        config = self.config
        if config.loss == "ipo":
            return preference_losses.ipo_loss(differences=differences, tau=config.beta)
        return preference_losses.dpo_loss(
            differences=differences, beta=config.beta, label_smoothing=config.label_smoothing
        )


def _of_the_model(models: Models, name: str, rows: TokenRows) -> Processed:
    return cast(Processed, models[name](rows, as_sampled=False))


ALGORITHM = OnlineDPO
