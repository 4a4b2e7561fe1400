"""IMPALA (Espeholt et al., 2018, arXiv:1802.01561): actor-critic whose targets V-trace corrects for the policy lag."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss
from rollcall.learners.algorithms.control import actor_critic, samples
from rollcall.learners.algorithms.control.actor_critic import credit
from rollcall.learners.algorithms.control.impala_config import DECLARED, IMPALAConfig
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch, ActorCriticRows, ActorCriticTargets
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths import losses
from rollcall.learners.maths.vtrace import vtrace


class IMPALA:
    """V-trace's targets come from the parameters at the start of the batch, the ratio that weights the policy gradient
    from those whose gradient is taken: with one pass and one minibatch (the defaults) they are the same, as in the
    paper. With more, a ratio left as it was would push down actions whose probability the batch has taken already."""

    Config = IMPALAConfig
    name = "impala"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: IMPALAConfig) -> None:
        self._config = config
        self._pg_rho_bar = config.rho_bar if config.pg_rho_bar is None else config.pg_rho_bar

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> ActorCriticRows:
        """V-trace targets and advantages, with the policy and the critic from before the batch's first update.

        Raises:
          ValueError: when the policy has no critic.
        """
        network = samples.actor_critic(context.models)
        before = samples.assess(network, batch, algorithm=self.name)
        vs, advantages = vtrace(
            behaviour_logprobs=batch.steps.behaviour_logprobs,
            target_logprobs=before.logprobs,
            values=before.values,
            next_values=before.next_values,
            discount=self._config.discount,
            lam=self._config.vtrace_lambda,
            rho_bar=self._config.rho_bar,
            c_bar=self._config.c_bar,
            **credit(batch),
        )
        actor_critic.note_critic(context, batch, values=before.values, returns=vs)
        advantages = actor_critic.over_batch(advantages, batch, normalise=self._config.normalise_advantages)
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns=vs))

    def minibatches(self, context: Context, prepared: ActorCriticRows) -> Iterator[ActorCriticMinibatch]:
        return actor_critic.minibatches(
            context, prepared, epochs=self._config.epochs, num_minibatches=self._config.num_minibatches
        )

    def loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        rows, over = minibatch.rows, {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
        now = samples.evaluate(samples.actor_critic(context.models), rows)
        assert now.values is not None, "prepare refuses a policy without a critic"
        log_ratio = (now.logprobs - rows.steps.behaviour_logprobs).detach()
        ratio = log_ratio.exp()
        advantages = ratio.clamp(max=self._pg_rho_bar) * rows.targets.advantages
        return actor_critic.joined(
            now,
            minibatch,
            policy_loss=losses.policy_gradient_loss(target_logprobs=now.logprobs, advantages=advantages, **over),
            log_ratio=log_ratio,
            value_loss=losses.squared_value_loss(values=now.values, returns=rows.targets.returns, **over),
            value_coef=self._config.value_coef,
            entropy_coef=self._config.entropy_coef,
            clip_fraction=losses.clip_fraction(  # ratios above rho_bar; V-trace has no lower bound
                ratio=ratio, clip_low=1.0, clip_high=self._config.rho_bar - 1.0, **over
            ),
        )


ALGORITHM = IMPALA
