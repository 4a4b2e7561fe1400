"""An attempt at a ticket: what is asked of an actor, and what it tells the driver of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
    repeated_ngrams: float = 0.0  # share of its 4-grams that stand in it before already
    digest: str = ""  # of its tokens; empty: not told


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a reward service said of one trajectory."""

    model_version: str
    reward_mean: float  # per step in control, per sample in language
    score_s: float  # seconds from asking to the answer, waiting for a service that is away included
    components: Mapping[str, float] = field(default_factory=dict)  # of the reward, per step in control


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy a generation engine was since the ticket that it finished before."""

    steps: int
    running: float  # requests, mean over the steps
    waiting: float  # the same, not yet begun
    kv_cache_usage: float  # largest share of its blocks in use
    cached_tokens: int  # of the prompts of what finished: found in the prefix cache
    computed_tokens: int  # of the same: not found there
    canary_nats: float | None = None  # how far it is from the learner under the weights that it took last
    canary_bound_nats: float | None = None  # what is allowed


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
