"""An env whose states and actions are numbers from 0 on, and its dynamics where it has them as a table."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.actors.envs.sources import Env
from rollcall.cluster.errors import BadInput
from rollcall.learners.tabular.model import Model

LONGEST = 100_000  # steps of an episode where neither the env nor the recipe has a limit


class NumberedEnv:
    """As learners.tabular.play.DiscreteEnv.

    Raises:
      BadInput: in one line, where the env cannot be made, or its spaces are not Discrete.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.env: Env = make_env(config)
        observed, taken = self.env.observation_space, self.env.action_space
        for what, space in (("observations", observed), ("actions", taken)):
            if not isinstance(space, gym.spaces.Discrete):
                self.env.close()
                kind = f"{type(space).__name__} {what}"
                raise BadInput(f"has {kind}: a table needs Discrete ones; a network does not (ppo, a2c)")
        assert isinstance(observed, gym.spaces.Discrete) and isinstance(taken, gym.spaces.Discrete)
        self.num_states, self.num_actions = int(observed.n), int(taken.n)
        self._first_state, self._first_action = int(observed.start), int(taken.start)
        self.limit: int | None = config.max_episode_steps or getattr(self.env.spec, "max_episode_steps", None)

    def reset(self, *, seed: int | None = None) -> tuple[int, Any]:
        state, info = self.env.reset(seed=seed)
        return int(state) - self._first_state, info

    def step(self, action: int) -> tuple[int, float, bool, bool, Any]:
        state, reward, terminated, truncated, info = self.env.step(action + self._first_action)
        return int(state) - self._first_state, float(reward), bool(terminated), bool(truncated), info

    def model(self) -> Model | None:
        """Its dynamics, if it gives a table of them: `P` and `initial_state_distrib`, as gymnasium's toy_text envs do.

        Raises:
          BadInput: for a table that is none.
        """
        table = getattr(self.env.unwrapped, "P", None)
        start = getattr(self.env.unwrapped, "initial_state_distrib", None)
        if table is None or start is None or self._first_state or self._first_action:
            return None
        try:
            return Model.of_table(table, start)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(f"has a transition table P that is none: {error}") from None

    def close(self) -> None:
        self.env.close()
