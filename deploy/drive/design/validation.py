"""Whether a policy can be trained by a reward: looked at in the sandbox, on steps that random actions make, before a
run is spent on it. It is scored here by the very scorer that its run would use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ArrayField, ScoreItem, Segment
from rollcall.reward_service.sandbox.run import Containment, probe
from rollcall.reward_service.scorer import Failure, finite
from rollcall.reward_service.scorers.code_reward import CodeReward
from rollcall.reward_service.scorers.code_reward_config import CodeRewardConfig

NUM_STEPS = 512


def contained() -> Containment:
    """Raises BadInput: where nothing contains code on this machine."""
    found = probe(CodeRewardConfig.model_fields["limits"].default)
    if not found.usable:
        raise BadInput(f"no code that a model wrote is run on this machine: {found.problem}: see docs/reward_design.md")
    return found


def sampled_steps(config: EnvConfig, seed: int) -> list[ScoreItem]:
    """Episodes of random actions.

    Raises:
      BadInput: where the env cannot be made.
    """
    env = make_env(config, seed=seed)
    env.action_space.seed(seed)
    items: list[ScoreItem] = []
    taken = 0
    try:
        while taken < NUM_STEPS:
            observation, _ = env.reset(seed=seed + len(items))
            observations, actions = [np.array(observation)], []
            terminated = truncated = False
            while not (terminated or truncated) and taken < NUM_STEPS:
                action = env.action_space.sample()
                observation, _, terminated, truncated, _ = env.step(action)
                observations.append(np.array(observation))
                actions.append(np.array(action))
                taken += 1
            segment = Segment(
                observations=ArrayField.of(np.stack(observations[:-1])),
                actions=ArrayField.of(np.stack(actions)),
                last_observation=ArrayField.of(observations[-1][None]),
                terminated=bool(terminated),
            )
            items.append(ScoreItem(id=str(len(items)), segment=segment))
    finally:
        env.close()
    return items


def problem_of(code: str, call_s: float, steps: Sequence[ScoreItem], containment: Containment) -> str | None:
    """Why a policy cannot be trained by this code, in one line."""
    try:
        config = CodeRewardConfig(code=code, call_s=call_s)
    except ValueError:
        return f"the code is {len(code)} characters long: be brief"
    scorer = CodeReward(config, containment)
    try:
        outcomes = [finite(outcome) for outcome in scorer.score(steps)]
    finally:
        scorer.close()
    return next((outcome.message for outcome in outcomes if isinstance(outcome, Failure)), None)
