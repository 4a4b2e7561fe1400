"""DQN (Mnih et al., 2015): the values of actions are learnt from kept transitions, towards what a network that follows
behind says of the state after them. Its successors are settings: Rainbow (Hessel et al., 2018) is a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import TARGET, Context, Loss, Models
from rollcall.learners.algorithms.control.off_policy.dqn_config import DECLARED, DQNConfig
from rollcall.learners.batches.replay_batch import ReplayBatch, ReplayMinibatch, Transitions
from rollcall.learners.maths import q_learning
from rollcall.learners.maths.epsilon_greedy import best_action
from rollcall.learners.models.networks import ActorCritic
from rollcall.learners.update import follow


class GradientSteps(nn.Module):
    """How many there were: a buffer, so that a checkpoint has it."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class DQN:
    """What acted is not asked for: any policy's experience will do, however old."""

    Config = DQNConfig
    name = "dqn"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: DQNConfig) -> None:
        self._config = config
        self._steps = GradientSteps()

    def extra_models(self) -> Models:
        return {"gradient_steps": self._steps}

    def check_models(self, models: Models) -> None:
        """Raises ValueError: for a policy without values of actions."""
        if _networks(models)[0].q is None:
            raise ValueError("q=None: dqn learns the values of actions: give the policy a section for them (q: {})")

    @torch.no_grad()
    def prepare(self, context: Context, batch: ReplayBatch) -> ReplayBatch:
        """Lowers epsilon: actors have it from the next version on."""
        exploration = _networks(context.models)[0].exploration
        assert exploration is not None, "checked before the run"
        exploration.epsilons.copy_(self.epsilons(batch.env_steps, len(exploration.epsilons)))
        return batch

    def epsilons(self, env_steps: int, number: int) -> Tensor:
        """[number], after so many env steps of the run."""
        config = self._config
        done = min(1.0, env_steps / config.epsilon_steps) if config.epsilon_steps else 1.0
        epsilon = torch.tensor(1.0 + (config.epsilon - 1.0) * done, dtype=torch.float64)
        return epsilon ** (1.0 + config.epsilon_spread * torch.linspace(0.0, 1.0, number, dtype=torch.float64))

    def minibatches(self, context: Context, prepared: ReplayBatch) -> Iterator[ReplayMinibatch]:
        for minibatch in prepared.minibatches():
            for network in _networks(context.models):  # each with its own
                network.draw_noise(context.generator)
            yield minibatch

    def loss(self, context: Context, minibatch: ReplayMinibatch) -> Loss:
        online, target = _networks(context.models)
        transitions, size = minibatch.transitions, minibatch.size
        returns = online.action_returns(transitions.observations)
        places = transitions.actions.view(-1, 1, 1).expand(-1, 1, returns.shape[-1])
        taken = returns.gather(1, places).squeeze(1)  # [B, Z]
        with torch.no_grad():
            following = self._next_returns(online, target, transitions)
        terms, errors = self._terms(online, taken, following, transitions)
        with torch.no_grad():
            values = _mean(online, taken)
            metrics = {"q_mean": values.sum() / size, "td_error": errors.abs().sum() / size}
        loss = torch.dot(terms, transitions.weights) / size
        return Loss(loss, metrics, minibatch.per_sample(errors.abs()))

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        count = cast(GradientSteps, context.models["gradient_steps"]).count
        count.add_(1)
        if int(count) % self._config.target_every == 0:
            online, target = _networks(context.models)
            follow(target, online, rate=self._config.target_rate)

    def _next_returns(self, online: ActorCritic, target: ActorCritic, transitions: Transitions) -> Tensor:
        """[B, Z]: what the following network says of the best action in the next state."""
        assert online.q is not None and target.q is not None, "checked before the run"
        returns = target.action_returns(transitions.next_observations)
        judged = online.action_returns(transitions.next_observations) if self._config.double else returns
        best = best_action(online.q.values(judged), transitions.next_action_mask)
        return returns.gather(1, best.view(-1, 1, 1).expand(-1, 1, returns.shape[-1])).squeeze(1)

    def _terms(
        self, online: ActorCritic, taken: Tensor, following: Tensor, transitions: Transitions
    ) -> tuple[Tensor, Tensor]:
        """([B] of the loss, [B] of what priorities are made of), from what is said of the action and of what follows
        it, both [B, Z]."""
        assert online.q is not None, "checked before the run"
        kind, support = online.q.config.returns, online.q.support
        past = {"rewards": transitions.rewards, "discounts": transitions.discounts}
        if kind == "categorical":
            places = q_learning.td_targets(**past, next_values=support.expand_as(following))
            target = q_learning.project(probs=following.softmax(-1), places=places, support=support)
            terms = q_learning.cross_entropy(target_probs=target, logits=taken)
            return terms, terms.detach()
        targets = q_learning.td_targets(**past, next_values=following)
        errors = targets.mean(-1) - taken.mean(-1)
        if kind == "quantiles":
            return q_learning.quantile_huber(quantiles=taken, targets=targets), errors.detach()
        terms = q_learning.huber(errors) if self._config.loss == "huber" else 0.5 * errors.square()
        return terms, errors.detach()


def _networks(models: Models) -> tuple[ActorCritic, ActorCritic]:
    """The one that learns, and the one that follows it. Before a run there is none of the latter."""
    online = cast(ActorCritic, models["actor_critic"])
    return online, cast(ActorCritic, models.get(TARGET + "actor_critic", online))


def _mean(network: ActorCritic, returns: Tensor) -> Tensor:
    """[B, Z] -> [B]"""
    assert network.q is not None
    return network.q.values(returns.unsqueeze(1)).squeeze(1)


ALGORITHM = DQN
