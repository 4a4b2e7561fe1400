"""What an actor asks of a policy. Actors are handed a factory by `deploy`; they never learn what is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymGradient, GymTrajectory
from rollcall.cluster.messages.steps import Unroll
from rollcall.cluster.messages.weights import Weights


class Rollout(Protocol):
    """The policy's side of one unit of experience: `num_steps` steps of `num_envs` envs under one version."""

    def act(
        self,
        observations: Mapping[str, Array],  # name -> [B, ...], raw
        *,
        episode_starts: Array,  # bool [B]: a recurrent state restarts before this observation
        action_mask: Array | None = None,  # bool [B, num_actions]
    ) -> tuple[Array, Array]:
        """(actions as sampled, to be stored [B, ...]; actions as the env takes them: clipped or squashed [B, ...]).

        Called once per step, in time order, at most `num_steps` times. The arrays may be reused by the next call.
        """

    def behaviour_logprobs(self) -> Array:
        """float32 [steps taken so far, B]: log-probabilities of the stored actions as they were really sampled."""

    def recurrent_state(self) -> Array | None:
        """float32 [num_states, B, hidden]: the state after the last step; None without recurrence."""


class Policy(Protocol):
    @property
    def version(self) -> int:
        """Of the weights loaded last; -1 before any."""

    def load(self, weights: Weights) -> None:
        """Takes newer weights, normaliser statistics among them. Copies: the buffers may be read-only."""

    def initial_recurrent_state(self, num_envs: int) -> Array | None:
        """float32 [num_states, B, hidden] of zeros; None without recurrence."""

    def rollout(
        self,
        *,
        num_steps: int,
        num_envs: int,
        seed: int,
        recurrent_state: Array | None,
        greedy: bool = False,
        first_env: int = 0,
    ) -> Rollout:
        """Begins a unit. All sampling noise derives from `seed`. Greedy takes the mode of the distribution. The envs
        are those of the run from number `first_env` on: each may explore in a way of its own."""


@runtime_checkable
class JudgesExperience(Protocol):
    """A policy that may know how far its values were off."""

    def td_errors(self, rollout: Any, unroll: Unroll[Array]) -> Array | None:
        """float32 [T, B] >= 0: |TD error| of each step of a unit of its own; None where nobody asks for it."""


PolicyFactory = Callable[[], Policy]


class Gradients(Protocol):
    """The learner's work on one unit, done where the unit was made."""

    def load(self, weights: Weights) -> None:
        """Those that the policy acts with."""

    def of(self, trajectory: GymTrajectory) -> GymGradient:
        """Raises NonFinite: where the loss or its gradient is NaN or infinite."""


Offered = TypeVar("Offered", covariant=True)  # weights, or the offer of who has them to send them


class WeightsSource(Protocol[Offered]):
    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Offered | None:
        """The newest weights of `epoch` if their version is greater than `newer_than`, waiting up to `timeout_s`.

        Raises StaleEpoch if that epoch has ended. Versions start again below their height in a new epoch.
        """
