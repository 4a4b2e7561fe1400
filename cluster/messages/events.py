"""What a runtime is to the coordinator: somebody who is given work, and is asked what became of it.
Records and protocols only; an implementation is a runtime (deploy/runtimes/)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import JsonValue

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header, Produced, Ticket
from rollcall.cluster.messages.reports import EvalReport, StepOrder, StepReport

# A trajectory or weights as the runtime passes them: the record itself, or a reference to it. The coordinator passes it
# on; only the runtime can look inside.
Handle = object
# What a failed attempt says against its ticket. own: it failed by itself; death: whoever made it died at it, and it may
# be why; none: it was not begun, or what ended it is known to be something else.
Fault = Literal["own", "death", "none"]
States = tuple[dict[str, Array], dict[str, JsonValue]]  # of all env shards: arrays and JSON, from which they go on


@dataclass(frozen=True, slots=True)
class TicketProduced:
    produced: Produced
    handle: Handle


@dataclass(frozen=True, slots=True)
class TicketScored:
    """A trajectory with a reward service's scores in place of its own: a new record, `handle` is its."""

    produced: Produced
    handle: Handle


@dataclass(frozen=True, slots=True)
class TicketFailed:
    """An attempt that will not be produced, or not be scored."""

    header: Header
    reason: str  # actor_died, object_lost, deadline, non_finite, env_failed, expert_failed, unscored, invalid, ...
    detail: str
    state_lost: bool  # what the actor kept for this work is gone: an env shard starts anew
    fruitless: bool = False  # unscored, and not because of some of its items: none has a score
    fault: Fault = "own"


@dataclass(frozen=True, slots=True)
class TicketRefused:
    """A result that came too late, and was not looked at: the attempt had been given up."""

    header: Header


@dataclass(frozen=True, slots=True)
class StateLost:
    """What an actor kept is gone, of work that nobody waits for just now: what these tickets were for starts anew."""

    ticket_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VersionMade:
    """The weights of a step are on their way to whoever asks for them, and its StepDone follows. What is to be acted
    with them may be submitted. A runtime need not say it."""

    epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step has ended, and whoever asks gets its weights; of one that was interrupted there are none."""

    report: StepReport
    publish_s: float = 0.0  # from its end to when its weights could be had


@dataclass(frozen=True, slots=True)
class LearnerSaved:
    """The learner's part of a checkpoint is written."""


@dataclass(frozen=True, slots=True)
class LearnerLost:
    detail: str


@dataclass(frozen=True, slots=True)
class ShardStates:
    """What the actors keep. None where that cannot be had."""

    states: States | None


@dataclass(frozen=True, slots=True)
class EvalDone:
    step: int
    env_steps: int
    report: EvalReport | None  # None, and why, where there is none
    error: str = ""


Event = (
    TicketProduced
    | TicketScored
    | TicketFailed
    | TicketRefused
    | StateLost
    | VersionMade
    | StepDone
    | LearnerSaved
    | LearnerLost
    | ShardStates
    | EvalDone
)


class Workers(Protocol):
    """What the coordinator asks of a runtime. Only `poll` waits."""

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None: ...
    def submit_scoring(self, produced: Produced, handle: Handle) -> None: ...
    def submit_step(self, order: StepOrder, handles: Sequence[Handle]) -> None: ...
    def submit_eval(self, *, step: int, env_steps: int) -> None: ...
    def poll(self, timeout_s: float) -> list[Event]: ...
    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None:
        """Answered by LearnerSaved, or LearnerLost."""

    def submit_shard_states(self, undone: Collection[int] = ()) -> None:
        """Answered by ShardStates, as it was before the tickets `undone`. It takes the place of an earlier question."""

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int) -> None:
        """From a checkpoint. Steps may be submitted at once."""

    def interrupt_learner(self) -> None:
        """The learner takes back the step it is at, and begins no other: each comes back as interrupted, unless it was
        finished before. It can still be asked for a checkpoint."""

    def waiting_for(self) -> str: ...
    @property
    def have_started(self) -> bool:
        """All that a run begins with."""
        ...

    @property
    def restarts(self) -> int: ...
    @property
    def restarts_by_role(self) -> Mapping[str, int]: ...
