"""How an exception of an actor becomes a drop with a reason. Shared by the runtimes."""

from __future__ import annotations

from rollcall.actors.language.lm_actor import Failure
from rollcall.cluster.errors import (
    ChecksumMismatch,
    EnvFailure,
    ExpertFailure,
    NonFinite,
    StaleEpoch,
    Unscored,
    VersionsMixed,
    WeightsTimeout,
)
from rollcall.cluster.messages.attempt import Produced, Ticket
from rollcall.cluster.messages.events import TicketFailed

_REASONS: dict[type[Exception], str] = {
    NonFinite: "non_finite",
    EnvFailure: "env_failed",
    ExpertFailure: "expert_failed",
    WeightsTimeout: "weights_timeout",
    StaleEpoch: "stale_epoch",
    ChecksumMismatch: "checksum_mismatch",
    Unscored: "unscored",
    VersionsMixed: "versions_mixed",
}

CONTAINED = tuple(_REASONS)  # what ends an attempt and not the actor


def ticket_failure(ticket: Ticket | Produced, error: Exception) -> TicketFailed:
    """The drop that `error` means, to a ticket or to what it produced. After NaNs, or an env or expert that raises, the
    shard starts anew."""
    return TicketFailed(
        ticket.header,
        reason=_REASONS[type(error)],
        detail=str(error),
        state_lost=isinstance(error, (NonFinite, EnvFailure, ExpertFailure)),
        fruitless=isinstance(error, Unscored) and error.fruitless,
    )


def given_up(failure: Failure) -> TicketFailed:
    """The drop of a ticket that a language actor gave up."""
    return TicketFailed(
        failure.ticket.header,
        reason=failure.reason,
        detail=failure.detail,
        state_lost=False,
    )
