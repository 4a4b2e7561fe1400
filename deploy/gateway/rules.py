"""What a trajectory from outside must be before anybody learns from it: the shapes, dtypes and bounds of the run's
spaces, the ticket's own work, a version that the actor was given. What is wrong is said in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from gymnasium import spaces

from rollcall.actors.envs.observations import ObservationReader, is_finite
from rollcall.actors.outside.protocol import OutsideExperience
from rollcall.cluster.errors import EnvFailure, NonFinite
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Produced, ShardPayload, Ticket, Unit
from rollcall.cluster.messages.experience import SCHEMA_VERSION, GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.deploy.gateway.desk import Lease
from rollcall.deploy.kinds.outside import OutsideShards
from rollcall.learners.models.action_distribution import distribution_of

MAX_LENGTH = 2**31  # env steps of an episode
LOGPROB_SLACK = 1e-3  # a choice's log-probability is 0 at most, but for rounding


class Invalid(Exception):
    """What is wrong with a trajectory, in one line."""


class TrajectoryRules:
    """Of one run."""

    def __init__(self, outside: OutsideShards) -> None:
        space = outside.action_space
        distribution = distribution_of(outside.policy_config, space)
        self._reader = ObservationReader(outside.observation_space, space)
        self._action_space = space
        self._action_shape = tuple(distribution.action_shape)
        self._action_dtype = np.dtype(str(distribution.action_dtype).removeprefix("torch."))
        self._mask_size = distribution.mask_size if outside.masks_actions else 0
        self._recurrent = outside.policy.initial_recurrent_state(outside.num_envs)
        self._unroll_length, self._num_envs = outside.unroll_length, outside.num_envs
        self._reward_clip = outside.reward_clip

    def produced(self, posted: OutsideExperience, lease: Lease) -> tuple[Produced, GymTrajectory]:
        """What the driver is told, and the trajectory under the lease's own header.

        Raises:
          Invalid: saying what is wrong.
        """
        ticket, trajectory = lease.ticket, posted.trajectory
        assert isinstance(ticket.payload, ShardPayload)
        self._check_identity(trajectory, ticket, lease.session.versions)
        self._check_unroll(trajectory.unroll, ticket.payload.unit)
        self._check_account(posted, len(trajectory.unroll.final_index))
        trajectory = replace(trajectory, header=ticket.header)
        produced = Produced(
            header=ticket.header,
            min_policy_version=trajectory.policy_version,
            num_steps=trajectory.num_steps,
            size_bytes=trajectory.size_bytes,
            episodes=posted.episodes,
            env_restarts=posted.env_restarts,
            timing=posted.timing,
        )
        return produced, trajectory

    def _check_identity(self, item: GymTrajectory, ticket: Ticket, given: set[tuple[int, int]]) -> None:
        header, payload = ticket.header, ticket.payload
        assert isinstance(payload, ShardPayload)
        _require((item.header.key, item.header.epoch) == (header.key, header.epoch), "its header is of another attempt")
        _require((item.shard, item.incarnation) == (payload.shard, payload.incarnation), "it is of another shard")
        version = (header.epoch, item.policy_version)
        _require(version in given, f"this actor was not given policy version {item.policy_version}")
        oldest = ticket.min_policy_version
        _require(item.policy_version >= oldest, f"policy version {item.policy_version} is older than {oldest}")
        _require(item.schema_version == SCHEMA_VERSION, f"schema_version must be {SCHEMA_VERSION}")
        _require(not item.reward_model_version, "reward_model_version is the reward service's to give")

    def _check_unroll(self, unroll: Unroll[Array], unit: Unit) -> None:
        steps = unroll.steps
        _require(steps.mask.ndim == 2, "mask must be [T, B]")
        num_steps, num_envs = steps.mask.shape
        _require(num_envs == self._num_envs, f"B is {num_envs}, and a shard has {self._num_envs} envs")
        wanted = f"{'' if unit == 'fragment' else '1 to '}{self._unroll_length} steps"
        least = self._unroll_length if unit == "fragment" else 1
        _require(least <= num_steps <= self._unroll_length, f"T is {num_steps}, and the ticket asks for {wanted}")
        for name in ("terminated", "truncated", "mask", "episode_starts"):
            _is_array(name, getattr(steps, name), np.dtype(bool), (num_steps, num_envs))
        for name in ("behaviour_logprobs", "rewards"):
            _is_array(name, getattr(steps, name), np.dtype(np.float32), (num_steps, num_envs))
        _require(bool(steps.mask.any()), "mask leaves no experience")
        if self._reward_clip is not None:
            _require(bool(np.abs(steps.rewards).max() <= self._reward_clip), f"rewards exceed {self._reward_clip}")
        self._check_observations("observations", steps.observations, (num_steps, num_envs))
        self._check_observations("last_observations", unroll.last_observations, (num_envs,))
        self._check_actions(steps)
        self._check_ends(unroll)
        _require(steps.td_errors is None, "td_errors are those of the run's own actors")
        state = unroll.initial_recurrent_state
        _require((state is None) == (self._recurrent is None), "initial_recurrent_state goes with a recurrent policy")
        if state is not None and self._recurrent is not None:
            _is_array("initial_recurrent_state", state, self._recurrent.dtype, self._recurrent.shape)

    def _check_observations(self, name: str, found: Mapping[str, Array], lead: tuple[int, ...]) -> None:
        wanted = self._reader.zeros(*lead)
        _require(found.keys() == wanted.keys(), f"{name} must be {', '.join(sorted(wanted))}")
        for key, like in wanted.items():
            _is_array(f"{name}.{key}", found[key], like.dtype, like.shape)
        flat = {key: array.reshape(-1, *array.shape[len(lead) :]) for key, array in found.items()}
        try:
            self._reader.check("outside", flat, step=0)
        except (EnvFailure, NonFinite) as error:
            raise Invalid(f"{name}: {error}") from None

    def _check_actions(self, steps: EnvSteps[Array]) -> None:
        shape, space = steps.mask.shape, self._action_space
        _is_array("actions", steps.actions, self._action_dtype, (*shape, *self._action_shape))
        choices = space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", None)
        if choices is not None:
            inside = (steps.actions >= 0) & (steps.actions < choices)
            _require(bool(inside.all()), "actions are counted from 0, and some are beyond the space")
            _require(bool((steps.behaviour_logprobs <= LOGPROB_SLACK).all()), "a choice's log-probability is above 0")
        mask = steps.action_mask
        # Batches are joined: all trajectories have one, or none.
        _require((mask is not None) == (self._mask_size > 0), "action_mask goes with an env that masks actions")
        if mask is None:
            return
        _is_array("action_mask", mask, np.dtype(bool), (*shape, self._mask_size))
        if isinstance(space, spaces.Discrete):
            allowed = np.take_along_axis(mask, steps.actions[..., None], axis=-1)[..., 0]
            _require(bool((allowed | ~steps.mask).all()), "an action was taken that action_mask forbids")

    def _check_ends(self, unroll: Unroll[Array]) -> None:
        steps, index = unroll.steps, unroll.final_index
        ends = steps.terminated | steps.truncated
        _require(not bool((ends & ~steps.mask).any()), "an episode ends at a step that mask leaves out")
        _is_array("final_index", index, np.dtype(np.int64), (int(ends.sum()), 2))
        _require(np.array_equal(index, np.argwhere(ends)), "final_index must be where terminated or truncated is true")
        self._check_observations("final_observations", unroll.final_observations, (len(index),))

    def _check_account(self, posted: OutsideExperience, num_ends: int) -> None:
        """What is said beside the arrays."""
        timing = posted.timing
        seconds = (timing.act_s, timing.env_s, timing.inference_s, timing.wait_weights_s, timing.apply_weights_s)
        _require(all(math.isfinite(value) and 0 <= value < 1e9 for value in seconds), "timing must be seconds")
        _require(0 <= posted.env_restarts <= MAX_LENGTH, "env_restarts must be a number of restarts")
        _require(len(posted.episodes) <= num_ends, f"{len(posted.episodes)} episodes, of which {num_ends} ended")
        for episode in posted.episodes:
            _require(math.isfinite(episode.episode_return), "an episode's return is not finite")
            _require(1 <= episode.length <= MAX_LENGTH, "an episode's length is no number of steps")


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise Invalid(text)


def _is_array(name: str, array: Array, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    found = f"{array.dtype}{list(array.shape)}"
    _require(array.dtype == dtype and array.shape == shape, f"{name} is {found}, and must be {dtype}{list(shape)}")
    _require(is_finite(array), f"{name} is not finite")
