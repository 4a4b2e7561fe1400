"""What the language algorithms share beside mathematics: the passes before the first update, minibatches, the policy's
terms in the loss, and the correction for lag. An algorithm is its config and two functions, `advantages` and
`token_loss`; it is made by naming them in a `TokenMethod`.

Three policies: the behaviour policy sampled the tokens; the proximal one is the learner's before the batch's first
update; pi is the one being updated. At lag 0 the first two differ only as engine and learner do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics, Models
from rollcall.learners.algorithms.language import adaptive_kl
from rollcall.learners.algorithms.language.supervised_term import MixedMinibatch, SupervisedPart, beside
from rollcall.learners.algorithms.language.token_settings import TokenAlgorithmConfig
from rollcall.learners.batches.token_batch import TokenBatch, TokenMinibatch, TokenPart, TokenRows, each_token
from rollcall.learners.declared import Needs
from rollcall.learners.maths import losses, token_losses
from rollcall.learners.maths.group_advantages import group_relative, rewards_to_tokens, soft_overlong_penalty
from rollcall.learners.maths.sampling import Processed

ConfigT = TypeVar("ConfigT", bound=TokenAlgorithmConfig)


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


class BeforeUpdate(NamedTuple):
    """What advantages are made of."""

    batch: TokenBatch
    rewards: Tensor  # [N]: with the penalty for overlong samples, if that is on
    reward_kl: Tensor  # [S]: to be subtracted from each token's reward; 0 where the KL is in the loss, or nowhere
    evaluate: Callable[[Callable[[TokenRows], Tensor]], Tensor]  # [S]: a pass over the whole batch without gradient
    models: Models


@dataclass(frozen=True)
class PolicyTerms:
    """What every policy loss is made of, for the K tokens of one part."""

    logprobs: Tensor  # [K], of pi, with gradient; where the mask is 0, the anchor's: a ratio of 1 and no gradient
    anchor_logprobs: Tensor  # [K], of the policy that the ratio is clipped around
    mask: Tensor  # [K]: 1 where the token is in the loss
    metrics: Metrics  # token means, added up over parts


@dataclass(frozen=True)
class TokenMethod(Generic[ConfigT]):
    """A language algorithm as a recipe names it: `method(config)` is one that learns."""

    Config: type[ConfigT]
    # [S], or by name with what else the loss needs of every token.
    advantages: Callable[[ConfigT, BeforeUpdate], Tensor | dict[str, Tensor]]
    # (loss [K], bool [K]: where a bound took the gradient away)
    token_loss: Callable[[ConfigT, LMPart, PolicyTerms], tuple[Tensor, Tensor]]
    # What is added to the loss over all tokens of a part, with its metrics.
    extra_loss: Callable[[ConfigT, Models, LMPart], tuple[Tensor, Metrics]] | None = None
    critic: bool = False
    per_sequence: bool = False  # the ratio is of a whole sequence, and so is the lag correction's weight

    unit: ClassVar[Unit] = "prompt"

    @property
    def name(self) -> str:
        return str(self.Config.model_fields["name"].default)

    @property
    def needs(self) -> Needs:
        return replace(TokenAlgorithm.needs, critic=self.critic)

    @property
    def made(self) -> type[TokenAlgorithm[Any]]:
        return TokenAlgorithm

    def __call__(self, config: ConfigT, *, max_tokens: int | None = None) -> TokenAlgorithm[ConfigT]:
        return TokenAlgorithm(self, config, max_tokens=max_tokens)


class TokenAlgorithm(Generic[ConfigT]):
    """The ratio's denominator is the behaviour policy (or the proximal one, weighed): older experience stays sound."""

    unit: Unit = "prompt"
    needs = Needs(corrects_policy_lag=True)

    def __init__(self, method: TokenMethod[ConfigT], config: ConfigT, *, max_tokens: int | None = None) -> None:
        """`max_tokens`: the longest completion.

        Raises:
          ValueError: when the overlong penalty has no length limit to stand before.
        """
        if config.overlong_buffer and (max_tokens is None or config.overlong_buffer > max_tokens):
            raise ValueError(
                f"overlong_buffer={config.overlong_buffer} with max_tokens={max_tokens}: the penalty needs the limit "
                "of a completion's length and must fit into it; set overlong_buffer to 0 or below max_tokens"
            )
        self.config = config
        self.name = method.name
        self.needs = replace(method.needs, reference=config.kl_coef > 0, min_group_size=config.min_group_size)
        self._method = method
        self._max_tokens = max_tokens

    def extra_models(self) -> Models:
        return {} if self.config.kl_goal is None else adaptive_kl.models(self.config.kl_coef)

    @torch.no_grad()
    def prepare(self, context: Context, batch: TokenBatch) -> Prepared:
        def evaluate(of_rows: Callable[[TokenRows], Tensor]) -> Tensor:
            """[S]: each process evaluates its share of the batch, and all get the whole."""
            rank, num_processes = context.collective.rank, context.collective.num_processes
            budget = self.config.pass_tokens
            values = each_token(batch, of_rows, token_budget=budget, rank=rank, num_processes=num_processes)
            context.collective.sum_(values)
            return values

        logprobs = self._policies(context.models, evaluate)
        reward_kl = self._reward_kl(context, batch, logprobs)
        before = BeforeUpdate(batch, self._rewards(batch), reward_kl, evaluate, context.models)
        found = self._method.advantages(self.config, before)
        own = found if isinstance(found, dict) else {"advantages": found}
        return Prepared(batch, TokenTargets(**own, **logprobs))

    def minibatches(self, context: Context, prepared: Prepared) -> Iterator[LMMinibatch | MixedMinibatch]:
        """Samples of a group need not stay together: advantages are known already."""
        found, config = self._of_samples(context, prepared), self.config
        return beside(found, prepared.batch, config.num_minibatches, token_budget=config.pass_tokens)

    def _of_samples(self, context: Context, prepared: Prepared) -> Iterator[LMMinibatch]:
        batch, config = prepared.batch, self.config
        num_minibatches = min(config.num_minibatches, batch.num_samples)
        for _ in range(config.epochs):
            order = torch.arange(batch.num_samples)
            if num_minibatches > 1:
                order = torch.randperm(batch.num_samples, generator=context.generator)
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
                    parts=batch.micro_batches(samples.tolist(), config.pass_tokens),
                    ends_epoch=index == num_minibatches - 1,
                )

    def loss(self, context: Context, part: LMPart | SupervisedPart) -> Loss:
        """An algorithm's token losses summed up, corrected for lag, with the KL to the reference if it belongs into
        the loss. The KL is not weighed by the correction: it pulls at every token of the mask alike."""
        config = self.config
        if isinstance(part, SupervisedPart):
            return part.loss(context.models, coef=config.supervised_coef)
        terms = policy_terms(context.models, part, config)
        per_token, clipped = self._method.token_loss(config, part, terms)
        weights = part.weights * terms.mask
        loss = (weights * self._lag_weights(part, terms) * per_token).sum()
        metrics = {**terms.metrics, "policy_loss": loss.detach(), "clip_fraction": _mean(part, clipped * terms.mask)}
        if config.kl_in_loss and config.kl_coef > 0:
            assert part.targets.reference_logprobs is not None
            kl = losses.kl_estimate(
                logprobs=terms.logprobs,
                reference_logprobs=part.targets.reference_logprobs,
                estimator=config.kl_of_loss,
            )
            loss = loss + config.kl_coef * (weights * kl).sum()
        if self._method.extra_loss is not None:
            extra, more = self._method.extra_loss(config, context.models, part)
            loss, metrics = loss + extra, {**metrics, **more}
        return Loss(loss, metrics)

    def _policies(
        self, models: Models, evaluate: Callable[[Callable[[TokenRows], Tensor]], Tensor]
    ) -> dict[str, Tensor]:
        """[S]: log-probabilities under the proximal and the reference policy, where they are needed. A batch of one
        gradient step needs no pass for the proximal ones: at that step pi is the proximal policy."""
        config, tensors = self.config, {}
        several_steps = config.epochs * config.num_minibatches > 1
        in_reward = config.kl_coef > 0 and not config.kl_in_loss
        if (config.correction.needs_proximal and several_steps) or in_reward:
            tensors["proximal_logprobs"] = evaluate(lambda rows: _processed(models, "policy", rows).logprobs)
        if config.kl_coef > 0:
            tensors["reference_logprobs"] = evaluate(lambda rows: _processed(models, "reference", rows).logprobs)
        return tensors

    def _rewards(self, batch: TokenBatch) -> Tensor:
        """[N]. The limit of a length is that of one turn: of a conversation, the longest turn counts."""
        buffer = self.config.overlong_buffer
        if not buffer:
            return batch.rewards
        assert self._max_tokens is not None, "__init__ refuses it"
        penalty = soft_overlong_penalty(lengths=batch.longest_turns(), max_length=self._max_tokens, buffer=buffer)
        return batch.rewards + penalty

    def _reward_kl(self, context: Context, batch: TokenBatch, tensors: Mapping[str, Tensor]) -> Tensor:
        """[S]: kl_coef * KL of each token. Of the proximal policy and not of the one that sampled: it is the policy
        being improved whose KL is to be small. An adaptive coefficient is then that of the next batch."""
        config = self.config
        if config.kl_in_loss or config.kl_coef == 0:
            return torch.zeros_like(batch.tokens.behaviour_logprobs)
        policies = {"logprobs": tensors["proximal_logprobs"], "reference_logprobs": tensors["reference_logprobs"]}
        kl = losses.kl_estimate(**policies, estimator=config.kl_estimator)
        if config.kl_goal is None:
            return config.kl_coef * kl
        mean = losses.k3(policies["reference_logprobs"] - policies["logprobs"]).mean()  # as the metric kl_reference is
        return adaptive_kl.next_coefficient(context, kl=mean, goal=config.kl_goal) * kl

    def _lag_weights(self, part: LMPart, terms: PolicyTerms) -> Tensor:
        """[K]: proximal / behaviour, capped, when decoupled; else 1. Per sequence, the length-normalised ratio of the
        token's sample, for a loss that has such a ratio itself."""
        correction = self.config.correction
        if not correction.decoupled:
            return torch.ones_like(terms.mask)
        proximal, behaviour = terms.anchor_logprobs, part.tokens.behaviour_logprobs
        if self._method.per_sequence:
            log_ratios = token_losses.sequence_log_ratios(
                logprobs=proximal,
                anchor_logprobs=behaviour,
                sequence=part.sequence,
                num_sequences=part.num_samples,
                mask=terms.mask,
            )
            proximal, behaviour = log_ratios, torch.zeros_like(log_ratios)
        cap = math.inf if correction.truncate is None else correction.truncate
        return token_losses.truncated_importance_weights(
            proximal_logprobs=proximal, behaviour_logprobs=behaviour, cap=cap
        )


def policy_terms(models: Models, part: LMPart, config: TokenAlgorithmConfig) -> PolicyTerms:
    """Evaluates the policy at a part's tokens, and says which of them are in the loss.

    Left out are tokens outside the nucleus, whose log-probability is of another distribution than the one sampled
    from, and those outside the correction's band.
    """
    now = _processed(models, "policy", part.rows)
    behaviour, correction = part.tokens.behaviour_logprobs, config.correction
    # Not prepared where the batch has one gradient step: then pi is still the proximal policy.
    proximal = now.logprobs.detach() if part.targets.proximal_logprobs is None else part.targets.proximal_logprobs
    mask = 1.0 - now.outside.to(behaviour.dtype)
    metrics = {
        "entropy": now.entropy,
        "approx_kl": losses.k3(now.logprobs.detach() - behaviour),
        "mismatch": (now.logprobs.detach() - behaviour).abs(),
        "outside_nucleus": 1.0 - mask,
    }
    if part.targets.proximal_logprobs is not None or config.epochs * config.num_minibatches == 1:
        # Of tokens that the step's own weights sampled: neither lag nor its updates explain their mismatch.
        fresh = mask * (part.policy_lags == 0).to(mask.dtype)
        metrics |= {"fresh_fraction": fresh, "fresh_mismatch": fresh * (proximal - behaviour).abs()}
    if correction.band is not None:
        low, high = correction.band
        in_band = token_losses.band_mask(log_ratio=proximal - behaviour, low=low, high=high).to(mask.dtype)
        metrics["masked_fraction"] = 1.0 - in_band
        mask = mask * in_band
    if part.targets.reference_logprobs is not None:
        metrics["kl_reference"] = losses.k3(part.targets.reference_logprobs - now.logprobs.detach())
    anchor = proximal if correction.decoupled else behaviour
    return PolicyTerms(
        logprobs=torch.where(mask.bool(), now.logprobs, anchor.to(now.logprobs.dtype)),
        anchor_logprobs=anchor,
        mask=mask,
        metrics={name: _mean(part, x) for name, x in metrics.items()},
    )


# What several algorithms have as one of their two functions.


class _Clips(Protocol):
    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...


class _Normalises(Protocol):
    @property
    def normalise_std(self) -> bool: ...


def clipped_surrogate(
    config: _Clips, part: LMPart, terms: PolicyTerms, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """A token loss: PPO's, of each token's own ratio."""
    return losses.clipped_surrogate(
        ratio=(terms.logprobs - terms.anchor_logprobs).exp(),
        advantages=part.targets.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=dual_clip,
    )


def group_advantages(config: _Normalises, before: BeforeUpdate) -> Tensor:
    """Advantages: a sample's reward among its group's, the same for all of its tokens."""
    batch = before.batch
    advantages = group_relative(rewards=before.rewards, group=batch.group, normalise_std=config.normalise_std)
    return advantages[batch.sequence]


def rewards_of_tokens(before: BeforeUpdate) -> Tensor:
    """[S]: the rewards where they were earned, less the KL: of a turn before the last at that turn's last token, the
    rest (the last turn's, and what was added since) at the sample's last."""
    batch, rewards, earlier = before.batch, before.rewards, before.batch.tokens.turn_rewards
    if earlier is None:
        return rewards_to_tokens(rewards=rewards, lengths=batch.lengths) - before.reward_kl
    of_turns = torch.zeros_like(rewards).index_add(0, batch.sequence, earlier)
    return rewards_to_tokens(rewards=rewards - of_turns, lengths=batch.lengths) + earlier - before.reward_kl


def _processed(models: Models, name: str, rows: TokenRows) -> Processed:
    return cast(Processed, models[name](rows))


def _mean(part: LMPart, x: Tensor) -> Tensor:
    return (part.metric_weights * x.detach()).sum()
