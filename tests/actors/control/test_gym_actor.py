"""What a ticket brings: units, weights, seeds, and what becomes of a shard whose envs misbehave."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.cluster.errors import EnvFailure, NonFinite, WeightsTimeout
from rollcall.cluster.messages.arrays import Array, named_arrays
from rollcall.cluster.messages.attempt import Produced
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.seeds import derive_seed

CARTPOLE = EnvConfig(id="CartPole-v1", vectorization="sync")


def counter(module: str, **kwargs: Any) -> EnvConfig:
    return EnvConfig(id=f"{module}:Counter", kwargs=kwargs, vectorization="sync")


def digests(*trajectories: GymTrajectory) -> list[str]:
    return [item.digest() for item in trajectories]


# Units.


def test_fragments_go_on_where_the_last_one_ended(make_actor: Any, make_ticket: Any) -> None:
    """Two fragments of 32 steps are one of 64, except for the noise, which is the ticket's: so the policy has none."""
    actor = make_actor("Pendulum-v1", gym.spaces.Box(-2, 2, (1,)), recurrent=True)
    actor._policy.rollout = _greedy(actor._policy.rollout)
    long = make_actor("Pendulum-v1", gym.spaces.Box(-2, 2, (1,)), recurrent=True, unroll_length=64)
    long._policy.rollout = _greedy(long._policy.rollout)
    first, second = (actor.produce(make_ticket(i))[1] for i in range(2))
    _, whole = long.produce(make_ticket(0))
    for name in ("actions", "rewards", "mask", "episode_starts", "terminated", "truncated"):
        joined = np.concatenate([getattr(first.steps, name), getattr(second.steps, name)])
        assert joined.tobytes() == getattr(whole.steps, name).tobytes(), name
    assert (
        first.unroll.last_observations["observation"].tobytes() == second.steps.observations["observation"][0].tobytes()
    )
    assert first.unroll.initial_recurrent_state is not None
    assert second.unroll.initial_recurrent_state is not None
    assert not first.unroll.initial_recurrent_state.any()
    assert second.unroll.initial_recurrent_state.any()


def _greedy(rollout: Any) -> Any:
    return lambda **settings: rollout(**settings, greedy=True)


def test_episode_returns_and_lengths_are_counted_across_fragments(
    make_actor: Any, make_ticket: Any, counter_module: str
) -> None:
    for autoreset in ("same_step", "next_step"):
        config = counter(counter_module, length=50).model_copy(update={"autoreset": autoreset})
        actor = make_actor(config, num_envs=2)
        produced = [actor.produce(make_ticket(i)) for i in range(4)]
        episodes = [item for summary, _ in produced for item in summary.episodes]
        assert len(episodes) == 4
        assert all((item.episode_return, item.length) == (50 * 51 / 2, 50) for item in episodes)
        assert produced[0][0].episodes == ()
        assert [len(summary.episodes) for summary, _ in produced] == [0, 2, 0, 2]


def test_episode_unit_runs_each_env_exactly_once(make_actor: Any, make_ticket: Any) -> None:
    found = []
    for vectorization in ("sync", "async", "native"):
        config = CARTPOLE.model_copy(update={"vectorization": vectorization})
        actor = make_actor(config, unroll_length=300)
        produced = [actor.produce(make_ticket(i, unit="episode")) for i in range(3)]
        trajectories = [item for _, item in produced]
        for summary, item in produced:
            assert_one_episode_per_env(summary, item)
        starts = [item.steps.observations["observation"][0].tobytes() for item in trajectories]
        assert len(set(starts)) == 3, "every unit begins new episodes"
        found.append(digests(*trajectories))
        actor.close()
    assert found[0] == found[1], "what an env does after its episode does not show"


def assert_one_episode_per_env(summary: Produced, trajectory: GymTrajectory) -> None:
    num_steps, num_envs = trajectory.steps.mask.shape
    lengths = trajectory.steps.mask.sum(axis=0)
    ends = trajectory.steps.terminated | trajectory.steps.truncated
    assert num_steps == lengths.max() > lengths.min()
    for b in range(num_envs):
        assert trajectory.steps.mask[: lengths[b], b].all()
        assert np.flatnonzero(ends[:, b]).tolist() == [lengths[b] - 1]
        assert np.flatnonzero(trajectory.steps.episode_starts[:, b]).tolist() == [0]
        assert not trajectory.steps.rewards[lengths[b] :, b].any()
    assert sorted(trajectory.unroll.final_index[:, 1].tolist()) == list(range(num_envs))
    assert sorted(item.length for item in summary.episodes) == sorted(lengths.tolist())
    assert trajectory.num_steps == lengths.sum()


def test_an_episode_that_outlasts_the_unit_is_truncated_with_its_final_observation(
    make_actor: Any, make_ticket: Any, counter_module: str
) -> None:
    actor = make_actor(counter(counter_module, length=100), num_envs=3)
    summary, item = actor.produce(make_ticket(0, unit="episode"))
    assert item.steps.mask.all()
    assert item.steps.truncated.tolist() == [[False] * 3] * 31 + [[True] * 3]
    assert not item.steps.terminated.any()
    assert item.unroll.final_index.tolist() == [[31, 0], [31, 1], [31, 2]]
    assert (item.unroll.final_observations["observation"][:, 0] == 32).all()
    assert [stats.length for stats in summary.episodes] == [32] * 3


def test_arrays_of_a_trajectory_are_its_own(make_actor: Any, make_ticket: Any) -> None:
    for config in (CARTPOLE, EnvConfig(id="CartPole-v1")):
        actor = make_actor(config)
        _, first = actor.produce(make_ticket(0))
        before = {name: array.copy() for name, array in named_arrays(first)}
        _, second = actor.produce(make_ticket(1))
        for name, array in named_arrays(first):
            assert array.tobytes() == before[name].tobytes(), name
            assert not any(np.shares_memory(array, other) for _, other in named_arrays(second)), name


def test_rewards_are_clipped_for_learning_and_returns_are_not(
    make_actor: Any, make_ticket: Any, counter_module: str
) -> None:
    actor = make_actor(counter(counter_module).model_copy(update={"reward_clip": 2.0}), num_envs=1)
    summary, item = actor.produce(make_ticket(0))
    assert item.steps.rewards[:5, 0].tolist() == [1.0, 2.0, 2.0, 2.0, 2.0]
    assert summary.episodes[0].episode_return == 15.0


@pytest.mark.parametrize(
    ("space", "code", "stored", "taken"),
    [
        (gym.spaces.Discrete(3, start=5), "Discrete(3, start=5)", (np.int64, ()), ()),
        (gym.spaces.MultiDiscrete([2, 3]), "MultiDiscrete([2, 3])", (np.int64, (2,)), (2,)),
        (gym.spaces.Box(-1, 1, (2, 2), np.float32), "Box(-1, 1, (2, 2), np.float32)", (np.float32, (4,)), (2, 2)),
    ],
    ids=["discrete", "multi-discrete", "box"],
)
def test_actions_of_every_kind_of_space_are_stored_as_sampled_and_taken_as_the_env_wants_them(
    make_actor: Any, make_ticket: Any, user_module: Any, space: Any, code: str, stored: Any, taken: Any
) -> None:
    module = user_module(
        f"""
        class Echo(gym.Env):
            observation_space = spaces.Box(-9, 9, (2,))
            action_space = spaces.{code}

            def reset(self, *, seed=None, options=None):
                return np.zeros(2, np.float32), {{}}

            def step(self, action):
                assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
                assert np.shape(action) == {taken!r}
                return np.ones(2, np.float32), float(np.sum(action)), False, False, {{}}
        """
    )
    actor = make_actor(EnvConfig(id=f"{module}:Echo"), space)
    summary, item = actor.produce(make_ticket(0))
    assert (item.steps.actions.dtype, item.steps.actions.shape[2:]) == stored
    assert summary.env_restarts == 0
    start = getattr(space, "start", 0) if isinstance(space, gym.spaces.Discrete) else 0
    reached = item.steps.actions if item.steps.actions.dtype == np.int64 else np.clip(item.steps.actions, -1, 1)
    sums = reached.reshape(*item.steps.rewards.shape, -1).sum(axis=2) + start
    np.testing.assert_allclose(sums, item.steps.rewards, rtol=1e-6)


def test_the_summary_says_what_the_driver_needs(make_actor: Any, make_ticket: Any) -> None:
    summary, item = make_actor(CARTPOLE).produce(make_ticket(3))
    assert summary.header.key == item.header.key == (3, 1)
    assert (summary.num_steps, summary.min_policy_version, summary.header.actor_id) == (128, 0, "gym-0")
    assert summary.size_bytes == sum(array.nbytes for _, array in named_arrays(item)) > 0
    timing = summary.timing
    assert 0 < timing.env_s < timing.act_s
    assert 0 < timing.inference_s < timing.act_s - timing.env_s


# Seeds.


def test_seeds_are_independent_of_the_actor_that_uses_them(make_actor: Any, make_ticket: Any) -> None:
    alone = make_actor(CARTPOLE, num_shards=2)
    both = [alone.produce(make_ticket(i, shard=i % 2))[1] for i in range(4)]
    one, other = make_actor(CARTPOLE, num_shards=2), make_actor(CARTPOLE, num_shards=2, actor_id="gym-1")
    apart = [(one, other)[i % 2].produce(make_ticket(i, shard=i % 2))[1] for i in (1, 0, 3, 2)]
    assert digests(*both) == digests(*(apart[i] for i in (1, 0, 3, 2)))
    assert len(set(digests(*both))) == 4
    assert both[0].steps.mask.shape == (32, 2), "a shard is num_envs / num_shards envs"


def test_a_shard_is_seeded_by_run_shard_and_incarnation_alone(make_actor: Any, make_ticket: Any) -> None:
    def first_observation(incarnation: int = 0, **settings: Any) -> bytes:
        item = make_actor(CARTPOLE, **settings).produce(make_ticket(0, incarnation=incarnation))[1]
        return bytes(item.steps.observations["observation"][0].tobytes())

    assert first_observation() == first_observation()
    assert first_observation() != first_observation(incarnation=1)
    assert first_observation() != first_observation(run_seed=8)
    env = make_env(CARTPOLE)
    shard_seed = derive_seed(7, "env", 0, 0)
    shown = [env.reset(seed=derive_seed(shard_seed, "reset", 1, i) >> 32)[0] for i in range(4)]
    assert first_observation() == np.stack(shown).tobytes()


def test_a_newer_incarnation_replaces_the_shard_and_an_older_one_is_refused(make_actor: Any, make_ticket: Any) -> None:
    actor = make_actor(CARTPOLE)
    first = actor.produce(make_ticket(0))[1]
    second = actor.produce(make_ticket(1, incarnation=2))[1]
    assert second.steps.episode_starts[0].all()
    assert second.steps.observations["observation"][0].tobytes() != first.steps.observations["observation"][0].tobytes()
    with pytest.raises(ValueError, match="incarnation 1 of shard 0, which is at 2"):
        actor.produce(make_ticket(2, incarnation=1))


# Weights.


def test_weights_are_asked_for_only_when_those_at_hand_are_too_old(
    make_actor: Any, make_ticket: Any, source: Any
) -> None:
    actor = make_actor(CARTPOLE)
    assert [actor.produce(make_ticket(i))[1].policy_version for i in range(2)] == [0, 0]
    assert source.asked == [(1, -1)]
    source.publish(1)
    source.publish(2)
    assert actor.produce(make_ticket(2))[1].policy_version == 0, "old enough weights are not replaced"
    assert actor.produce(make_ticket(3, version=1))[1].policy_version == 2
    assert source.asked == [(1, -1), (1, 0)]


def test_versions_begin_again_in_a_new_epoch(make_actor: Any, make_ticket: Any, source: Any) -> None:
    actor = make_actor(CARTPOLE)
    source.publish(5)
    assert actor.produce(make_ticket(0, version=5))[1].policy_version == 5
    source.publish(3, epoch=2)
    item = actor.produce(make_ticket(1, version=3, epoch=2))[1]
    assert (item.header.epoch, item.policy_version) == (2, 3)
    assert source.asked[-1] == (2, -1)


def test_weights_that_do_not_come_are_waited_for_until_the_deadline(
    make_actor: Any, make_ticket: Any, source: Any
) -> None:
    actor = make_actor(CARTPOLE)
    began = time.monotonic()
    with pytest.raises(WeightsTimeout, match=r"version 4 or newer \(epoch 1\) came within 0 s .* newest seen is 0"):
        actor.produce(make_ticket(0, version=4, deadline_s=0.2))
    assert 0.2 <= time.monotonic() - began < 2.0
    threading.Timer(0.2, source.publish, [4]).start()
    summary, item = actor.produce(make_ticket(1, version=4))
    assert item.policy_version == 4
    assert 0.1 < summary.timing.wait_weights_s < 5.0


# Envs that misbehave.


def misbehaving() -> list[int]:
    """Which of 4 counters do what they are told to do wrong."""
    seed = derive_seed(7, "env", 0, 0)
    return [i for i in range(4) if (derive_seed(seed, "reset", 1, i) >> 32) % 5 < 2]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_env_that_raises_is_restarted_and_its_boundary_masked(
    make_actor: Any, make_ticket: Any, counter_module: str, vectorization: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The counter raises at its 3rd step ever: action 2 of the first unit is lost, the episode was 2 steps long."""
    config = counter(counter_module, raise_at=3, length=1000).model_copy(update={"vectorization": vectorization})
    actor = make_actor(config, max_env_restarts=100)
    with caplog.at_level(logging.WARNING, logger="rollcall.actors"):
        summary, item = actor.produce(make_ticket(0))
    raising = misbehaving()
    assert 0 < len(raising) < 4, "some of the envs raise, not all"
    assert 'raise RuntimeError("the arm fell off")' in caplog.text, "the env's own traceback is in the log"
    assert "RuntimeError: the arm fell off; restart 1 of 100 allowed" in caplog.text
    restarted = (
        raising if vectorization == "sync" else list(range(4))
    )  # a group with processes is built anew as a whole
    for b in range(4):
        lost = np.flatnonzero(~item.steps.mask[:, b])
        assert bool(len(lost)) == (b in restarted)
        if b not in restarted:
            continue
        assert lost[0] == 2
        for t in lost:
            assert item.steps.rewards[t, b] == 0.0
            assert item.steps.episode_starts[t + 1, b]
            assert item.steps.observations["observation"][t + 1, b, 0] == 0, "the next episode begins"
        assert item.steps.truncated[1, b]
        row = item.unroll.final_index.tolist().index([1, b])
        assert item.unroll.final_observations["observation"][row].tolist() == [2.0, 1.0], "what it showed last"
    assert not item.steps.terminated.any()
    assert int(item.steps.truncated.sum()) == len(item.unroll.final_index)
    assert item.unroll.final_index.tolist() == sorted(item.unroll.final_index.tolist())
    assert summary.env_restarts > 0
    assert summary.episodes == (), "an episode that broke off is no episode"
    actor.close()


def test_an_env_that_raises_at_the_border_of_two_units_leaves_the_first_as_it_is(
    make_actor: Any, make_ticket: Any, counter_module: str
) -> None:
    actor = make_actor(counter(counter_module, raise_at=33, length=1000, only_some=False), num_envs=1)
    _, first = actor.produce(make_ticket(0))
    _, second = actor.produce(make_ticket(1))
    assert first.steps.mask.all()
    assert not first.steps.truncated.any()
    assert second.steps.mask[:, 0].tolist() == [False] + [True] * 31
    assert (
        second.steps.observations["observation"][0, 0].tolist()
        == first.unroll.last_observations["observation"][0].tolist()
    )
    assert second.steps.episode_starts[:, 0].tolist() == [False, True] + [False] * 30
    assert len(second.unroll.final_index) == 0


def test_after_the_budget_the_run_is_given_the_envs_own_traceback(
    make_actor: Any, make_ticket: Any, counter_module: str
) -> None:
    actor = make_actor(counter(counter_module, raise_at=3, only_some=False), num_envs=2, max_env_restarts=5)
    with pytest.raises(EnvFailure, match=r"shard 0, ticket 0: .*env 1 raised RuntimeError: the arm fell off") as caught:
        actor.produce(make_ticket(0))
    assert "Traceback" in str(caught.value)
    assert "in step" in str(caught.value)
    # The next incarnation has a budget of its own.
    with pytest.raises(EnvFailure, match="budget of 5"):
        actor.produce(make_ticket(1, incarnation=1))


def test_an_env_whose_episode_breaks_off_is_done_with_its_unit(
    make_actor: Any, make_ticket: Any, counter_module: str
) -> None:
    actor = make_actor(counter(counter_module, raise_at=3, length=5))
    summary, item = actor.produce(make_ticket(0, unit="episode"))
    raising = misbehaving()
    lengths = item.steps.mask.sum(axis=0)
    assert lengths.tolist() == [2 if b in raising else 5 for b in range(4)]
    assert all(item.steps.truncated[lengths[b] - 1, b] for b in range(4))
    assert int(item.steps.truncated.sum()) == 4
    assert [stats.length for stats in summary.episodes] == [5] * (4 - len(raising))


@pytest.mark.parametrize("field", ["reward", "observation"])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_nan_stops_the_trajectory_and_names_env_step_and_field(
    make_actor: Any, make_ticket: Any, counter_module: str, field: str, vectorization: str
) -> None:
    config = counter(counter_module, nan_at=7, nan_in=field, length=7)
    actor = make_actor(config.model_copy(update={"vectorization": vectorization}))
    where = {"reward": "nan in reward", "observation": r"inf in observation\[1\]"}[field]
    expected = rf"shard 0, ticket 5: .*Counter: env {misbehaving()[0]} gave {where} at its shard's step 7"
    with pytest.raises(NonFinite, match=expected):
        actor.produce(make_ticket(5))
    assert actor._shards == {}, "the shard is gone; another incarnation begins anew"
    actor.close()


def test_an_env_that_hangs_is_named_to_whoever_asks(make_actor: Any, make_ticket: Any, counter_module: str) -> None:
    actor = make_actor(counter(counter_module, hang_at=3))
    assert actor.doing() == "nothing"
    thread = threading.Thread(target=actor.produce, args=[make_ticket(9)])
    thread.start()
    time.sleep(0.6)
    said = actor.doing()
    thread.join()
    assert said.startswith("ticket 9 for "), said
    assert f"shard 0: {counter_module}:Counter, env {misbehaving()[0]} of 4, step 3" in said


def test_an_env_that_hangs_in_a_process_of_its_own_is_ended_at_the_deadline(
    make_actor: Any, make_ticket: Any, counter_module: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = counter(counter_module, hang_at=3).model_copy(update={"vectorization": "async"})
    actor = make_actor(config, num_envs=4, ticket_deadline_s=0.5, max_env_restarts=100, unroll_length=4)
    with caplog.at_level(logging.WARNING, logger="rollcall.actors"):
        summary, item = actor.produce(make_ticket(0))
    hanging = ", ".join(map(str, misbehaving()))
    assert f"env {hanging} raised no answer to step within 0 s" in caplog.text
    assert not item.steps.mask[2].any()
    assert summary.env_restarts > 0
    actor.close()


def test_what_was_produced_is_not_touched_by_what_the_policy_reuses(make_actor: Any, make_ticket: Any) -> None:
    actor = make_actor(CARTPOLE)
    buffer: list[Array] = []
    choose = actor._policy.choose

    def reusing(*args: Any) -> tuple[Array, Array]:
        stored, taken = choose(*args)
        if not buffer:
            buffer.append(np.empty_like(stored))
        buffer[0][:] = stored
        return buffer[0], taken

    actor._policy.choose = reusing
    _, item = actor.produce(make_ticket(0))
    assert len({row.tobytes() for row in item.steps.actions}) > 1


def test_a_saved_shard_of_envs_that_are_built_otherwise_now_begins_anew_and_says_so(
    make_actor: Any, make_ticket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    actor = make_actor(CARTPOLE)
    fresh = actor.produce(make_ticket(0))[1]
    tensors, meta = actor.shard_states()
    as_before = json.loads(json.dumps(meta).replace("OwnRandomness", "Before"))
    resumed = make_actor(CARTPOLE)
    resumed.restore_shards(tensors, as_before)
    again = resumed.produce(make_ticket(0))[1]
    assert again.steps.observations["observation"].tobytes() == fresh.steps.observations["observation"].tobytes()
    assert "shard 0 begins anew: its saved state is not of envs as they are now" in caplog.text
