"""REINFORCE: what each kind of return and of baseline multiplies the gradient with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rollcall.cluster.messages.steps import EnvSteps
from rollcall.learners.algorithms.control.reinforce import REINFORCE, MovingAverage
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.networks import ActorCritic
from tests.learners.experience import context_of

MakePolicy = Callable[..., ActorCritic]


def two_episodes() -> GymBatch:
    """Env 0: three steps with rewards 1, 2, 4, then termination. Env 1: one step with reward 8, cut off by a time
    limit, then two steps of padding."""
    shape = (3, 2)
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    terminated, truncated = torch.zeros(2, *shape, dtype=torch.bool).unbind()
    terminated[2, 0] = truncated[0, 1] = True
    return GymBatch(
        steps=EnvSteps(
            observations={"observation": torch.ones(*shape, 3)},
            actions=torch.zeros(shape, dtype=torch.int64),
            behaviour_logprobs=torch.zeros(shape),
            rewards=torch.tensor([[1.0, 8.0], [2.0, 0.0], [4.0, 0.0]]),
            terminated=terminated,
            truncated=truncated,
            mask=mask,
            episode_starts=torch.tensor([[True, True], [False, False], [False, False]]),
        ),
        last_observations={"observation": torch.ones(2, 3)},
        final_index=torch.tensor([[0, 1], [2, 0]]),
        final_observations={"observation": torch.ones(2, 3)},
    )


def advantages(policy: ActorCritic, average: MovingAverage | None = None, **settings: Any) -> Tensor:
    """[T, B]"""
    algorithm = REINFORCE(REINFORCE.Config(discount=0.5, **settings))
    models: dict[str, torch.nn.Module] = {"actor_critic": policy}
    if average is not None:
        models["baseline"] = average
    result: Tensor = algorithm.prepare(context_of(models), two_episodes()).targets.advantages.view(3, 2)
    return result


def test_reward_to_go_credits_an_action_with_what_follows_it(make_policy: MakePolicy) -> None:
    result = advantages(make_policy(with_critic=False), baseline="none", reward_to_go=True)
    assert result.tolist() == [[1 + 1 + 1, 8], [2 + 2, 0], [4, 0]]


def test_without_reward_to_go_an_action_is_credited_with_its_whole_episode(make_policy: MakePolicy) -> None:
    result = advantages(make_policy(with_critic=False), baseline="none", reward_to_go=False)
    assert result.tolist() == [[3, 8], [3, 0], [3, 0]]


@pytest.mark.parametrize(("reward_to_go", "mean_return"), [(False, (3 + 8) / 2), (True, (3 + 4 + 4 + 8) / 4)])
def test_the_moving_average_is_subtracted_before_it_takes_in_the_batch(
    make_policy: MakePolicy, reward_to_go: bool, mean_return: float
) -> None:
    policy, average = make_policy(with_critic=False), MovingAverage()
    settings = {"baseline": "moving_average", "baseline_decay": 0.75, "reward_to_go": reward_to_go}
    plain = advantages(policy, baseline="none", reward_to_go=reward_to_go)
    expected = 0.0
    for _ in range(3):
        result = advantages(policy, average, **settings)
        assert result[:, 0].tolist() == pytest.approx((plain[:, 0] - expected).tolist())
        assert result[1:, 1].tolist() == [0, 0]  # padding
        expected = 0.75 * expected + 0.25 * mean_return
        assert float(average.value) == pytest.approx(expected)


def test_the_learned_baseline_bootstraps_an_episode_that_a_time_limit_cut(make_policy: MakePolicy) -> None:
    policy = make_policy()
    with torch.no_grad():
        value = policy({"observation": torch.ones(3)}).values
    result = advantages(policy, baseline="value")
    expected = torch.tensor([3.0, 4.0, 4.0]) - value
    torch.testing.assert_close(result[:, 0], expected)
    torch.testing.assert_close(result[0, 1], 8.0 + 0.5 * value - value)


@pytest.mark.parametrize("reward_to_go", [True, False])
def test_the_critic_learns_what_follows_a_state_whatever_actions_are_credited_with(
    make_policy: MakePolicy, reward_to_go: bool
) -> None:
    algorithm = REINFORCE(REINFORCE.Config(discount=0.5, baseline="value", reward_to_go=reward_to_go))
    prepared = algorithm.prepare(context_of({"actor_critic": make_policy()}), two_episodes())
    assert prepared.targets.returns.view(3, 2)[:, 0].tolist() == [3, 4, 4]


def test_a_return_that_is_not_finite_leaves_no_trace_in_the_baseline(make_policy: MakePolicy) -> None:
    baseline = MovingAverage()
    algorithm = REINFORCE(REINFORCE.Config())
    batch = two_episodes()
    batch.steps.rewards[0, 0] = torch.nan
    algorithm.prepare(context_of({"actor_critic": make_policy(with_critic=False), "baseline": baseline}), batch)
    assert float(baseline.value) == 0.0


def test_the_baseline_is_a_model_to_be_saved_and_only_where_it_is_used() -> None:
    (name, module), *rest = REINFORCE(REINFORCE.Config()).extra_models().items()
    assert (name, rest) == ("baseline", [])
    assert list(module.state_dict()) == ["value"]
    assert not REINFORCE(REINFORCE.Config(baseline="value")).extra_models()


def test_only_the_learned_baseline_needs_a_critic(make_policy: MakePolicy) -> None:
    assert [REINFORCE(REINFORCE.Config(baseline=b)).needs.critic for b in ("none", "moving_average", "value")] == [
        False,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="reinforce with baseline=value needs a critic and the policy has none"):
        advantages(make_policy(with_critic=False), baseline="value")
