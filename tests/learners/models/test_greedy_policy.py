"""The policy as one function of tensors gives what acting gives, for every kind of action and observation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces

from rollcall.learners.models.action_distribution import distribution_of
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.greedy_policy import GreedyPolicy, env_actions
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig

VECTOR = spaces.Box(-3.0, 3.0, (4,), np.float32)
MIXED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (36, 40, 3), np.uint8),
        "level": spaces.Box(2, 9, (2,), np.uint8),
        "choice": spaces.Discrete(5, start=1),
        "inner": spaces.Dict({"clock": spaces.Box(-1e6, 1e6, (1,), np.float64)}),
    }
)
ACTIONS = {
    "one of some": spaces.Discrete(3, start=2),
    "several": spaces.MultiDiscrete([3, 2], start=[1, 0]),
    "clipped": spaces.Box(np.array([-0.1, -9.0], np.float32), np.array([0.1, 9.0], np.float32)),
    "in a matrix": spaces.Box(-1.0, 2.0, (2, 2), np.float64),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tanh": {"squash": "tanh", "state_dependent_std": True},
    "noise": {"exploration_noise": 0.3},
    "values": {"q": {"dueling": True, "returns": "quantiles", "atoms": 5, "noisy": True}},
    "gru": {"recurrent": "gru", "recurrent_size": 6},
    "lstm": {"recurrent": "lstm", "recurrent_size": 6},
}
FITTING = [
    (action, settings)
    for action, space in ACTIONS.items()
    for settings in SETTINGS
    if (isinstance(space, spaces.Box) or settings not in ("tanh", "noise"))
    and (isinstance(space, spaces.Discrete) or settings != "values")
]


def observed(space: Space[Any], names: tuple[str, ...], number: int) -> dict[str, np.ndarray[Any, Any]]:
    space.seed(3)

    def leaf(sample: Any, name: str) -> Any:
        for part in name.split(".") if isinstance(sample, dict) else ():
            sample = sample[part]
        return sample

    samples = [space.sample() for _ in range(number)]
    return {name: np.stack([np.asarray(leaf(sample, name)) for sample in samples]) for name in names}


@pytest.mark.parametrize("observation", [VECTOR, MIXED], ids=["vector", "mixed"])
@pytest.mark.parametrize(("action", "settings"), FITTING)
def test_it_takes_the_action_of_a_greedy_rollout(observation: Space[Any], action: str, settings: str) -> None:
    config = PolicyConfig(normalise_observations=True, orthogonal_init=False, **SETTINGS[settings])
    network = build_actor_critic(observation, ACTIONS[action], config, with_critic=False, seed=1)
    names = tuple(network.observation_spaces)
    shown = observed(observation, names, 20)
    tensors = {name: torch.from_numpy(array) for name, array in shown.items()}
    network.update_normaliser({name: t[:10, None] for name, t in tensors.items()}, torch.ones(10, 1, dtype=torch.bool))
    policy = TorchPolicy(observation, ACTIONS[action], config)
    policy.load(module_weights({"actor_critic": network}, "policy", epoch=1, version=1))
    masked = policy.module.distribution.mask_size > 0
    mask = np.random.default_rng(0).random((20, policy.module.distribution.mask_size)) < 0.5
    mask[:, :1] = mask[:, -1:] = True
    state, starts = policy.initial_recurrent_state(20), np.arange(20) % 2 == 0
    if state is not None:
        state += np.random.default_rng(1).normal(size=state.shape).astype(np.float32)
    rollout = policy.rollout(num_steps=1, num_envs=20, seed=0, recurrent_state=state, greedy=True)
    _, expected = rollout.act(shown, episode_starts=starts, action_mask=mask if masked else None)

    greedy = GreedyPolicy(policy.module, masked=masked)
    given = [*(tensors[name] for name in names), *([torch.from_numpy(mask)] if masked else [])]
    if state is not None:
        given += [torch.from_numpy(state), torch.from_numpy(starts)]
    found = dict(zip(greedy.outputs, greedy(*given), strict=True))
    assert found["action"].numpy().dtype == expected.dtype and found["action"].shape == expected.shape
    assert np.allclose(found["action"].numpy(), expected, atol=1e-6, rtol=1e-6)
    after = rollout.recurrent_state()
    if after is not None:
        assert np.allclose(found["next_state"].numpy(), after, atol=1e-6)


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_reach_the_env_as_to_env_has_them(action: str) -> None:
    """To the last bit, but for numpy's and torch's tanh: the bounds are exact."""
    for settings in ("plain", "tanh", "noise"):
        if (action, settings) not in FITTING:
            continue
        distribution = distribution_of(PolicyConfig(**SETTINGS[settings]), ACTIONS[action])
        stored = distribution.mode(
            torch.randn(50, distribution.num_params, generator=torch.Generator().manual_seed(0)) * 9
        )
        expected = distribution.to_env(stored.numpy())
        found = env_actions(distribution, stored).numpy()
        assert found.dtype == expected.dtype
        assert np.abs(found - expected).max() <= (1e-6 if settings == "tanh" else 0.0)


def test_the_policy_it_was_made_of_stays_as_it_was() -> None:
    network = build_actor_critic(VECTOR, ACTIONS["one of some"], PolicyConfig(), with_critic=False, seed=1)
    before = [parameter.clone() for parameter in network.parameters()]
    greedy = GreedyPolicy(network, masked=False)
    with torch.no_grad():
        greedy.module.policy_head.bias.add_(1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_cannot_be_is_refused() -> None:
    continuous = build_actor_critic(VECTOR, ACTIONS["clipped"], PolicyConfig(), with_critic=False, seed=1)
    with pytest.raises(ValueError, match="continuous actions cannot be masked"):
        GreedyPolicy(continuous, masked=True)
    for name, recurrent in (("mean", "none"), ("state", "gru")):
        named = spaces.Dict({name: VECTOR})
        config = PolicyConfig.model_validate({"recurrent": recurrent})
        network = build_actor_critic(named, ACTIONS["clipped"], config, with_critic=False, seed=1)
        with pytest.raises(ValueError, match=f"an observation is called '{name}'"):
            GreedyPolicy(network, masked=False)
    named = spaces.Dict({"state": VECTOR})  # which only a recurrent policy has of its own
    network = build_actor_critic(named, ACTIONS["clipped"], PolicyConfig(), with_critic=False, seed=1)
    assert GreedyPolicy(network, masked=False).inputs == ("state",)
