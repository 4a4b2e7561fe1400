"""The acting policy: an actor-critic's policy half behind the actors' Policy protocol, at a few microseconds a step.
Knows nothing of environments, actors or learner state: spaces, a config and Weights are all it is built from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.steps import Unroll
from rollcall.cluster.messages.weights import Weights
from rollcall.learners.maths.distributions import DiagonalGaussian
from rollcall.learners.models.flat import flatten_module, load_module_weights
from rollcall.learners.models.fused_acting import FusedActing
from rollcall.learners.models.judging import Judging
from rollcall.learners.models.networks import (
    CRITIC_CHILDREN,
    LOG_STD_BOUNDS,
    ActorCritic,
    build_actor_critic,
)
from rollcall.learners.models.policy_config import PolicyConfig


class TorchPolicy:
    """Satisfies actors.policy.Policy. Holds one copy of the weights; any number of rollouts may follow one another.

    The same weights, seed and observations give the same bits, on the same machine and number of threads.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: PolicyConfig,
        *,
        weights: Weights | None = None,
        name: str = "actor_critic",
        judging: Judging | None = None,
    ) -> None:
        """The learner's network without its critic, whether that has one or not. `judging`: of its own experience.

        Raises:
          ValueError: on spaces that are not supported, or weights that do not fit.
        """
        self.module = build_actor_critic(observation_space, action_space, config, with_critic=False, seed=0)
        self.module.requires_grad_(False)
        flatten_module(self.module)
        self._name = name
        self._judging = judging
        self._version = -1
        self._fused: dict[int, FusedActing] = {}  # by number of envs
        if weights is not None:
            self.load(weights)

    @property
    def version(self) -> int:
        return self._version

    def load(self, weights: Weights) -> None:
        """Takes newer weights. Not in the middle of a rollout: a unit is produced under one version."""
        load_module_weights(self.module, weights, name=self._name, without=CRITIC_CHILDREN)
        self.module.torso.keep_casts()
        self._version = weights.version

    def initial_recurrent_state(self, num_envs: int) -> Array | None:
        if not self.module.is_recurrent:
            return None
        return np.zeros((self.module.num_states, num_envs, self.module.recurrent_size), np.float32)

    def rollout(
        self,
        *,
        num_steps: int,
        num_envs: int,
        seed: int,
        recurrent_state: Array | None,
        greedy: bool = False,
        first_env: int = 0,
    ) -> TorchRollout:
        if self._version < 0:
            raise ValueError("rollout: the policy has no weights yet; load some first")
        if (recurrent_state is not None) != self.module.is_recurrent:
            raise ValueError(
                "recurrent_state must be given exactly if the policy is recurrent: "
                "begin with initial_recurrent_state(num_envs)"
            )
        if num_envs not in self._fused and FusedActing.fits(self.module):
            self._fused[num_envs] = FusedActing(self.module, num_envs)
        fused = self._fused.get(num_envs)
        return TorchRollout(
            self.module, fused, num_steps, num_envs, None if greedy else seed, recurrent_state, first_env
        )

    def td_errors(self, rollout: TorchRollout, unroll: Unroll[Array]) -> Array | None:
        """As JudgesExperience has it."""
        if self._judging is None:
            return None
        return self._judging.td_errors(self.module, rollout.params, unroll)


class TorchRollout:
    """Satisfies actors.policy.Rollout: one unit. Parameters go to one [T, B, P] buffer; log-probs come at the end.

    Greedy rollouts report the log-probs of their actions under the policy's distribution, not 0.
    """

    @torch.inference_mode()
    def __init__(
        self,
        module: ActorCritic,
        fused: FusedActing | None,
        num_steps: int,
        num_envs: int,
        seed: int | None,
        recurrent_state: Array | None,
        first_env: int,
    ) -> None:
        """`seed=None`: greedy."""
        distribution = module.distribution
        self._module = module
        self._fused = fused
        self._distribution = distribution
        self._num_steps = num_steps
        self._step = 0
        self._params = torch.empty(num_steps, num_envs, distribution.num_params)
        self._actions = torch.empty((num_steps, num_envs, *distribution.action_shape), dtype=distribution.action_dtype)
        self._action_mask: Tensor | None = None  # bool [T, B, mask_size], from the first step that has one
        self._state = None if recurrent_state is None else torch.from_numpy(recurrent_state.copy())
        # One view per step now is cheaper than indexing at every step.
        self._params_at = self._params.unbind(0)
        self._actions_at = self._actions.unbind(0)
        self._stored_at = list(self._actions.numpy())
        self._noise_at: tuple[Tensor, ...] | None = None
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if generator is not None:
            noise = distribution.noise((num_steps, num_envs), generator)
            self._noise_at = noise.unbind(0)
        module.draw_noise(generator)
        # Until the learner begins to learn: any action, whatever the network says of them.
        at_random = module.random_start if seed is not None else None
        self._random = at_random if at_random is not None and bool(at_random.on) else None
        self._log_stds = self._params[..., distribution.num_params // 2 :] if module.has_std_head else None
        self._outputs_at = self._params_at
        if module.log_std is not None:
            # The standard deviations are the same at every step: only the means are computed there.
            assert isinstance(distribution, DiagonalGaussian)
            self._params[..., distribution.dim :] = module.log_std
            self._outputs_at = self._params[..., : distribution.dim].unbind(0)
        elif module.exploration is not None:  # so are epsilons
            self._params[..., -1] = module.exploration.of_envs(first_env, num_envs)
            self._outputs_at = self._params[..., :-1].unbind(0)

    def act(
        self, observations: Mapping[str, Array], *, episode_starts: Array, action_mask: Array | None = None
    ) -> tuple[Array, Array]:
        """See Rollout.act.

        Raises:
          ValueError: at more than num_steps steps, or when a row of action_mask allows nothing.
        """
        t = self._step
        if t >= self._num_steps:
            raise ValueError(f"act was called more than num_steps={self._num_steps} times: begin a new rollout")
        with torch.inference_mode():
            if self._fused is not None:
                self._state = self._fused.forward(observations, self._state, episode_starts, self._outputs_at[t])
                if self._log_stds is not None:
                    self._log_stds[t].clamp_(*LOG_STD_BOUNDS)
            else:
                self._forward(observations, episode_starts, self._outputs_at[t])
            mask = None if action_mask is None else self._keep_mask(action_mask)
            if self._noise_at is None:
                actions = self._distribution.mode(self._params_at[t], mask)
            elif self._random is not None:
                actions = self._random.sample(self._noise_at[t], mask)
            else:
                actions = self._distribution.sample(self._params_at[t], self._noise_at[t], mask)
            self._actions_at[t].copy_(actions)
        self._step = t + 1
        stored = self._stored_at[t]
        return stored, self._distribution.to_env(stored)

    @property
    def params(self) -> Tensor:
        """[steps taken so far, B, P]: of the distributions that actions were drawn from."""
        return self._params[: self._step]

    def behaviour_logprobs(self) -> Array:
        t = self._step
        with torch.inference_mode():
            mask = None if self._action_mask is None else self._action_mask[:t]
            if self._random is not None:
                found = self._random.log_prob(self._actions[:t], mask)
            else:
                found = self._distribution.log_prob(self._params[:t], self._actions[:t], mask)
            logprobs: Array = found.numpy()
            return logprobs

    def recurrent_state(self) -> Array | None:
        state: Array | None = None if self._state is None else self._state.numpy().copy()
        return state

    def _forward(self, observations: Mapping[str, Array], episode_starts: Array, outputs: Tensor) -> None:
        """Any network, through its own acting path."""
        tensors = {name: _as_tensor(observations[name]) for name in self._module.observation_spaces}
        if self._state is None:
            params = self._module.policy_params(tensors)
        else:
            params, self._state = self._module.step(tensors, self._state, _as_tensor(episode_starts))
        outputs.copy_(params[..., : outputs.shape[-1]])

    def _keep_mask(self, action_mask: Array) -> Tensor:
        self._distribution.check_mask(action_mask)
        if self._action_mask is None:
            self._action_mask = torch.ones((*self._params.shape[:2], self._distribution.mask_size), dtype=torch.bool)
        mask = self._action_mask[self._step]
        mask.copy_(_as_tensor(action_mask))
        return mask


def _as_tensor(array: Array) -> Tensor:
    # torch warns about read-only arrays, though nobody writes to these.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
