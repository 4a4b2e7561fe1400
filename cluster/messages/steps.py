"""The arrays that experience is made of, each class generic in the kind of array: numpy's where an actor produced them
and on their way, torch's in a learner's batch and minibatches. A field more here is a field more everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from rollcall.cluster.messages.arrays import join_arrays, map_arrays

A = TypeVar("A")  # the kind of array
B = TypeVar("B")


@dataclass(frozen=True)
class EnvSteps(Generic[A]):
    """Steps of envs: [T, B, ...] in a trajectory and in a batch; as rows of a minibatch [M, ...], or [M, T, ...] where
    the policy has a memory and a row is one env's whole sequence.

    Time alignment: at step t the env shows observations[t]; the actor takes actions[t]; rewards[t], terminated[t] and
    truncated[t] follow that action. A step with mask False carries no experience (the reset step of a NEXT_STEP
    vector env, padding after an episode in `unit="episode"`, the step at which an env was restarted).
    """

    observations: Mapping[str, A]  # raw (not normalised), by name; a plain space has the one name "observation"
    actions: A  # as the policy sampled them (unsquashed, unclipped), [T, B] int64 or [T, B, num] float32 / int64
    behaviour_logprobs: A  # float32: of `actions` under the distribution really sampled from
    rewards: A  # float32, the env's own, or a reward service's; in a batch scaled where the policy says so
    terminated: A  # bool
    truncated: A  # bool
    mask: A  # bool: True where the step is experience; as rows of a minibatch float32
    episode_starts: A  # bool: observations[t] is the first of an episode (a recurrent state restarts here)
    action_mask: A | None = None  # bool [T, B, num_actions]: True where the env allows the action
    td_errors: A | None = None  # float32 >= 0: how far off the actor's values were, where it was asked to say so

    def map(self, function: Callable[[A], B]) -> EnvSteps[B]:
        """With `function` of each array in place of it."""
        return cast(EnvSteps[B], map_arrays(self, function))

    @classmethod
    def join(cls, parts: Sequence[EnvSteps[A]], function: Callable[[list[A]], B]) -> EnvSteps[B]:
        """One, of whose arrays each is `function` of the parts'."""
        return cast(EnvSteps[B], join_arrays(parts, function))


@dataclass(frozen=True)
class Unroll(Generic[A]):
    """T steps of B envs, and what a learner must know at their borders."""

    steps: EnvSteps[A]  # [T, B, ...]
    last_observations: Mapping[str, A]  # [B, ...]: what the envs show after step T-1
    final_index: A  # int64 [N, 2]: the (t, b) at which an episode ended
    final_observations: Mapping[str, A]  # [N, ...]: the true last observation of those episodes
    initial_recurrent_state: A | None = None  # float32 [num_states, B, hidden]: before observations[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(T, B)"""
        num_steps, num_envs = cast(Any, self.steps.mask).shape
        return int(num_steps), int(num_envs)

    def with_td_errors(self, td_errors: A | None) -> Unroll[A]:
        return replace(self, steps=replace(self.steps, td_errors=td_errors))

    def with_rewards(self, rewards: A) -> Unroll[A]:
        return replace(self, steps=replace(self.steps, rewards=rewards))


@dataclass(frozen=True)
class SampledTokens(Generic[A]):
    """What is known of each token: in a trajectory of all N, where nothing is said of those that the policy did not
    sample; in a batch of the S sampled ones, and in a part of a minibatch of K of those."""

    behaviour_logprobs: A  # float32: under the distribution really sampled from; 0 of a token that was not
    # float32: what the environment gave for turns before a sample's last, at their last tokens; part of its reward.
    # None where it gave nothing before the last.
    turn_rewards: A | None = None

    def map(self, function: Callable[[A], B]) -> SampledTokens[B]:
        """With `function` of each array in place of it."""
        return cast(SampledTokens[B], map_arrays(self, function))

    @classmethod
    def join(cls, parts: Sequence[SampledTokens[A]], function: Callable[[list[A]], B]) -> SampledTokens[B]:
        """One, of whose arrays each is `function` of the parts'."""
        return cast(SampledTokens[B], join_arrays(parts, function))
