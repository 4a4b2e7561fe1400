"""The records that cross processes: Ticket, Trajectory, Weights. Immutable, plain Python and numpy.
This file must never import ray or torch, and a record never holds a reference to a live object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import xxhash

from rollcall.cluster.messages.arrays import Array as Array
from rollcall.cluster.messages.arrays import digest_of, named_arrays
from rollcall.cluster.messages.steps import EnvSteps, SampledTokens, Unroll

SCHEMA_VERSION = 1

Unit = Literal["fragment", "episode", "prompt"]


@dataclass(frozen=True, slots=True)
class ShardPayload:
    """A control ticket's work: one unit of one env shard (a group of envs whose state persists between tickets)."""

    shard: int
    incarnation: int  # how many times the shard was started anew; a part of its envs' seeds
    unit: Unit


@dataclass(frozen=True, slots=True)
class PromptPayload:
    """A language ticket's work: all samples of one prompt."""

    row: int  # of the task's training rows
    pass_number: int  # how often the data set was gone through before
    num_samples: int


@dataclass(frozen=True, slots=True)
class Header:
    """Which attempt at which ticket a record is of, and whose."""

    ticket_id: int
    attempt: int  # counts from 1
    epoch: int  # a restore ends one, and whatever was under way in it
    policy_id: str = ""
    actor_id: str = ""  # empty while nobody works on it

    @property
    def key(self) -> tuple[int, int]:
        """(ticket_id, attempt): names an attempt within a run."""
        return (self.ticket_id, self.attempt)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission to produce one unit of experience."""

    header: Header
    seed: int  # does not depend on the attempt
    min_policy_version: int  # the producer must act with this version or a newer one
    lane: int  # which worker: the runtime gives all tickets of one lane to one actor
    payload: ShardPayload | PromptPayload
    deadline_s: float  # seconds from the moment work on it begins


@dataclass(frozen=True, slots=True)
class EpisodeStats:
    """One episode that ended (or, with `unit="episode"`, was cut by the step limit) inside a trajectory."""

    episode_return: float  # undiscounted sum of the env's own rewards, before any normalisation
    length: int  # env steps


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds an actor spent on one unit, by what it did. `act_s` is the whole unit; of tickets that are worked on side
    by side, what the actor was busy since it finished the one before."""

    act_s: float = 0.0
    env_s: float = 0.0
    inference_s: float = 0.0
    wait_weights_s: float = 0.0
    apply_weights_s: float = 0.0  # loading newer weights into a generation engine


@dataclass(frozen=True)
class GymTrajectory:
    """One unit of one shard."""

    header: Header
    shard: int
    incarnation: int
    policy_version: int  # of every step: a gym unit is produced under one version
    unroll: Unroll[Array]
    episodes: tuple[EpisodeStats, ...] = ()
    env_restarts: int = 0
    timing: Timing = Timing()
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


def _digest(record: GymTrajectory | LMTrajectory, first: Sequence[str]) -> str:
    """Over the arrays called `first`, then the others as they stand: the order of consumption logs since the first
    release."""
    place = {name: number for number, name in enumerate(first)}
    arrays = sorted(named_arrays(record), key=lambda item: place.get(item[0].partition(".")[0], len(first)))
    return digest_of(iter(arrays))


@dataclass(frozen=True, slots=True)
class SampleStats:
    """One completion (or conversation), as far as the driver reports it."""

    reward: float
    correct: bool
    parsed: bool  # False: no answer could be read from it; it counts as wrong, and apart
    num_tokens: int  # sampled by the policy
    truncated: bool
    reward_components: Mapping[str, float] = field(default_factory=dict)
    text: str = ""  # of the first sample of a prompt only: for people
    prompt: str = ""


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


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a reward service said of one trajectory."""

    model_version: str
    reward_mean: float  # per step in control, per sample in language
    score_s: float  # seconds from asking to the answer, waiting for a service that is away included


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy a generation engine was since the ticket that it finished before."""

    steps: int
    running: float  # requests, mean over the steps
    waiting: float  # the same, not yet begun
    kv_cache_usage: float  # largest share of its blocks in use
    cached_tokens: int  # of the prompts of what finished: found in the prefix cache
    computed_tokens: int  # of the same: not found there


@dataclass(frozen=True, slots=True)
class Produced:
    """The small record an actor sends beside a trajectory: all that the driver needs to know of it."""

    header: Header
    min_policy_version: int
    size_bytes: int
    timing: Timing
    num_steps: int = 0  # of envs
    num_tokens: int = 0  # that the policy sampled
    episodes: tuple[EpisodeStats, ...] = ()
    env_restarts: int = 0
    samples: tuple[SampleStats, ...] = ()
    version_tokens: tuple[tuple[int, int], ...] = ()  # (policy version, tokens sampled under it)
    engine: EngineLoad | None = None  # of a generation engine
    scoring: Scoring | None = None  # set when a reward service has scored it

    @property
    def is_degenerate(self) -> bool:
        """A group of samples whose rewards are all equal."""
        return len({sample.reward for sample in self.samples}) == 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one named tensor lies in the flat buffer of its dtype. Offset and size are in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Canary:
    """What the learner itself says of fixed tokens under the weights that this comes with. A generation engine that
    took the weights rightly says the same."""

    token_ids: Array  # int32 [n]
    logprobs: Array  # float32 [n - 1]: of all but the first, under the model itself, without temperature and nucleus
    dtype: str  # of the learner's forward pass


@dataclass(frozen=True)
class Weights:
    """One version of a policy: one flat contiguous buffer per dtype, and the index of what lies where."""

    policy_id: str
    epoch: int
    version: int
    index: tuple[TensorSpec, ...]
    buffers: Mapping[str, Array] = field(repr=False)  # dtype name -> 1-D array
    checksum: str = ""
    canary: Canary | None = None  # of a language policy, as its learner publishes it

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def compute_checksum(self) -> str:
        """xxh3-128 (hex) over the index and the buffers; what `checksum` must equal. Independent of the version."""
        hasher = xxhash.xxh3_128()
        for spec in self.index:
            hasher.update(f"{spec.name}|{spec.dtype}|{spec.shape}|{spec.offset}".encode())
        for dtype in sorted(self.buffers):
            hasher.update(self.buffers[dtype].view(np.uint8).data)
        return hasher.hexdigest()

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Views into the buffers, by name."""
        for spec in self.index:
            flat = self.buffers[spec.dtype][spec.offset : spec.offset + spec.size]
            yield spec.name, flat.reshape(spec.shape)


def pack_weights(policy_id: str, epoch: int, version: int, tensors: Mapping[str, Array]) -> Weights:
    """Copies named arrays into one flat buffer per dtype, with index and checksum."""
    index: list[TensorSpec] = []
    parts: dict[str, list[Array]] = {}
    offsets: dict[str, int] = {}
    for name, array in tensors.items():
        dtype = array.dtype.name
        index.append(TensorSpec(name, dtype, tuple(array.shape), offsets.get(dtype, 0)))
        parts.setdefault(dtype, []).append(array.reshape(-1))
        offsets[dtype] = offsets.get(dtype, 0) + array.size
    buffers = {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}
    unsigned = Weights(policy_id, epoch, version, tuple(index), buffers)
    return Weights(policy_id, epoch, version, tuple(index), buffers, unsigned.compute_checksum())
