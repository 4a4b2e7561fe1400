"""The actor-critic network: named raw observations in, distribution parameters and values out, the same on actor and
learner. Knows nothing of algorithms, and never changes its normaliser's statistics by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor, nn

from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths.distributions import DiagonalGaussian
from rollcall.learners.models.action_distribution import distribution_of
from rollcall.learners.models.initialisation import initialise
from rollcall.learners.models.normaliser import ObservationNormaliser
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.models.q_heads import Exploration, NoisyLinear, QValues
from rollcall.learners.models.random_start import RandomStart
from rollcall.learners.models.torsos import ByteRanges, RecurrentCore, Torso, flatten_space

LOG_STD_BOUNDS = (-20.0, 2.0)  # where they come from a network (Haarnoja et al., 2018)
CRITIC_CHILDREN = ("value_torso", "value_head")  # of an ActorCritic: what acting does without


class ActorCriticOutput(NamedTuple):
    params: Tensor  # [..., P] for `distribution`
    values: Tensor | None  # [...]; None without a critic
    final_state: Tensor | None  # [num_states, B, hidden]; None without recurrence


class ActorCritic(nn.Module):
    """Torso -> (recurrent core) -> policy head and value head, on raw observations by name."""

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: PolicyConfig,
        *,
        with_critic: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.observation_spaces = flatten_space(observation_space)
        self.distribution = distribution_of(config, action_space)
        # The acting half is registered first: it is a prefix of the flat parameters, and actors hold nothing else.
        self.torso = self._new_torso()
        num_features = self.torso.num_features
        self.core: RecurrentCore | None = None
        if config.recurrent != "none":
            self.core = RecurrentCore(
                config.recurrent, num_features, config.recurrent_size, orthogonal=config.orthogonal_init
            )
            num_features = config.recurrent_size
        gaussian = isinstance(self.distribution, DiagonalGaussian)
        self.has_std_head = gaussian and config.state_dependent_std
        own_std = gaussian and not config.state_dependent_std
        num_outputs = self.distribution.num_params // (2 if own_std else 1)
        self.q: QValues | None = None
        self.exploration: Exploration | None = None
        if config.q is None:
            self.policy_head = nn.Linear(num_features, num_outputs)
            initialise(self.policy_head, 0.01, config.orthogonal_init)
        else:
            self.q = QValues(num_outputs - 1, config.q)
            self.policy_head = self.q.layer(num_features, orthogonal=config.orthogonal_init)
            self.exploration = Exploration(config.q.epsilons)
        if self.has_std_head:
            self.policy_head.bias.data[num_outputs // 2 :].add_(config.log_std_init)
        self.log_std = nn.Parameter(torch.full((num_outputs,), config.log_std_init)) if own_std else None
        self.random_start = RandomStart(self.distribution) if config.starts_at_random else None

        self.value_torso: Torso | None = None
        self.value_head: nn.Linear | None = None
        if with_critic:
            shared = bool(self.torso.images) if config.shared_torso is None else config.shared_torso
            if self.core is None and not shared:
                self.value_torso = self._new_torso()
            self.value_head = nn.Linear(num_features, 1)
            initialise(self.value_head, 1.0, config.orthogonal_init)

        self.observation_normaliser: ObservationNormaliser | None = None
        if config.normalise_observations:
            self.observation_normaliser = ObservationNormaliser(self.observation_spaces, config.observation_clip)
        self.byte_ranges: ByteRanges | None = None
        if any(ByteRanges.concerns(space) for space in self.observation_spaces.values()):
            self.byte_ranges = ByteRanges(self.observation_spaces)

    def _new_torso(self) -> Torso:
        return Torso(
            self.observation_spaces,
            kind=self.config.torso,
            hidden_sizes=self.config.hidden_sizes,
            activation=self.config.activation,
            orthogonal=self.config.orthogonal_init,
            image_dtype=getattr(torch, self.config.image_dtype),
        )

    @property
    def is_recurrent(self) -> bool:
        return self.core is not None

    @property
    def num_states(self) -> int:
        """Of the recurrent state [num_states, B, recurrent_size]: 2 with an LSTM, 1 with a GRU, 0 without."""
        return 0 if self.core is None else self.core.num_states

    @property
    def recurrent_size(self) -> int:
        return 0 if self.core is None else self.core.size

    def zero_state(self, num_envs: int) -> Tensor:
        """[num_states, B, hidden]"""
        return self.policy_head.weight.new_zeros(self.num_states, num_envs, self.recurrent_size)

    def forward(
        self,
        observations: Mapping[str, Tensor],
        *,
        initial_state: Tensor | None = None,
        episode_starts: Tensor | None = None,
    ) -> ActorCriticOutput:
        """Parameters and values for every observation.

        Without recurrence: any leading axes. With it: observations [T, B, ...], the state before the first
        [num_states, B, hidden] (None: zeros), and episode_starts [T, B] (None: nowhere), where the state restarts
        before the observation is taken in.
        """
        observations = self.normalised(observations)
        features = self.torso(observations)
        if self.core is None:
            value_features = features if self.value_torso is None else self.value_torso(observations)
            return ActorCriticOutput(self._params(features), self._values(value_features), None)
        lead = features.shape[:2]
        if initial_state is None:
            initial_state = self.zero_state(lead[1])
        if episode_starts is None:
            episode_starts = torch.zeros(lead, dtype=torch.bool, device=features.device)
        outputs, final_state, _ = self.core.unroll(features, initial_state, episode_starts)
        return ActorCriticOutput(self._params(outputs), self._values(outputs), final_state)

    def policy_params(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[..., P]: the acting path without recurrence. Never computes the value's torso."""
        assert self.core is None, "a recurrent policy acts through step"
        return self._params(self.torso(self.normalised(observations)))

    def action_returns(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[..., n, Z]: what is known of each action's return, as `q` has it."""
        assert self.q is not None, "a policy with values of actions has settings for them"
        returns: Tensor = self.q(self.policy_head(self.torso(self.normalised(observations))))
        return returns

    def draw_noise(self, generator: torch.Generator | None) -> None:
        """For weights that have some, until it is drawn anew. None: there is none."""
        if isinstance(self.policy_head, NoisyLinear):
            self.policy_head.draw(generator)

    def state_values(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        """[...]: the critic alone, without recurrence. Never computes the policy's torso where it has its own."""
        assert self.core is None, "a recurrent critic sees sequences: forward"
        torso = self.torso if self.value_torso is None else self.value_torso
        return self._values(torso(self.normalised(observations)))

    def step(self, observations: Mapping[str, Tensor], state: Tensor, episode_starts: Tensor) -> tuple[Tensor, Tensor]:
        """The acting path with recurrence: observations [B, ...] -> (params [B, P], the state after them)."""
        assert self.core is not None, "a policy without recurrence acts through policy_params"
        features = self.torso(self.normalised(observations))
        outputs, state = self.core.step(features, state * ~episode_starts.unsqueeze(-1))
        return self._params(outputs), state

    def update_normaliser(self, observations: Mapping[str, Tensor], mask: Tensor) -> None:
        """Takes raw observations [T, B, ...] where mask [T, B] is True into the statistics, if there are any.

        For the learner, after a step: the new statistics belong to the next version.
        """
        if self.observation_normaliser is not None:
            self.observation_normaliser.update(observations, mask)

    @torch.no_grad()
    def bootstrap(self, batch: GymBatch) -> tuple[Tensor, Tensor]:
        """(values [T, B], next_values [T, B]), without gradients.

        next_values[t] is the value of the true observation after step t: values[t+1] inside an episode, that of
        final_observations where one ended (of either kind: the caller decides what a terminated step bootstraps from),
        that of last_observations at the fragment's end. A recurrent state is the one carried after step t. At a step
        with mask False both are finite and mean nothing.
        """
        _, values, next_values = self._around_steps(batch)
        return values, next_values

    @torch.no_grad()
    def assess(self, batch: GymBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(params [T, B, P] for `distribution`, and the two of `bootstrap`): in one pass where they share a torso."""
        features, values, next_values = self._around_steps(batch)
        params = self.policy_params(batch.steps.observations) if features is None else self._params(features)
        return params, values, next_values

    def _around_steps(self, batch: GymBatch) -> tuple[Tensor | None, Tensor, Tensor]:
        """(features [T, B, F] from which the policy acts, or None where values come from another torso; the two of
        `bootstrap`)"""
        t, b = batch.final_index.unbind(1)
        around = self._feedforward_values if self.core is None else self._recurrent_values
        features, values, final_values = around(batch)
        next_values = values[1:].clone()
        next_values[t, b] = final_values
        return features, values[:-1], next_values

    def _feedforward_values(self, batch: GymBatch) -> tuple[Tensor | None, Tensor, Tensor]:
        """(the features of `_around_steps`, values [T+1, B] with that of last_observations at the end, values [N] of
        final_observations)"""
        num_steps, num_envs = batch.shape
        joined = {
            name: torch.cat((values.flatten(0, 1), batch.last_observations[name], batch.final_observations[name]))
            for name, values in batch.steps.observations.items()
        }
        torso = self.torso if self.value_torso is None else self.value_torso
        features = torso(self.normalised(joined))
        values = self._require_values(self._values(features))
        end, border = num_steps * num_envs, (num_steps + 1) * num_envs
        shared = features[:end].view(num_steps, num_envs, -1) if self.value_torso is None else None
        return shared, values[:border].view(num_steps + 1, num_envs), values[border:]

    def _recurrent_values(self, batch: GymBatch) -> tuple[Tensor, Tensor, Tensor]:
        """As `_feedforward_values`."""
        assert self.core is not None
        joined = {
            name: torch.cat((values, batch.last_observations[name].unsqueeze(0)))
            for name, values in batch.steps.observations.items()
        }
        starts = torch.cat((batch.steps.episode_starts, torch.zeros_like(batch.steps.episode_starts[:1])))
        state = batch.initial_recurrent_state
        features = self.torso(self.normalised(joined))
        ends = batch.final_index.tolist()
        outputs, _, states = self.core.unroll(
            features,
            self.zero_state(batch.shape[1]) if state is None else state,
            starts,
            keep_after=[t for t, _ in ends],
        )
        values = self._require_values(self._values(outputs))
        if not ends:
            return outputs[:-1], values, values.new_zeros(0)
        carried = torch.stack([states[t][:, b] for t, b in ends], dim=1)
        final_features = self.torso(self.normalised(batch.final_observations))
        final_outputs, _ = self.core.step(final_features, carried)
        return outputs[:-1], values, self._require_values(self._values(final_outputs))

    def normalised(self, observations: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As the network sees them; for critics of an algorithm's own, which see the same."""
        for scaling in (self.byte_ranges, self.observation_normaliser):
            if scaling is not None:
                observations = scaling(observations)
        return observations

    def _params(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.policy_head(features)
        if self.q is not None and self.exploration is not None:
            values = self.q.values(self.q(outputs))
            return torch.cat((values, self.exploration.epsilons[:1].expand(*values.shape[:-1], 1)), -1)
        if self.has_std_head:
            means, log_stds = outputs.chunk(2, -1)
            return torch.cat((means, log_stds.clamp(*LOG_STD_BOUNDS)), -1)
        return outputs if self.log_std is None else torch.cat((outputs, self.log_std.expand_as(outputs)), -1)

    def _values(self, features: Tensor) -> Tensor | None:
        return None if self.value_head is None else self.value_head(features).squeeze(-1)

    @staticmethod
    def _require_values(values: Tensor | None) -> Tensor:
        if values is None:
            raise ValueError("bootstrap needs a critic: build the network with with_critic=True")
        return values


def build_actor_critic(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    config: PolicyConfig,
    *,
    with_critic: bool,
    seed: int,
) -> ActorCritic:
    """The same initial weights for the same arguments; the global random state is left as it was.

    Raises:
      ValueError: on a space that is not supported, or a config that does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ActorCritic(observation_space, action_space, config, with_critic=with_critic)


__all__ = [
    "CRITIC_CHILDREN",
    "LOG_STD_BOUNDS",
    "ActorCritic",
    "ActorCriticOutput",
    "PolicyConfig",
    "build_actor_critic",
]
