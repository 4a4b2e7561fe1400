"""The checkpoints of a run as the loop makes them: when one is due, which one is being made, and what the driver adds
to the learner's part: the actors' state, the ledger's position, its own counters."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.sealed import SEGMENT_TICKETS
from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, Tier, list_checkpoints, read_manifest, write_state
from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.messages.events import States

# Tickets that the kept checkpoints may lie apart, first from last, and so what Redis holds of a run at the most: about
# 20 MB. A run with more between its checkpoints gets them more often.
UNSEALED_TICKETS = 4 * SEGMENT_TICKETS


@dataclass(frozen=True, slots=True)
class _Making:
    directory: Path
    undone: Collection[int]


class RunCheckpoints:
    """Of one run; at most one is being made at a time, at a step boundary."""

    def __init__(self, plan: RunPlan, writer: CheckpointWriter, ledger: Ledger) -> None:
        self._plan = plan
        self._writer = writer
        self._ledger = ledger
        most = max(1, UNSEALED_TICKETS // (writer.keep + 1) // plan.tickets_per_step)
        self._every_steps = min(plan.checkpoint_every_steps, most)
        self._making: _Making | None = None
        self.step = -1  # of the newest; -1: there is none yet
        self.unix_s = 0.0

    @property
    def run_directory(self) -> Path:
        return self._writer.run_directory

    @property
    def being_made(self) -> bool:
        return self._making is not None

    @property
    def undone(self) -> Collection[int]:
        """Tickets that the one being made comes before."""
        return self._making.undone if self._making is not None else ()

    def is_due(self, step: int) -> bool:
        return step % self._every_steps == 0 or step == self._plan.total_learner_steps

    def directory(self, step: int) -> Path:
        """For the learner's part."""
        return self._writer.begin(step)

    def make(self, directory: Path, undone: Collection[int] = ()) -> None:
        """From now on it is being made, until `write` or `give_up`."""
        self._making = _Making(directory, undone)

    def write(
        self,
        step: int,
        *,
        epoch: int,
        counters: Counters,
        tasks: dict[str, JsonValue],
        shard_states: States | None,
    ) -> Tier:
        """Once the learner's part is written. Returns what it is good for."""
        assert self._making is not None
        tier: Tier = "resumable"
        if shard_states is not None:
            write_state(self._making.directory, "shards", *shard_states)
            tier = "exact"
        position = self._ledger.snapshot(step=step, next_ticket_id=counters.next_ticket_id)
        manifest = Manifest(
            run_id=self._plan.run_id,
            policy_id=self._plan.policy_id,
            config_hash=self._plan.config_hash,
            step=step,
            epoch=epoch,
            tier=tier,
            ledger=position.model_dump(mode="json"),
            driver={"counters": counters.as_json(), "work": tasks},
            files={},
        )
        self._writer.finish(self._making.directory, manifest)
        self._making = None
        self._ledger.seal(covered_by_all(self.run_directory))
        self.step, self.unix_s = step, time.time()
        return tier

    def give_up(self) -> None:
        """The one being made, if any."""
        if self._making is not None:
            self.discard(self._making.directory)
            self._making = None

    def discard(self, directory: Path) -> None:
        """What a learner step was to write its part into."""
        self._writer.give_up(directory)

    def back_at(self, step: int) -> None:
        """The run goes on from the checkpoint of this step: later ones are of a timeline that has ended."""
        self.give_up()
        self._writer.discard_after(step)
        self.step, self.unix_s = step, time.time()  # from now on there is something to lose again


def covered_by_all(run_directory: Path) -> int:
    """Every kept checkpoint has seen the end of the tickets below: no resume asks for one of them again."""
    kept = list_checkpoints(run_directory)
    try:
        return int(read_manifest(kept[0]).ledger["low_water"]) if kept else 0
    except (CheckpointDamaged, KeyError, TypeError, ValueError):
        return 0  # it will be pruned; until then nothing is sealed
