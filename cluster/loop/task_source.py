"""What tickets are for: the next unit of an env shard, or the next prompt of a data set. The coordinator asks by ticket
id and does not look at the answer. Which work a ticket id means never depends on timing, nor on who does it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, cast

import numpy as np
from pydantic import JsonValue

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import PromptPayload, ShardPayload, Unit
from rollcall.cluster.seeds import derive_seed


class TaskSource(Protocol):
    """What a run works on, ticket by ticket."""

    def assign(self, ticket_id: int) -> tuple[int, ShardPayload | PromptPayload]:
        """(lane, payload) of a ticket: all tickets of a lane go to one actor."""

    def lost(self, ticket_id: int) -> None:
        """The actor that worked on this ticket is gone, with whatever state it kept."""

    def all_lost(self) -> None:
        """All actors are new."""

    def state(self) -> dict[str, JsonValue]:
        """JSON for the checkpoint."""

    def load_state(self, state: dict[str, JsonValue]) -> None: ...


class ShardSource:
    """Units of env shards, in turn. A shard that is lost starts anew under the next incarnation."""

    def __init__(self, num_shards: int, unit: Unit) -> None:
        self._unit: Unit = unit
        self.incarnations = [0] * num_shards

    def assign(self, ticket_id: int) -> tuple[int, ShardPayload]:
        shard = ticket_id % len(self.incarnations)
        return shard, ShardPayload(shard, self.incarnations[shard], self._unit)

    def lost(self, ticket_id: int) -> None:
        self.incarnations[ticket_id % len(self.incarnations)] += 1

    def all_lost(self) -> None:
        self.incarnations = [incarnation + 1 for incarnation in self.incarnations]

    def state(self) -> dict[str, JsonValue]:
        return {"incarnations": [*self.incarnations]}

    def load_state(self, state: dict[str, JsonValue]) -> None:
        self.incarnations = list(cast(list[int], state["incarnations"]))


class PromptSource:
    """Prompts of a data set, each once per pass, every pass in an order of its own. The position is the ticket id,
    which the ledger keeps: no prompt is skipped and none comes twice, whatever is killed."""

    def __init__(self, rows: Sequence[int], *, run_seed: int, samples_per_prompt: int) -> None:
        """`rows`: the numbers of the rows that can be used."""
        self._order = ShuffledRows(rows, seed=derive_seed(run_seed, "rows"))
        self._samples = samples_per_prompt

    def assign(self, ticket_id: int) -> tuple[int, PromptPayload]:
        row, pass_number = self._order.row(ticket_id)
        return ticket_id, PromptPayload(row, pass_number, self._samples)

    def lost(self, ticket_id: int) -> None:
        """A prompt keeps no state between tickets."""

    def all_lost(self) -> None: ...

    def state(self) -> dict[str, JsonValue]:
        return {}

    def load_state(self, state: dict[str, JsonValue]) -> None: ...


class ShuffledRows:
    """An endless order of rows: pass after pass over all of them, each shuffled by a seed of its own."""

    def __init__(self, rows: Sequence[int], *, seed: int) -> None:
        """Raises ValueError: when there are no rows."""
        if not rows:
            raise ValueError("rows is empty: there is nothing to learn from")
        self._rows = np.array(rows, np.int64)
        self._permutation = lru_cache(maxsize=2)(lambda number: _permutation(seed, number, len(self._rows)))

    def row(self, position: int) -> tuple[int, int]:
        """(row, pass) at a position, 0, 1, 2, ..."""
        pass_number, place = divmod(position, len(self._rows))
        return int(self._rows[self._permutation(pass_number)[place]]), pass_number


def _permutation(seed: int, pass_number: int, size: int) -> Array:
    return np.random.default_rng(derive_seed(seed, "pass", pass_number)).permutation(size)
