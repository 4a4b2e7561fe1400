"""The producer of control experience: takes a ticket, acts with weights that are new enough, hands back a trajectory.
Plain Python: a runtime decides where it lives."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rollcall.actors.control import state
from rollcall.actors.control.actors_config import ActorsConfig
from rollcall.actors.control.unroll import Shard, UnitOfExperience, begin_shard, unroll
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_vector_env
from rollcall.actors.envs.plain_state import UnsupportedStateError
from rollcall.actors.envs.vector import EnvGroup
from rollcall.actors.policy import Gradients, JudgesExperience, PolicyFactory, WeightsSource
from rollcall.cluster.errors import EnvFailure, NonFinite, WeightsTimeout
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Produced, ShardPayload, Ticket, Timing, Unit
from rollcall.cluster.messages.experience import GymExperience, GymTrajectory
from rollcall.cluster.messages.steps import Unroll
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed

_log = logging.getLogger(__name__)


class GymActor:
    """Steps the env shards whose tickets it is given. Not thread-safe, except for `doing`."""

    def __init__(
        self,
        *,
        actor_id: str,
        run_seed: int,
        env_config: EnvConfig,
        config: ActorsConfig,
        policy_factory: PolicyFactory,
        weights_source: WeightsSource[Weights],
        gradients: Gradients | None = None,
        can_go_back: bool = False,
    ) -> None:
        """`gradients`: what makes of each unit a gradient, to be handed back in its place. `can_go_back`: keep the
        state of each shard as it was before its newest ticket."""
        self.actor_id = actor_id
        self._run_seed = run_seed
        self._env_config = env_config
        self._config = config
        self._policy = policy_factory()
        self._gradients = gradients
        self._source = weights_source
        self._epoch: int | None = None  # of the weights
        self._shards: dict[int, Shard] = {}
        self._restored: dict[int, state.State] = {}  # shards of a checkpoint whose ticket has not come yet
        self._can_go_back = can_go_back
        self._movable: bool | None = None  # whether a shard goes on exactly in another process
        self._before: dict[int, tuple[int, state.State | None]] = {}  # shard -> its newest ticket, state before it
        self._doing: tuple[str, Shard | None, float] | None = None

    def produce(self, ticket: Ticket) -> tuple[Produced, GymExperience]:
        """One unit of the ticket's shard, or the gradient that was made of it.

        Raises:
          WeightsTimeout: no weights that are new enough came within the ticket's deadline.
          StaleEpoch: the ticket's epoch has ended.
          NonFinite: an env gave NaN or infinity, or the gradient is.
          EnvFailure: an env raised, and the budget of restarts is spent.
          ValueError: for a ticket of an incarnation that is over.
        After an exception out of the envs the shard is gone, and begins anew with its next incarnation.
        """
        began = time.perf_counter()
        payload = ticket.payload
        assert isinstance(payload, ShardPayload)
        try:
            wait_weights_s = self._take_weights(ticket)
            shard = self._shard(payload)
            self._doing = (f"ticket {ticket.header.ticket_id}", shard, time.monotonic())
            restarts = shard.group.restarts.total
            if self._can_go_back:
                self._before[shard.index] = (ticket.header.ticket_id, state.capture(shard))
            result = self._run(shard, ticket.seed, payload.unit)
            trajectory = self._trajectory(ticket, payload, result.unroll)
            experience: GymExperience = trajectory if self._gradients is None else self._gradients.of(trajectory)
        except (NonFinite, EnvFailure) as error:
            where = f"shard {payload.shard}, ticket {ticket.header.ticket_id}: "
            raise type(error)(where + str(error)) from error
        finally:
            self._doing = None
        act_s = time.perf_counter() - began
        produced = Produced(
            header=experience.header,
            min_policy_version=experience.policy_version,
            num_steps=experience.num_steps,
            size_bytes=experience.size_bytes,
            episodes=result.episodes,
            env_restarts=shard.group.restarts.total - restarts,
            timing=Timing(
                act_s=act_s, env_s=result.env_s, inference_s=result.inference_s, wait_weights_s=wait_weights_s
            ),
        )
        return produced, experience

    def doing(self) -> str:
        """In words, what the call under way is busy with, for whoever wonders why it takes so long."""
        doing = self._doing
        if doing is None:
            return "nothing"
        what, shard, since = doing
        place = "" if shard is None else f", shard {shard.index}: {shard.group.doing()}"
        return f"{what} for {time.monotonic() - since:.1f} s{place}"

    def shard_states(self, undone: Collection[int] = ()) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """All shards as (arrays, JSON), from which they go on exactly; None where an env's state cannot be had. A shard
        whose newest ticket is one of `undone` is given as it was before."""
        tensors: dict[str, Array] = {}
        meta: dict[str, Any] = {}
        for index, shard in self._shards.items():
            newest, before = self._before.get(index, (-1, None))
            captured = before if newest in undone else state.capture(shard)
            if captured is None:
                return None
            tensors |= {f"{index}/{name}": array for name, array in captured.arrays.items()}
            meta[str(index)] = {"incarnation": shard.incarnation, "tree": captured.tree}
        return tensors, meta

    def restore_shards(self, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Takes what `shard_states` gave, of any actors. A shard is built when its first ticket comes."""
        for index, item in meta.items():
            prefix = f"{index}/"
            arrays = {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
            self._restored[int(index)] = state.State(item["incarnation"], item["tree"], arrays)

    def shard_state(self, index: int) -> tuple[bool, state.State | None]:
        """For another actor to go on with. (False, None): it cannot be moved; (True, None): there is nothing yet."""
        shard = self._shards.get(index)
        if shard is None:
            return True, self._restored.get(index)
        if self._movable is None:  # asked once in a run, if ever
            num_envs = shard.group.num_envs
            self._movable = state.is_exact(partial(make_vector_env, self._env_config, num_envs))
        captured = state.capture(shard) if self._movable else None
        return captured is not None, captured

    def take_over(self, index: int, state: state.State | None) -> None:
        """Goes on with another actor's shard, which gives it up; None: with nothing, and so it is given up."""
        self._drop(index)
        self._restored.pop(index, None)
        if state is not None:
            self._restored[index] = state

    def close(self) -> None:
        for shard in self._shards.values():
            shard.group.close()
        self._shards.clear()

    def _take_weights(self, ticket: Ticket) -> float:
        """Loads newer weights if those at hand are too old for the ticket. Returns the seconds it took."""
        same_epoch = self._epoch == ticket.header.epoch
        if same_epoch and self._policy.version >= ticket.min_policy_version:
            return 0.0
        began, number = time.monotonic(), ticket.header.ticket_id
        self._doing = (f"ticket {number}: waiting for weights {ticket.min_policy_version}", None, began)
        newer_than = self._policy.version if same_epoch else -1
        while (remaining := began + ticket.deadline_s - time.monotonic()) > 0:
            weights = self._source.latest(
                epoch=ticket.header.epoch, newer_than=newer_than, timeout_s=remaining, reader=self.actor_id
            )
            if weights is None:
                time.sleep(0.001)  # a source that does not wait itself
                continue
            newer_than = weights.version
            if weights.version >= ticket.min_policy_version:
                self._policy.load(weights)
                if self._gradients is not None:
                    self._gradients.load(weights)
                self._epoch = ticket.header.epoch
                return time.monotonic() - began
        raise WeightsTimeout(
            f"{self.actor_id}: no weights of version {ticket.min_policy_version} or newer (epoch "
            f"{ticket.header.epoch}) came within {ticket.deadline_s:.0f} s for ticket {number}; the newest "
            f"seen is {newer_than}"
        )

    def _shard(self, payload: ShardPayload) -> Shard:
        shard = self._shards.get(payload.shard)
        if shard is not None and payload.incarnation < shard.incarnation:
            raise ValueError(
                f"ticket names incarnation {payload.incarnation} of shard {payload.shard}, which is at "
                f"{shard.incarnation}: it is out of date"
            )
        if shard is None or payload.incarnation > shard.incarnation:
            self._drop(payload.shard)
            shard = self._shards[payload.shard] = self._begin(payload)
        return shard

    def _begin(self, payload: ShardPayload) -> Shard:
        shard = begin_shard(payload.shard, payload.incarnation, self._make_group(payload))
        saved = self._restored.pop(payload.shard, None)
        if saved is None or saved.incarnation != payload.incarnation:
            return shard
        try:
            state.restore(shard, saved)
        except UnsupportedStateError as error:  # a checkpoint of another version of Rollcall, or of the env
            _log.warning(
                "shard %d begins anew: its saved state is not of envs as they are now (%s)", shard.index, error
            )
            shard.group.close()
            shard = begin_shard(payload.shard, payload.incarnation, self._make_group(payload))
        return shard

    def _make_group(self, payload: ShardPayload) -> EnvGroup:
        return make_vector_env(
            self._env_config,
            self._config.num_envs // self._config.num_shards,
            seed=derive_seed(self._run_seed, "env", payload.shard, payload.incarnation),
            max_restarts=self._config.max_env_restarts,
            step_timeout_s=self._config.ticket_deadline_s,
        )

    def _drop(self, index: int) -> None:
        self._before.pop(index, None)
        shard = self._shards.pop(index, None)
        if shard is not None:
            shard.group.close()

    def _run(self, shard: Shard, seed: int, unit: Unit) -> UnitOfExperience:
        num_steps, num_envs = self._config.unroll_length, shard.group.num_envs
        try:
            if unit == "episode" and not shard.untouched:
                shard = self._shards[shard.index] = begin_shard(shard.index, shard.incarnation, shard.group)
            if shard.recurrent_state is None:
                shard.recurrent_state = self._policy.initial_recurrent_state(num_envs)
            rollout = self._policy.rollout(
                num_steps=num_steps,
                num_envs=num_envs,
                seed=seed,
                recurrent_state=shard.recurrent_state,
                first_env=shard.index * num_envs,
            )
            found = unroll(shard, rollout, num_steps=num_steps, unit=unit)
            if isinstance(self._policy, JudgesExperience):
                errors = self._policy.td_errors(rollout, found.unroll)
                found = replace(found, unroll=found.unroll.with_td_errors(errors))
            return found
        except BaseException:
            self._drop(shard.index)  # somewhere in the middle of a step: of no use any more
            raise

    def _trajectory(self, ticket: Ticket, payload: ShardPayload, unrolled: Unroll[Array]) -> GymTrajectory:
        clip = self._env_config.reward_clip
        return GymTrajectory(
            header=replace(ticket.header, actor_id=self.actor_id),
            shard=payload.shard,
            incarnation=payload.incarnation,
            policy_version=self._policy.version,
            unroll=unrolled if clip is None else unrolled.with_rewards(np.clip(unrolled.steps.rewards, -clip, clip)),
        )
