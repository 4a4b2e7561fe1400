"""One round: a run of one kind, struck again and again as soon as it makes progress, and looked at when it is over.
Whom it strikes and how follows from the seed; at which step, from how far the run is by then."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from benchmarks.chaos import books
from benchmarks.chaos.kinds import FAULTS, KINDS, Kind
from benchmarks.chaos.processes import nobodys, send, shared_memory, still_there, stop_for
from benchmarks.chaos.progress import HANG_S, Hang, patience_s
from benchmarks.chaos.struck_run import MARK, STOPPED, EndedByItself, StoppedByOthers, StruckRun, audit

START_S = 180.0
STEPS_AFTER = 3  # of the learner: what was prepared before a strike is used up by then
SEAM_S = 12.0  # how long an armed seam waits for somebody
AT_ONCE = 0.3  # of strikes, the share after which the next one waits for no recovery
END_S = 90.0


@dataclass
class Strike:
    what: str  # the kind of process, or the fault
    how: str  # kill, stop, fault, or seam:NAME
    at_step: int
    recovered_s: float | None = None  # until the learner was three steps on; of a stop or fault, from its end

    @property
    def is_kill(self) -> bool:
        return self.how == "kill" or self.how.startswith("seam:")


@dataclass
class Result:
    """As a line of the campaign's file."""

    kind: str
    seed: str
    strikes: list[Strike] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what is wrong: nothing, if all is as expected
    hangs: int = 0
    leftovers: list[str] = field(default_factory=list)
    books: dict[str, Any] | None = None
    audit: int | None = None
    hash_equal: bool | None = None
    resumes: int = 0
    let_go: int = 0  # of these, after drivers that a lost cluster did not let go of
    status: str = ""
    wall_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def kills(self) -> int:
        return sum(strike.is_kill for strike in self.strikes)


def undisturbed(name: str, settings: tuple[str, ...] = ()) -> str:
    """The hash that a run of this kind ends with if nobody strikes."""
    kind = KINDS[name]
    run = StruckRun(kind, random.Random(0), (*kind.reference, *settings))
    try:
        run.start(*run.command)
        if code := run.wait(900):
            raise EndedByItself(f"an undisturbed run ended with {code}: {run.said()}")
        return run.hash()
    finally:
        run.clear(keep=False)


class Round:
    def __init__(self, name: str, seed: str, *, kills: int | None = None, settings: tuple[str, ...] = ()) -> None:
        """Raises Unavailable: naming what this machine lacks for it."""
        self.kind: Kind = KINDS[name]
        self.result = Result(name, seed)
        self._chance = random.Random(f"{name} {seed}")
        self._kills = self.kind.kills if kills is None else kills
        self._run = StruckRun(self.kind, self._chance, settings)
        self._progress = self._run.progress

    def carry_out(self, reference: str | None) -> Result:
        """`reference`: the hash of an undisturbed run; None where it is not to be compared.

        Raises:
          StoppedByOthers: the round counts for nothing.
        """
        began, before, result = time.monotonic(), shared_memory(), self.result
        try:
            self._begin()
            self._strike_on()
            self._end()
            self._look_back(before)
            self._read_books(reference)
        except Hang as hang:
            result.hangs += 1
            result.faults.append(f"hang: {hang}: {self._run.said()}")
        except StoppedByOthers:
            raise
        except Exception as error:
            result.faults.append(f"{type(error).__name__}: {error}")
        finally:
            result.resumes, result.let_go = self._run.resumes, self._run.let_go
            self._run.clear(keep=bool(result.faults))
        result.wall_s = round(time.monotonic() - began, 1)
        return result

    # Striking.

    def _begin(self) -> None:
        run = self._run
        run.start(*run.command)
        self._progress.wait(lambda: self._progress.step >= 1 and run.has_checkpoint, START_S, run.revive)
        self._progress.mark()

    def _strike_on(self) -> None:
        run, chance = self._run, self._chance
        while self.result.kills < self._kills and not run.is_over:
            run.look_for_old()
            found = run.members()
            weights = self._possible(found)
            if not weights:
                run.revive()
                time.sleep(0.05)
                continue
            what = chance.choices(list(weights), list(weights.values()))[0]
            strike = self._strike(what, found)
            if strike is None:
                continue
            self.result.strikes.append(strike)
            if strike.is_kill and chance.random() < AT_ONCE:
                time.sleep(chance.uniform(0, 1.5))
                run.revive()
                continue
            if not strike.is_kill:
                self._progress.mark()
            self._recover(strike)
            time.sleep(chance.uniform(0, self.kind.pause_s))

    def _possible(self, found: dict[str, list[psutil.Process]]) -> dict[str, float]:
        possible = {}
        for what, weight in self.kind.strikes.items():
            prefix, _, rest = what.partition(":")
            who = rest if prefix == "stop" else what
            if prefix in FAULTS or who in found or (prefix == "seam" and found):
                possible[what] = weight
        return possible

    def _strike(self, what: str, found: dict[str, list[psutil.Process]]) -> Strike | None:
        """None: nobody was there any more."""
        run, step = self._run, self._progress.step
        prefix, _, rest = what.partition(":")
        if prefix == "seam":
            return self._strike_at_seam(rest, found)
        seconds = round(self._chance.uniform(0.5, 3.0), 2)
        if prefix in FAULTS:
            run.place.bring(what, run.directory, seconds)
            return Strike(what, "fault", step)
        who = rest if prefix == "stop" else what
        victim = self._chance.choice(found[who])
        if prefix == "stop" or self._chance.random() < self.kind.stops:
            stop_for(victim, seconds)
            return Strike(who, "stop", step)
        self._progress.mark()
        return Strike(who, "kill", step) if send(victim, signal.SIGKILL) else None

    def _strike_at_seam(self, seam: str, found: dict[str, list[psutil.Process]]) -> Strike | None:
        """Whoever comes there next kills itself. A restore has to be brought about."""
        run = self._run
        at = f"{seam}.{self._chance.choice(('before', 'after'))}"
        aside = run.armed / f".{at}"
        aside.write_text(str(int(signal.SIGKILL)))
        aside.rename(run.armed / at)
        known = {process.pid: name for name, processes in found.items() for process in processes}
        deadline = time.monotonic() + patience_s(SEAM_S)
        if seam == "restore":
            victim = (found.get("learner") or found["driver"])[0]
            deadline += patience_s(2 * SEAM_S)
            if send(victim, signal.SIGKILL):
                self.result.strikes.append(Strike(known[victim.pid], "kill", self._progress.step))
        while not (fired := list(run.armed.glob(f"{at}.fired.*"))):
            run.revive()
            if time.monotonic() > deadline or run.is_over:
                with suppress(FileNotFoundError):
                    (run.armed / at).unlink()
                    return None
            known |= {process.pid: name for name, processes in run.members().items() for process in processes}
            time.sleep(0.05)
        self._progress.mark()
        pid = int(fired[0].suffix[1:])
        fired[0].unlink()
        return Strike(known.get(pid, "driver"), f"seam:{at}", self._progress.step)

    def _recover(self, strike: Strike) -> None:
        """Until the learner is some steps on, whoever has to be started again for that by us."""
        began = time.monotonic()
        while not (self._progress.is_on_by(STEPS_AFTER) or self._run.is_over):
            self._run.revive()
            if (waited := time.monotonic() - began) > patience_s(HANG_S):
                raise Hang(f"no progress for {waited:.0f} s after {strike}")
            time.sleep(0.02)
        strike.recovered_s = round(time.monotonic() - began, 2)

    # The end, and what there is to see then.

    def _end(self) -> None:
        run = self._run
        if not self.kind.endless:
            self._progress.wait(lambda: run.is_over, 20 * HANG_S, run.revive, stall_s=HANG_S)
            return
        run.revive()
        self._progress.mark()
        self._recover(Strike("nobody", "end", self._progress.step))  # to stop a run that starts would be another test
        code = run.stop(patience_s(END_S))
        if code is None:
            raise Hang(f"it does not end within {END_S:.0f} s of SIGTERM")
        if code != STOPPED:
            raise EndedByItself(f"it was to stop, and ended with {code}: {run.said()}")

    def _look_back(self, before: set[str]) -> None:
        run, left = self._run, self.result.leftovers
        run.look_for_old(to_the_end=True)
        left += run.leftovers
        left += still_there(run.known, (MARK, str(run.armed)))
        left += [f"/dev/shm/{name}" for name in nobodys(shared_memory() - before)]
        found = (path for path in run.temporary.rglob("*") if path.is_socket() or path.name.startswith("rollcall-live"))
        left += map(str, found)
        if left:
            self.result.faults.append(f"left over: {left[:3]}")

    def _read_books(self, reference: str | None) -> None:
        run, result = self._run, self.result
        summary = json.loads((run.directory / "summary.json").read_text())
        result.status = summary["status"]
        dropped = (summary.get("ledger") or {}).get("dropped_by_reason", {})
        if reference is not None and dropped.keys() <= {"restored"}:  # what was given up (too slow, say) is made anew
            result.hash_equal = run.hash() == reference
            if not result.hash_equal:
                result.faults.append("its weights are not those of an undisturbed run")
        if self.kind.offline:
            lines = (run.directory / "metrics.jsonl").read_text().splitlines()
            if (steps := [json.loads(line)["step"] for line in lines]) != list(range(len(steps))):
                result.faults.append("metrics.jsonl lacks steps, or has them twice")
            return
        reading = books.look(run.directory, url=run.place.redis_url)
        result.books = reading.as_json()
        if not reading.right:
            result.faults.append(f"the books, by our reading: {result.books}")
        result.audit, said = audit(run)
        if result.audit:
            result.faults.append(f"rollcall audit: {said[-1500:]}")
