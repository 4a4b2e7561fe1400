"""Which actor works on which lane (an env shard, or the next prompt) while actors come and go. Decides only: what an
actor is, and what moves with a lane, is on_ray/actors.py's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Member(Protocol):
    """An actor, as far as it can be given work."""

    @property
    def is_up(self) -> bool: ...

    @property
    def is_coming(self) -> bool:
        """Its process is on its way: what it is given waits there."""


Actor = TypeVar("Actor", bound=Member)


class Lanes(Generic[Actor]):
    """Lane l is at home with actor l modulo the number of actors: with all of them up, who does what is settled by
    that alone. While its home is away, a lane is with another; an actor that keeps state per lane holds the lane, and
    gives it back only where the state can go along."""

    def __init__(self, actors: Sequence[Actor], *, keep_state: bool) -> None:
        self._actors = actors
        self._keep_state = keep_state
        self._holders: dict[int, tuple[Actor, int]] = {}  # lane -> who holds its state, the newest ticket there
        self._stuck: set[int] = set()  # whose state cannot be moved

    def home(self, lane: int) -> Actor:
        return self._actors[lane % len(self._actors)]

    def holder(self, lane: int) -> Actor | None:
        held = self._holders.get(lane)
        return None if held is None else held[0]

    def choose(self, lane: int) -> Actor | None:
        """Who is to work on it, if nothing has to be moved; None while nobody can."""
        holder = self.holder(lane)
        if holder is not None:
            return holder
        home = self.home(lane)
        if home.is_up:
            return home
        there = [actor for actor in self._actors if actor.is_up] or [a for a in self._actors if a.is_coming]
        return there[lane % len(there)] if there else None

    def may_move_home(self, lane: int) -> bool:
        """Whether its home is up again, while another holds it."""
        holder, home = self.holder(lane), self.home(lane)
        return holder is not None and holder is not home and home.is_up and lane not in self._stuck

    def given(self, lane: int, actor: Actor, ticket_id: int) -> None:
        if self._keep_state:
            self._holders[lane] = (actor, ticket_id)

    def moved_home(self, lane: int) -> None:
        """Its state, with it."""
        self._holders[lane] = (self.home(lane), self._holders[lane][1])

    def stays(self, lane: int) -> None:
        """Its state cannot be moved."""
        self._stuck.add(lane)

    def lost(self, actor: Actor) -> dict[int, int]:
        """An actor is gone: the lanes that it held, and the newest ticket of each."""
        held = {lane: ticket_id for lane, (holder, ticket_id) in self._holders.items() if holder is actor}
        for lane in held:
            del self._holders[lane]
            self._stuck.discard(lane)
        return held
