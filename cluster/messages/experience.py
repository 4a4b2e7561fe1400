"""Experience: the trajectories that actors produce and learners learn from. Immutable, plain Python and numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rollcall.cluster.messages.arrays import Array, digest_of, named_arrays
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.steps import EnvSteps, SampledTokens, Unroll

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class GymTrajectory:
    """One unit of one shard."""

    header: Header
    shard: int
    incarnation: int
    policy_version: int  # of every step: a gym unit is produced under one version
    unroll: Unroll[Array]
    reward_model_version: str = ""  # of a reward service's model, whose rewards took the place of the env's own
    schema_version: int = SCHEMA_VERSION

    @property
    def steps(self) -> EnvSteps[Array]:
        return self.unroll.steps

    @property
    def min_policy_version(self) -> int:
        return self.policy_version

    @property
    def num_steps(self) -> int:
        """Env steps that are experience."""
        return int(self.steps.mask.sum())

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for _, array in named_arrays(self))

    def digest(self) -> str:
        """xxh3-128 (hex) over names, dtypes, shapes and bytes of all arrays."""
        return _digest(self, ("observations", "last_observations", "final_index", "final_observations"))


@dataclass(frozen=True)
class GymGradient:
    """In place of a unit of one shard, what a learner would have made of it: the gradient of the loss, of the mean over
    its steps, with the weights that acted."""

    header: Header
    shard: int
    incarnation: int
    policy_version: int
    gradient: Array  # float32 [P]: as the learner's parameters lie side by side
    num_steps: int  # env steps that were experience
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the same mean
    reward_model_version: str = ""  # as in GymTrajectory
    schema_version: int = SCHEMA_VERSION

    @property
    def min_policy_version(self) -> int:
        return self.policy_version

    @property
    def size_bytes(self) -> int:
        return int(self.gradient.nbytes)

    def digest(self) -> str:
        """As GymTrajectory's."""
        return digest_of(named_arrays(self))


GymExperience = GymTrajectory | GymGradient


@dataclass(frozen=True)
class LMTrajectory:
    """All G samples of one prompt. Arrays are [N]: the tokens of all samples one after the other, each beginning with
    the prompt; nothing was tokenised twice.

    In a conversation, what the environment answered stands between the policy's own tokens, with loss_mask False.
    """

    header: Header
    row: int
    sample_offsets: Array  # int64 [G + 1]
    token_ids: Array  # int32
    loss_mask: Array  # bool: True for the tokens that the policy sampled
    tokens: SampledTokens[Array]
    version_spans: Array  # int64 [M, 3]: (begin, end, policy version); together they cover the sampled tokens
    rewards: Array  # float32 [G]
    finish_reasons: tuple[str, ...]  # [G]: "stop" (the policy or its environment ended it) or "length"
    reward_model_version: str = ""  # as in GymTrajectory
    schema_version: int = SCHEMA_VERSION

    @property
    def min_policy_version(self) -> int:
        return int(self.version_spans[:, 2].min())

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for _, array in named_arrays(self))

    def token_versions(self) -> Array:
        """int64 [N]: the policy version of each sampled token; -1 elsewhere."""
        versions = np.full(len(self.token_ids), -1, np.int64)
        for begin, end, version in self.version_spans:
            versions[begin:end] = version
        return np.where(self.loss_mask, versions, -1)

    def digest(self) -> str:
        """As GymTrajectory's."""
        return _digest(
            self,
            ("sample_offsets", "token_ids", "loss_mask", "behaviour_logprobs", "version_spans", "rewards"),
        )


def _digest(record: GymTrajectory | LMTrajectory, first: Sequence[str]) -> str:
    """Over the arrays called `first`, then the others as they stand: the order of consumption logs since the first
    release."""
    place = {name: number for number, name in enumerate(first)}
    arrays = sorted(named_arrays(record), key=lambda item: place.get(item[0].partition(".")[0], len(first)))
    return digest_of(iter(arrays))
