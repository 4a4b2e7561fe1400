"""What actor-critic algorithms that learn from replay share: settings, networks beside the policy's, minibatches with
the noise of their losses, and the gradient steps of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from rollcall.learners.algorithm import Context, Metrics, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.batches.replay_batch import ReplayBatch, ReplayMinibatch
from rollcall.learners.maths.categorical import Categorical
from rollcall.learners.models.twin_critic import TwinCritic
from rollcall.learners.update import Stepper


@dataclass(frozen=True)
class NoisyPart:
    """What one process computes the loss of, and all the randomness of that."""

    replayed: ReplayMinibatch
    noise: Tensor  # [B, ...], standard normal
    of_actor: bool = True  # whether the actor's gradient is wanted, too


@dataclass(frozen=True)
class NoisyMinibatch:
    """A replayed minibatch, of whose rows each process takes its share."""

    replayed: ReplayMinibatch
    noise: Tensor
    of_actor: bool = True

    @property
    def ends_epoch(self) -> bool:
        return self.replayed.ends_epoch

    def shards(self, rank: int, num_processes: int) -> Sequence[NoisyPart]:
        (mine,) = self.replayed.shards(rank, num_processes)
        noise = self.noise if num_processes == 1 else self.noise[rank::num_processes]
        return (NoisyPart(mine, noise, self.of_actor),)


def twin_critic(models: Models, name: str = "critic") -> TwinCritic:
    return cast(TwinCritic, models[name])


def critic_for(models: Models, *, algorithm: str) -> TwinCritic:
    """A new one for the policy's spaces.

    Raises:
      ValueError: where the policy remembers, or its actions cannot be valued.
    """
    actor = samples.actor_critic(models)
    if actor.is_recurrent:
        raise ValueError(f"recurrent={actor.config.recurrent}: {algorithm} learns from single steps: set it to none")
    distribution = actor.distribution
    if isinstance(distribution, Categorical):
        return TwinCritic(actor.observation_spaces, actor.config, num_actions=distribution.n)
    return TwinCritic(actor.observation_spaces, actor.config, action_size=distribution.action_shape[0])


def with_noise(
    context: Context, batch: ReplayBatch, *, num_draws: int, num_actions: int
) -> Iterator[tuple[ReplayMinibatch, Tensor]]:
    """The batch's minibatches, each with standard normals [B, num_draws, num_actions]: the same on every process."""
    for minibatch in batch.minibatches():
        shape = (minibatch.size, num_draws, num_actions)
        device = minibatch.transitions.rewards.device
        yield minibatch, torch.randn(shape, generator=context.generator).to(device)


def turn_random_start(context: Context, batch: ReplayBatch) -> None:
    """Actors act at random while nothing is learnt."""
    switch = samples.actor_critic(context.models).random_start
    if switch is not None:
        switch.on.fill_(len(batch.drawn) == 0)


def gradient_steps(context: Context, minibatches: Iterator[NoisyMinibatch], stepper: Stepper) -> Metrics:
    """An optimiser step for each minibatch: of all models, or without the actor where its gradient is not wanted.
    Returns the metrics' means, each over the steps that had it; none before anything is learnt."""
    found: dict[str, list[Tensor]] = {}
    for minibatch in minibatches:
        models = None if minibatch.of_actor else ("critic",)
        for name, value in stepper.gradient_step(minibatch, models).items():
            found.setdefault(name, []).append(value)
    if not found:
        return {}
    if stepper.per_sample is not None:
        context.collective.sum_(stepper.per_sample)
    means = torch.stack([torch.stack(values).mean() for values in found.values()])
    return _over_processes(context, dict(zip(found, means, strict=True)))


def _over_processes(context: Context, means: Metrics) -> Metrics:
    """Sums of the shares; the gradient's norm is everyone's already."""
    names = [name for name in means if name != "grad_norm"]
    shares = torch.stack([means[name] for name in names])
    context.collective.sum_(shares)
    return means | dict(zip(names, shares, strict=True))
