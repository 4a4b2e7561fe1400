"""Running statistics against those of everything at once, and running returns against the literal recursion."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.learners.batches.gym_batch import stack_trajectories
from rollcall.learners.models.normaliser import ObservationNormaliser, RewardNormaliser, RunningMoments


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 999),
)
def test_moments_of_batches_are_those_of_all_samples_at_once(sizes: list[int], offset: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    batches = [offset + generator.normal(size=(size, 3)) for size in sizes]
    moments = RunningMoments((3,))
    for batch in batches:
        moments.update(torch.from_numpy(batch))
    samples = np.concatenate(batches)
    assert float(moments.count) == len(samples)
    if len(samples):
        np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance, samples.var(0), rtol=1e-6, atol=1e-9)


def test_masked_samples_do_not_count_even_if_they_are_nan() -> None:
    samples = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True], [True, True, False], [False, False, False], [True, True, True]])
    spoilt = torch.where(mask.unsqueeze(-1), samples, torch.nan)
    moments = RunningMoments((2,))
    moments.update(spoilt, mask)
    np.testing.assert_allclose(moments.mean, samples[mask].double().mean(0), rtol=1e-12)
    assert float(moments.count) == 7
    before = moments.mean.clone()
    moments.update(spoilt, torch.zeros_like(mask))
    assert torch.equal(moments.mean, before)


def test_normalising_is_clipped_standardisation_and_before_any_update_the_identity() -> None:
    moments = RunningMoments((1,))
    values = torch.tensor([[-3.0], [0.5], [20.0]])
    assert torch.equal(moments.normalise(values, 10.0), torch.tensor([[-3.0], [0.5], [10.0]]))
    moments.update(torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.float64))
    expected = np.clip((values.numpy() - 4.0) / np.sqrt(5.0), -1.5, 1.5)
    normalised = moments.normalise(values, 1.5)
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised, expected, rtol=1e-6)


def test_a_clock_that_counts_from_1970_is_normalised_as_the_same_clock_counted_from_zero() -> None:
    ticks = torch.arange(64, dtype=torch.float64).reshape(64, 1)
    since_start, since_1970 = RunningMoments((1,)), RunningMoments((1,))
    since_start.update(ticks)
    since_1970.update(ticks + 1.7e9)
    expected = since_start.normalise(ticks, 10.0)
    torch.testing.assert_close(since_1970.normalise(ticks + 1.7e9, 10.0), expected, atol=1e-6, rtol=0)
    assert len(expected.unique()) == 64
    assert len((ticks + 1.7e9).float().unique()) < 3, "in float32 its steps are of two minutes"


def test_a_feature_that_never_varies_is_normalised_to_zero() -> None:
    moments = RunningMoments((1,))
    moments.update(torch.full((50, 1), 0.1))
    assert torch.equal(moments.normalise(torch.full((3, 1), 0.1), 10.0), torch.zeros(3, 1))


def test_only_float_observations_are_normalised_and_only_update_changes_statistics() -> None:
    normaliser = ObservationNormaliser(
        {
            "arm.position": spaces.Box(-1, 1, (2,), np.float64),
            "type": spaces.Box(-1, 1, (), np.float32),
            "frame": spaces.Box(0, 255, (4,), np.uint8),
            "room": spaces.Discrete(3),
        },
        clip=50.0,
    )
    assert normaliser.names == ("arm.position", "type")
    generator = torch.Generator().manual_seed(0)
    observations = {
        "arm.position": torch.randn(6, 4, 2, dtype=torch.float64, generator=generator),
        "type": torch.randn(6, 4, generator=generator) + 3.0,
        "frame": torch.full((6, 4, 4), 200, dtype=torch.uint8),
        "room": torch.ones(6, 4, dtype=torch.int64),
    }
    mask = torch.ones(6, 4, dtype=torch.bool)
    before = {name: buffer.clone() for name, buffer in normaliser.named_buffers()}
    untouched: dict[str, Tensor] = normaliser(observations)
    assert all(torch.equal(buffer, before[name]) for name, buffer in normaliser.named_buffers())
    torch.testing.assert_close(untouched["type"], observations["type"])
    normaliser.update(observations, mask)
    normalised: dict[str, Tensor] = normaliser(observations)
    assert normalised["frame"] is observations["frame"]
    assert normalised["room"] is observations["room"]
    for name in normaliser.names:
        values = normalised[name].flatten(0, 1)
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones_like(values[0]), atol=1e-5, rtol=0)


def test_normalising_observations_without_a_float_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalise_observations=true.*\['observation'\]"):
        ObservationNormaliser({"observation": spaces.Discrete(4)}, clip=10.0)


# Rewards.


def _trajectory(rewards: Array, starts: Array, mask: Array, *, shard: int = 0, incarnation: int = 0) -> GymTrajectory:
    num_steps, num_envs = rewards.shape
    observations = {"observation": np.zeros((num_steps, num_envs, 1), np.float32)}
    terminated = np.zeros_like(mask)
    terminated[:-1] = starts[1:] & mask[:-1]
    return GymTrajectory(
        Header(1, 1, 0),
        shard=shard,
        incarnation=incarnation,
        policy_version=0,
        unroll=Unroll(
            steps=EnvSteps(
                observations=observations,
                actions=np.zeros((num_steps, num_envs), np.int64),
                behaviour_logprobs=np.zeros((num_steps, num_envs), np.float32),
                rewards=rewards,
                terminated=terminated,
                truncated=np.zeros_like(mask),
                mask=mask,
                episode_starts=starts,
            ),
            last_observations={"observation": observations["observation"][0]},
            final_index=np.zeros((0, 2), np.int64),
            final_observations={"observation": np.zeros((0, 1), np.float32)},
        ),
    )


def _stream(num_steps: int, num_envs: int, seed: int) -> tuple[Array, Array, Array]:
    """(rewards, episode_starts, mask), with dead steps (whose reward is NaN) before some starts."""
    generator = np.random.default_rng(seed)
    rewards = generator.normal(2.0, 3.0, (num_steps, num_envs)).astype(np.float32)
    starts = generator.random((num_steps, num_envs)) < 0.15
    starts[0] = True
    mask = np.ones_like(starts)
    mask[:-1] = ~(starts[1:] & (generator.random((num_steps - 1, num_envs)) < 0.5))
    rewards[~mask] = np.nan
    return rewards, starts, mask


def _literal_returns(rewards: Array, starts: Array, mask: Array, discount: float) -> list[float]:
    """The discounted sum over each episode so far, for every step that is experience."""
    returns = []
    for b in range(rewards.shape[1]):
        for t in range(len(rewards)):
            if not mask[t, b]:
                continue
            begin = max([s for s in range(t + 1) if starts[s, b]] + [s + 1 for s in range(t) if not mask[s, b]])
            returns.append(sum(discount ** (t - s) * float(rewards[s, b]) for s in range(begin, t + 1)))
    return returns


def test_rewards_are_divided_by_the_std_of_the_running_return_of_each_episode_across_fragments() -> None:
    rewards, starts, mask = _stream(60, 3, seed=1)
    normaliser = RewardNormaliser(discount=0.9, clip=1.5)
    for begin, end in ((0, 20), (20, 25), (25, 60)):  # three fragments of one shard
        normaliser.update([_trajectory(rewards[begin:end], starts[begin:end], mask[begin:end])])
    returns = np.array(_literal_returns(rewards, starts, mask, 0.9))
    np.testing.assert_allclose(normaliser.return_moments.variance, returns.var(), rtol=1e-9)
    raw = torch.tensor([[0.5, -4.0, 400.0]])
    np.testing.assert_allclose(normaliser.normalise(raw), np.clip(raw.numpy() / returns.std(), -1.5, 1.5), rtol=1e-6)


def test_a_batch_is_scaled_by_statistics_that_have_seen_it() -> None:
    rewards, starts, mask = _stream(30, 2, seed=2)
    trajectories = [_trajectory(rewards, starts, mask, shard=0), _trajectory(10 * rewards, starts, mask, shard=1)]
    normaliser = RewardNormaliser(discount=0.9, clip=10.0)
    scaled = normaliser.update_and_scale(stack_trajectories(trajectories), trajectories)
    returns = np.array(_literal_returns(rewards, starts, mask, 0.9) + _literal_returns(10 * rewards, starts, mask, 0.9))
    both = np.concatenate((rewards, 10 * rewards), 1)
    both_mask = np.concatenate((mask, mask), 1)
    np.testing.assert_allclose(scaled.numpy()[both_mask], (both / returns.std())[both_mask].clip(-10, 10), rtol=1e-5)


def test_a_new_incarnation_of_a_shard_starts_from_zero_and_other_shards_go_on() -> None:
    ones = np.ones((2, 1), np.float32)
    never, always = np.zeros((2, 1), np.bool_), np.ones((2, 1), np.bool_)
    normaliser = RewardNormaliser(discount=1.0, clip=10.0)
    normaliser.update([_trajectory(ones, never, always, shard=0), _trajectory(5 * ones, never, always, shard=1)])
    assert normaliser.accumulators()[0]["returns"] == [2.0]
    normaliser.update([_trajectory(ones, never, always, shard=0, incarnation=1)])
    normaliser.update([_trajectory(5 * ones, never, always, shard=1)])
    assert normaliser.accumulators() == {
        0: {"incarnation": 1, "returns": [2.0]},
        1: {"incarnation": 0, "returns": [20.0]},
    }


def test_accumulators_come_back_from_a_checkpoint_to_the_bit() -> None:
    rewards, starts, mask = _stream(40, 3, seed=3)
    whole, stopped = RewardNormaliser(0.97, 10.0), RewardNormaliser(0.97, 10.0)
    first = _trajectory(rewards[:17], starts[:17], mask[:17], shard=4)
    second = _trajectory(rewards[17:], starts[17:], mask[17:], shard=4)
    whole.update([first])
    stopped.update([first])
    resumed = RewardNormaliser(0.97, 10.0)
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_accumulators(json.loads(json.dumps(stopped.accumulators())))
    whole.update([second])
    resumed.update([second])
    assert resumed.accumulators() == whole.accumulators()
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, resumed.get_buffer(name))
