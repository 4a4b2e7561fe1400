"""Running statistics of observations and rewards. They are buffers, hence part of the weights: identical on actor and
learner at every version. Changed only by an explicit `update` from the learner, never by a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.learners.batches.gym_batch import GymBatch

_EPSILON = 1e-8  # added to variances


class RunningMoments(nn.Module):
    """Count, mean and variance of everything seen, in float64, merged batch by batch (Chan, Golub and LeVeque, 1979).

    `shift` and `scale` are the same statistics ready for float32 use. They are buffers too, so that whoever loads the
    weights normalises with the same bits. Before the first update both leave their argument as it is.
    """

    count: Tensor  # float64 []
    mean: Tensor  # float64 [*shape]
    m2: Tensor  # float64 [*shape]: sum of squared deviations from the mean
    shift: Tensor  # float32 [*shape]: the mean
    scale: Tensor  # float32 [*shape]: 1 / standard deviation

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(self.shape, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(self.shape, dtype=torch.float32))

    @property
    def variance(self) -> Tensor:
        """Population variance, float64; 1 before the first update."""
        return self.m2 / self.count if self.count > 0 else torch.ones_like(self.m2)

    @torch.no_grad()
    def update(self, samples: Tensor, mask: Tensor | None = None) -> None:
        """Takes in samples [..., *shape] where mask [...] is True. What is masked may be anything, NaN included."""
        rows = samples.reshape(-1, *self.shape)
        if mask is not None:
            rows = rows[mask.reshape(-1)]
        if rows.shape[0] == 0:
            return
        rows = rows.to(self.mean.device, torch.float64)
        batch_mean = rows.mean(0)
        batch_m2 = (rows - batch_mean).square().sum(0)
        total = self.count + rows.shape[0]
        delta = batch_mean - self.mean
        self.m2 += batch_m2 + delta.square() * (self.count * rows.shape[0] / total)
        self.mean += delta * (rows.shape[0] / total)
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_(torch.rsqrt(self.variance + _EPSILON))

    def normalise(self, samples: Tensor, clip: float) -> Tensor:
        """float32: zero mean and unit variance, clipped to +-clip. float64 samples are only cut to float32 when the
        mean is off them: a clock that counts from 1970 goes on in steps of minutes in float32."""
        wide = samples.dtype == torch.float64
        centred = (samples - self.mean).float() if wide else samples.float() - self.shift
        return (centred * self.scale).clamp(-clip, clip)


class ObservationNormaliser(nn.Module):
    """Normalises the float Box observations among named spaces; passes the others through."""

    def __init__(self, spaces: Mapping[str, gym.Space[Any]], clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.names = tuple(
            name
            for name, space in spaces.items()
            if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
        )
        if not self.names:
            raise ValueError(
                f"normalise_observations=true, but none of the observations {list(spaces)} is a Box of floats: "
                "set it to false"
            )
        for name in self.names:
            self.add_module(self._key(name), RunningMoments(spaces[name].shape or ()))

    @staticmethod
    def _key(name: str) -> str:
        # A module's name may neither hold a dot (nested dicts do) nor hide an attribute (an observation "type" would).
        return "of_" + name.replace(".", "/")

    def moments(self, name: str) -> RunningMoments:
        moments = getattr(self, self._key(name))
        assert isinstance(moments, RunningMoments)
        return moments

    def forward(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        normalised = dict(observations)
        for name in self.names:
            normalised[name] = self.moments(name).normalise(observations[name], self.clip)
        return normalised

    def update(self, observations: Mapping[str, Tensor], mask: Tensor) -> None:
        """Takes in raw observations [T, B, ...] where mask [T, B] is True. For the learner, after a step."""
        for name in self.names:
            self.moments(name).update(observations[name], mask)


class ShardReturns(TypedDict):
    """A shard's running discounted returns, plain enough for JSON."""

    incarnation: int
    returns: list[float]  # one for each env


class RewardNormaliser(nn.Module):
    """Divides rewards by the standard deviation of the running discounted return (no mean is taken away: that would
    change which policy is best). The scheme of OpenAI Baselines' VecNormalize; Engstrom et al., 2020, arXiv:2005.12729.

    The running return of env b is G <- discount * G + r, from 0 at each episode's start and whenever its shard begins a
    new incarnation. No actor computes with these, so the learner may take a batch in before it scales that same batch.
    Statistics are buffers; the accumulators go into the learner's checkpoint beside them.
    """

    def __init__(self, discount: float, clip: float) -> None:
        super().__init__()
        self.discount = discount
        self.clip = clip
        self.return_moments = RunningMoments(())
        self._shards: dict[int, tuple[int, Array]] = {}  # shard -> (incarnation, float64 [B])

    def update_and_scale(self, batch: GymBatch, trajectories: Sequence[GymTrajectory]) -> Tensor:
        """Takes the trajectories of a batch in, and gives the batch's rewards [T, B] scaled by what is known then."""
        self.update(trajectories)
        return self.normalise(batch.steps.rewards)

    def update(self, trajectories: Sequence[GymTrajectory]) -> None:
        """Takes in trajectories in the order in which they were produced (per shard)."""
        for item in trajectories:
            self.return_moments.update(torch.from_numpy(self._returns(item)), torch.from_numpy(item.steps.mask.copy()))

    def _returns(self, item: GymTrajectory) -> Array:
        """float64 [T, B]: the running return after each step; carries the accumulators of its shard on."""
        steps = item.steps
        num_steps, num_envs = item.unroll.shape
        incarnation, running = self._shards.get(item.shard, (item.incarnation, np.zeros(num_envs)))
        if incarnation != item.incarnation or len(running) != num_envs:
            running = np.zeros(num_envs)
        returns = np.empty((num_steps, num_envs))
        for t in range(num_steps):
            running = np.where(steps.episode_starts[t], 0.0, running)
            # A masked step is no experience, and what follows it is another episode.
            running = np.where(steps.mask[t], self.discount * running + steps.rewards[t], 0.0)
            returns[t] = running
            running = np.where(steps.terminated[t] | steps.truncated[t], 0.0, running)
        self._shards[item.shard] = (item.incarnation, running)
        return returns

    def normalise(self, rewards: Tensor) -> Tensor:
        """float32 [T, B], clipped to +-clip."""
        return (rewards.float() * self.return_moments.scale).clamp(-self.clip, self.clip)

    def accumulators(self) -> dict[int, ShardReturns]:
        """For the checkpoint: shard -> its running returns."""
        return {
            shard: ShardReturns(incarnation=incarnation, returns=[float(value) for value in running])
            for shard, (incarnation, running) in self._shards.items()
        }

    def set_accumulators(self, accumulators: Mapping[int, ShardReturns] | Mapping[str, ShardReturns]) -> None:
        """Takes what `accumulators` gave, keys as strings where it has been through JSON."""
        self._shards = {
            int(shard): (item["incarnation"], np.array(item["returns"], dtype=np.float64))
            for shard, item in accumulators.items()
        }
