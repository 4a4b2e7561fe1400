"""What is said of the tickets of an actor: what each is about, and what the actor's end says against it."""

from __future__ import annotations

from collections.abc import Sequence

from rollcall.cluster.messages.attempt import ShardPayload, Ticket
from rollcall.cluster.messages.events import Fault


def what(ticket: Ticket) -> str:
    """What it is about, in words."""
    payload = ticket.payload
    return f"shard {payload.shard}'s env" if isinstance(payload, ShardPayload) else f"row {payload.row}"


def faults(pending: Sequence[Ticket], reason: str, *, side_by_side: bool) -> dict[tuple[int, int], Fault]:
    """By their keys, of the tickets that an actor worked on when it ended for this reason. One that waited is not to
    blame; of those that it worked on side by side any may be, unless it is known which."""
    under_way = pending if side_by_side else pending[:1]
    if reason == "actor_died":
        return {ticket.header.key: "death" for ticket in under_way}
    others: Fault = "none" if reason == "deadline" else "death"
    return {ticket.header.key: others if position else "own" for position, ticket in enumerate(under_way)}
