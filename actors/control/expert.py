"""A policy that an expert teaches while it acts: the expert says of everything that is seen what it would do, and acts
itself now and then (DAgger: Ross et al., 2011). Knows neither where experts come from nor what is learnt of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.observations import PLAIN_NAME, Space
from rollcall.actors.policy import Policy, Rollout
from rollcall.cluster.errors import ExpertFailure
from rollcall.cluster.inputs.user_code import described
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed

ToStored = Callable[[Array], Array]  # actions as the env takes them -> as they are learnt


class TaughtPolicy:
    """A Policy whose rollouts hand back the expert's actions, to be learnt, and theirs or its own, to be done."""

    def __init__(
        self, learner: Policy, expert: Policy, *, stored: ToStored, beta: Callable[[int], float], greedy: bool
    ) -> None:
        """`beta`: of a policy version, the chance that the expert acts at a step; `greedy`: otherwise the likeliest
        action of the learner is done, or one that is drawn.

        Both see single observations: neither has a memory.
        """
        self._learner = learner
        self._expert = expert
        self._stored = stored
        self._beta = beta
        self._greedy = greedy

    @property
    def version(self) -> int:
        return self._learner.version

    def load(self, weights: Weights) -> None:
        self._learner.load(weights)

    def initial_recurrent_state(self, num_envs: int) -> None:
        return None

    def rollout(
        self,
        *,
        num_steps: int,
        num_envs: int,
        seed: int,
        recurrent_state: Array | None,
        greedy: bool = False,
        first_env: int = 0,
    ) -> TaughtRollout:
        unit: dict[str, Any] = {"num_steps": num_steps, "num_envs": num_envs, "recurrent_state": None}
        unit["first_env"] = first_env
        coins = np.random.default_rng(derive_seed(seed, "mixture")).random((num_steps, num_envs))
        return TaughtRollout(
            self._learner.rollout(**unit, seed=seed, greedy=greedy or self._greedy),
            self._expert.rollout(**unit, seed=derive_seed(seed, "expert"), greedy=True),
            stored=self._stored,
            expert_acts=coins < self._beta(self.version),
        )


class TaughtRollout:
    """One unit."""

    def __init__(self, learner: Rollout, expert: Rollout, *, stored: ToStored, expert_acts: Array) -> None:
        """`expert_acts`: bool [T, B]"""
        self._learner = learner
        self._expert = expert
        self._stored = stored
        self._expert_acts = expert_acts
        self._step = 0

    def act(
        self, observations: Mapping[str, Array], *, episode_starts: Array, action_mask: Array | None = None
    ) -> tuple[Array, Array]:
        """(the expert's actions as they are to be learnt, what is done)"""
        shown: dict[str, Any] = {"episode_starts": episode_starts, "action_mask": action_mask}
        _, own = self._learner.act(observations, **shown)
        _, wanted = self._expert.act(observations, **shown)
        acts = self._expert_acts[self._step].reshape(-1, *[1] * (own.ndim - 1))
        self._step += 1
        return self._stored(wanted), np.where(acts, wanted, own).astype(own.dtype, copy=False)

    def behaviour_logprobs(self) -> Array:
        """Zeros: what is handed back is what the expert does for certain."""
        return np.zeros((self._step, self._expert_acts.shape[1]), np.float32)

    def recurrent_state(self) -> None:
        return None


class FunctionExpert:
    """A function of one observation as a Policy. It is given what the env shows, and gives what the env takes."""

    version = 0

    def __init__(
        self, function: Callable[[Any], Any], *, name: str, observation_space: Space, action_space: Space
    ) -> None:
        """`name`: what the user calls it."""
        self._function = function
        self._name = name
        self._observation_space = observation_space
        self._action_space = action_space

    def load(self, weights: Weights) -> None: ...

    def initial_recurrent_state(self, num_envs: int) -> None:
        return None

    def rollout(
        self,
        *,
        num_steps: int,
        num_envs: int,
        seed: int,
        recurrent_state: Array | None,
        greedy: bool = False,
        first_env: int = 0,
    ) -> FunctionExpert:
        return self

    def act(
        self, observations: Mapping[str, Array], *, episode_starts: Array, action_mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Raises ExpertFailure: where it raises, or gives what the env does not take."""
        actions = np.stack([self._one(observations, env) for env in range(len(episode_starts))])
        return actions, actions

    def behaviour_logprobs(self) -> Array:
        raise AssertionError("an expert is not asked how sure it is")

    def recurrent_state(self) -> None:
        return None

    def _one(self, observations: Mapping[str, Array], env: int) -> Array:
        shown = _as_shown(observations, self._observation_space, env, ())
        try:
            given = self._function(shown)
        except Exception as error:
            raise ExpertFailure(f"expert {self._name}: {described(error)}") from error
        return self._taken(given)

    def _taken(self, given: Any) -> Array:
        """As the env takes it; numbers beyond an action's bounds are cut."""
        space, action = self._action_space, np.zeros(0)
        try:
            action = np.asarray(given)
            kinds = "iuf" if isinstance(space, gym.spaces.Box) else "iu"
            fits = action.dtype.kind in kinds and action.shape == (space.shape or ())
        except (TypeError, ValueError):
            fits = False
        if fits and isinstance(space, gym.spaces.Box):
            action = np.clip(action, space.low, space.high)  # NaN stays one, and no space contains it
        action = action.astype(space.dtype) if fits else action
        if not fits or not space.contains(action):
            shown = " ".join(repr(given).split())[:80]
            raise ExpertFailure(f"expert {self._name}: gave {shown}, and the env takes {space}")
        return action


def _as_shown(observations: Mapping[str, Array], space: Space, env: int, path: tuple[str, ...]) -> Any:
    """One env's observation as its space nests it."""
    if not isinstance(space, gym.spaces.Dict):
        return observations[".".join(path) or PLAIN_NAME][env].copy()
    return {key: _as_shown(observations, inner, env, (*path, str(key))) for key, inner in space.spaces.items()}
