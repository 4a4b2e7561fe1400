"""What the language algorithms share beside mathematics: settings, the passes before the first update, minibatches, and
the correction for lag. This file must never know one algorithm from another, nor what steps the optimiser.

Three policies: the behaviour policy sampled the tokens; the proximal one is the learner's before the batch's first
update; pi is the one being updated. At lag 0 the first two differ only as engine and learner do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.batches.token_batch import TokenBatch, TokenMinibatch, TokenPart, TokenRows
from rollcall.learners.maths import token_losses
from rollcall.learners.maths.group_advantages import rewards_to_tokens, soft_overlong_penalty
from rollcall.learners.maths.sampling import Processed
from rollcall.learners.maths.token_losses import Aggregation, KLEstimator

# A pass over the whole batch without gradient: one number per sampled token, [S]. The learner binds it to the token
# budget and to its processes, and what comes back is summed up over them.
EachToken = Callable[[Callable[[TokenRows], Tensor]], Tensor]


class LagCorrection(BaseModel):
    """What is done about tokens whose behaviour policy is not the learner's. With all of it off, the surrogate's ratio
    is pi / behaviour, which is sound, and clips the more tokens the older they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decoupled: bool = Field(
        default=False,
        description="clip around the proximal policy and weigh by proximal / behaviour (arXiv:2110.00641, AReaL "
        "arXiv:2505.24298): the clip then bounds the update, not the age of the data",
    )
    truncate: float | None = Field(
        default=None,
        gt=0,
        description="cap of the weight proximal / behaviour (truncated importance sampling): bounds the variance at "
        "the cost of a bias; needs decoupled, as otherwise there is no such weight; None: no cap",
    )
    band: tuple[float, float] | None = Field(
        default=None,
        description="tokens with proximal / behaviour outside [low, high] are left out of the loss: a ratio that far "
        "from 1 says more about the engine's arithmetic, or about age, than about the policy; None: none are",
    )

    @model_validator(mode="after")
    def _consistent(self) -> LagCorrection:
        if self.truncate is not None and not self.decoupled:
            raise ValueError(
                f"truncate={self.truncate} needs decoupled=true: clipped around the behaviour policy, "
                "the ratio holds proximal / behaviour already"
            )
        if self.band is not None and not 0 <= self.band[0] <= 1 <= self.band[1]:
            raise ValueError(f"band={self.band}: must be (low, high) with 0 <= low <= 1 <= high")
        return self

    @property
    def needs_proximal(self) -> bool:
        return self.decoupled or self.band is not None


class TokenAlgorithmConfig(BaseModel):
    """Settings of every language algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=1, ge=1, description="passes over a batch: more is learnt from it, and drifts further")
    num_minibatches: int = Field(default=1, ge=1, description="gradient steps per pass; 1: no step is off-policy")
    token_budget: int = Field(
        default=16384, ge=1, description="padded tokens of one forward pass: bounds memory, changes no result"
    )
    aggregation: Aggregation = Field(
        default="token_mean",
        description="token_mean: every token alike; sequence_mean: every sample alike; fixed_length: as token_mean, "
        "but by a constant, so that a batch of short samples does not take larger steps per token",
    )
    fixed_length: int | None = Field(default=None, ge=1, description="for aggregation=fixed_length: max_tokens, say")
    kl_coef: float = Field(
        default=0.0, ge=0, description="weight of KL(pi || reference): holds it near; 0: no reference is loaded"
    )
    kl_estimator: KLEstimator = Field(
        default="k3", description="k3: unbiased and never negative; k2: its gradient is the KL's; k1: for a reward only"
    )
    overlong_buffer: int = Field(
        default=0,
        ge=0,
        description="tokens before max_tokens over which the reward falls by up to 1: a warning before the cut; of a "
        "conversation the longest turn counts; 0: off",
    )
    correction: LagCorrection = Field(default=LagCorrection(), description="of tokens from older policies")

    @model_validator(mode="after")
    def _aggregation_is_complete(self) -> TokenAlgorithmConfig:
        if (self.aggregation == "fixed_length") != (self.fixed_length is not None):
            raise ValueError(
                f"aggregation={self.aggregation!r} with fixed_length={self.fixed_length}: "
                "set fixed_length for aggregation=fixed_length, and for no other"
            )
        return self


@dataclass(frozen=True)
class TokenTargets:
    """[S] of a batch, [K] of a part: what its updates need of every token, and does not change between them."""

    advantages: Tensor
    proximal_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    returns: Tensor | None = None  # with a critic
    proximal_values: Tensor | None = None  # with a critic


LMMinibatch = TokenMinibatch[TokenTargets]
LMPart = TokenPart[TokenTargets]


@dataclass(frozen=True)
class Prepared:
    batch: TokenBatch
    targets: TokenTargets


@dataclass(frozen=True)
class PolicyTerms:
    """What every policy loss is made of, for the K tokens of one part."""

    logprobs: Tensor  # [K], of pi, with gradient; where kept is 0, the anchor's: a ratio of 1 and no gradient
    anchor_logprobs: Tensor  # [K], of the policy that the ratio is clipped around
    kept: Tensor  # [K]: 1 where the token is in the loss
    metrics: Metrics  # token means, added up over parts


def check_max_tokens(config: TokenAlgorithmConfig, max_tokens: int | None) -> None:
    """Raises ValueError when the overlong penalty has no length limit to stand before."""
    if config.overlong_buffer and (max_tokens is None or config.overlong_buffer > max_tokens):
        raise ValueError(
            f"overlong_buffer={config.overlong_buffer} with max_tokens={max_tokens}: the penalty needs the limit of "
            "a completion's length and must fit into it; set overlong_buffer to 0 or below max_tokens"
        )


def shaped_rewards(batch: TokenBatch, config: TokenAlgorithmConfig, *, max_tokens: int | None) -> Tensor:
    """[N]: the rewards with the penalty for overlong samples, if that is on. The limit is that of one turn: of a
    conversation, the longest turn counts."""
    if not config.overlong_buffer:
        return batch.rewards
    assert max_tokens is not None, "check_max_tokens refuses it"
    longest = batch.longest_turns()
    return batch.rewards + soft_overlong_penalty(lengths=longest, max_length=max_tokens, buffer=config.overlong_buffer)


def rewards_of_turns(batch: TokenBatch, rewards: Tensor) -> Tensor:
    """[S]: the rewards [N] where they were earned: of a turn before the last at that turn's last token, the rest (the
    last turn's, and what was added since) at the sample's last."""
    earlier = batch.tokens.turn_rewards
    if earlier is None:
        return rewards_to_tokens(rewards=rewards, lengths=batch.lengths)
    before = torch.zeros_like(rewards).index_add(0, batch.sequence, earlier)
    return rewards_to_tokens(rewards=rewards - before, lengths=batch.lengths) + earlier


def reward_kl(batch: TokenBatch, tensors: Mapping[str, Tensor], config: TokenAlgorithmConfig) -> Tensor:
    """[S]: kl_coef * KL of each token, to be subtracted from its reward; 0 without a reference.

    Of the proximal policy and not of the one that sampled: it is the policy being improved whose KL is to be small.
    """
    if config.kl_coef == 0:
        return torch.zeros_like(batch.tokens.behaviour_logprobs)
    return config.kl_coef * token_losses.kl_estimate(
        logprobs=tensors["proximal_logprobs"],
        reference_logprobs=tensors["reference_logprobs"],
        estimator=config.kl_estimator,
    )


def evaluate_policies(
    models: Models, config: TokenAlgorithmConfig, each_token: EachToken, *, kl_in_reward: bool = False
) -> dict[str, Tensor]:
    """Log-probabilities of the batch's tokens under the proximal and the reference policy, where they are needed.

    A batch of one gradient step needs no pass for the proximal ones: at that step pi is the proximal policy.
    """
    tensors = {}
    several_steps = config.epochs * config.num_minibatches > 1
    if (config.correction.needs_proximal and several_steps) or (kl_in_reward and config.kl_coef > 0):
        tensors["proximal_logprobs"] = each_token(lambda rows: _processed(models, "policy", rows).logprobs)
    if config.kl_coef > 0:
        tensors["reference_logprobs"] = each_token(lambda rows: _processed(models, "reference", rows).logprobs)
    return tensors


def minibatches(prepared: Prepared, generator: torch.Generator, config: TokenAlgorithmConfig) -> Iterator[LMMinibatch]:
    """All minibatches of all epochs. Samples of a group need not stay together: advantages are known already."""
    batch = prepared.batch
    num_minibatches = min(config.num_minibatches, batch.num_samples)
    for _ in range(config.epochs):
        order = torch.arange(batch.num_samples)
        if num_minibatches > 1:
            order = torch.randperm(batch.num_samples, generator=generator)
        for index, samples in enumerate(order.tensor_split(num_minibatches)):
            chosen = samples.to(batch.lengths.device)
            lengths = batch.lengths[chosen]
            weights = token_losses.aggregation_weights(
                lengths=lengths, mode=config.aggregation, fixed_length=config.fixed_length
            )
            shares = token_losses.aggregation_weights(lengths=lengths, mode="token_mean")
            per_sample = weights.new_zeros(2, batch.num_samples)
            per_sample[:, chosen] = torch.stack([weights, shares])
            of_weights, of_shares = per_sample[:, batch.sequence]
            yield LMMinibatch(
                batch=batch,
                weights=of_weights,
                metric_weights=of_shares,
                targets=prepared.targets,
                parts=batch.micro_batches(samples.tolist(), config.token_budget),
                ends_epoch=index == num_minibatches - 1,
            )


def policy_terms(models: Models, part: LMPart, config: TokenAlgorithmConfig) -> PolicyTerms:
    """Evaluates the policy at a part's tokens, and says which of them are in the loss.

    Left out are tokens outside the nucleus, whose log-probability is of another distribution than the one sampled
    from, and those outside the correction's band.
    """
    now = _processed(models, "policy", part.rows)
    behaviour, correction = part.tokens.behaviour_logprobs, config.correction
    proximal = _proximal(part, now.logprobs)
    kept = 1.0 - now.outside.to(behaviour.dtype)
    metrics = {
        "entropy": now.entropy,
        "approx_kl": token_losses.kl_estimate(
            logprobs=behaviour, reference_logprobs=now.logprobs.detach(), estimator="k3"
        ),
        "mismatch": (now.logprobs.detach() - behaviour).abs(),
        "outside_nucleus": 1.0 - kept,
    }
    if correction.band is not None:
        low, high = correction.band
        in_band = token_losses.band_mask(log_ratio=proximal - behaviour, low=low, high=high).to(kept.dtype)
        metrics["masked_fraction"] = 1.0 - in_band
        kept = kept * in_band
    if part.targets.reference_logprobs is not None:
        metrics["kl_reference"] = token_losses.kl_estimate(
            logprobs=now.logprobs.detach(), reference_logprobs=part.targets.reference_logprobs, estimator="k3"
        )
    anchor = proximal if correction.decoupled else behaviour
    return PolicyTerms(
        logprobs=torch.where(kept.bool(), now.logprobs, anchor.to(now.logprobs.dtype)),
        anchor_logprobs=anchor,
        kept=kept,
        metrics={name: _mean(part, x) for name, x in metrics.items()},
    )


def lag_weights(part: LMPart, terms: PolicyTerms, config: TokenAlgorithmConfig, *, per_sequence: bool) -> Tensor:
    """[K]: proximal / behaviour, capped, when decoupled; else 1. Per sequence, the length-normalised ratio of the
    token's sample, for a loss that has such a ratio itself."""
    if not config.correction.decoupled:
        return torch.ones_like(terms.kept)
    proximal, behaviour = terms.anchor_logprobs, part.tokens.behaviour_logprobs
    if per_sequence:
        log_ratios = token_losses.sequence_log_ratios(
            logprobs=proximal,
            anchor_logprobs=behaviour,
            sequence=part.sequence,
            num_sequences=part.num_samples,
            mask=terms.kept,
        )
        proximal, behaviour = log_ratios, torch.zeros_like(log_ratios)
    cap = math.inf if config.correction.truncate is None else config.correction.truncate
    return token_losses.truncated_importance_weights(proximal_logprobs=proximal, behaviour_logprobs=behaviour, cap=cap)


def policy_loss(
    part: LMPart,
    terms: PolicyTerms,
    surrogate: tuple[Tensor, Tensor],
    config: TokenAlgorithmConfig,
    *,
    kl_in_loss: bool,
    per_sequence: bool = False,
) -> tuple[Tensor, Metrics]:
    """Sums an algorithm's per-token (loss, clipped) up, corrected for lag, with the KL to the reference if it belongs
    into the loss. The KL is not weighed by the correction: it pulls at every kept token alike."""
    per_token, clipped = surrogate
    correction = lag_weights(part, terms, config, per_sequence=per_sequence)
    weights = part.weights * terms.kept
    loss = (weights * correction * per_token).sum()
    metrics = {
        **terms.metrics,
        "policy_loss": loss.detach(),
        "clip_fraction": _mean(part, clipped * terms.kept),
    }
    if kl_in_loss and config.kl_coef > 0:
        assert part.targets.reference_logprobs is not None
        kl = token_losses.kl_estimate(
            logprobs=terms.logprobs,
            reference_logprobs=part.targets.reference_logprobs,
            estimator=config.kl_estimator,
        )
        loss = loss + config.kl_coef * (weights * kl).sum()
    return loss, metrics


def _processed(models: Models, name: str, rows: TokenRows) -> Processed:
    return cast(Processed, models[name](rows))


def _proximal(part: LMPart, logprobs: Tensor) -> Tensor:
    """[K]. Not prepared where the batch has one gradient step: then pi is still the proximal policy."""
    proximal = part.targets.proximal_logprobs
    return logprobs.detach() if proximal is None else proximal


def _mean(part: LMPart, x: Tensor) -> Tensor:
    return (part.metric_weights * x.detach()).sum()
