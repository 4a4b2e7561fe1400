"""What a run says of itself while it goes, from its records alone: counts, rates, the best so far, who waits for whom.
Only ever told what happened; draws nothing."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rollcall.deploy.report.counted import BROKEN, ENV_STEPS, Counted, counted_in
from rollcall.deploy.report.event_lines import DROPS
from rollcall.deploy.report.progress import duration, eval_text, number, percent
from rollcall.deploy.report.recorders import Record, plain

CHECKPOINT = "checkpoint"  # an event; its text begins with "step 40"
_WINDOW_S = 10.0  # rates are over the last ten seconds: long enough to be steady, short enough to show a change
_BUSY = 0.1  # who waits a smaller share of the time than this does not wait


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds of one learner step."""

    waited: float
    worked: float
    scored: float  # of the wait: the reward service


class Tally:
    """The latest state of a run and its rates, from the records alone."""

    def __init__(self) -> None:
        self.start: Record = {}
        self.last: Record = {}
        self.evaluation: Record = {}
        self.events: Counter[str] = Counter()
        self.samples: Sequence[Any] = ()  # of the newest step that showed some
        self._began = time.monotonic()
        self._best: tuple[float, int] | None = None  # (mean of an evaluation, its step)
        self._best_training: tuple[float, int] | None = None
        self._checkpoint: tuple[str, float] | None = None  # (of which step, when)
        self._times: deque[tuple[float, int, int]] = deque()  # (clock, env steps or tokens, learner step)
        self._spent: deque[_Spent] = deque()  # per step of the window

    def on_start(self, info: Record) -> None:
        self.start = info
        start_step, experience = int(info.get("start_step") or 0), info.get(f"start_{self._experience}")
        if not start_step or experience is not None:  # a resumed run counts from its first step else, not from zero
            self._times.append((time.monotonic(), int(experience or 0), start_step))

    def on_step(self, record: Record) -> None:
        now = time.monotonic()
        if self._times and int(record["step"]) + 1 <= self._times[-1][2]:  # after a restore: no rate leads across it
            self._times.clear()
            self._spent.clear()
        self.last = record
        self.samples = record.get("samples") or self.samples
        self._times.append((now, int(record.get(self._experience) or 0), int(record["step"]) + 1))
        waited, scored = float(record.get("wait_batch_s") or 0.0), float(record.get("score_s") or 0.0)
        worked = float(record.get("update_s") or 0.0) + float(record.get("publish_s") or 0.0)
        self._spent.append(_Spent(waited, worked, min(scored, waited)))
        while len(self._times) > 2 and self._times[1][0] < now - _WINDOW_S:
            self._times.popleft()
        while len(self._spent) > max(2, len(self._times)):
            self._spent.popleft()
        score = plain(record.get(self._training_key))
        if isinstance(score, int | float) and (self._best_training is None or score > self._best_training[0]):
            self._best_training = (float(score), int(record["step"]) + 1)

    def on_eval(self, record: Record) -> None:
        self.evaluation = record
        mean = plain(record.get("mean"))
        if not isinstance(mean, int | float):
            return
        sign = -1 if record.get("unit") == BROKEN else 1
        if self._best is None or sign * mean > sign * self._best[0]:
            self._best = (float(mean), int(record.get("step") or 0))

    def on_event(self, kind: str, text: str) -> None:
        self.events[kind] += 1
        if kind == CHECKPOINT:
            self._checkpoint = (text.partition(" (")[0], time.monotonic())

    @property
    def _counts(self) -> Counted:
        return counted_in([{str(self.start.get("counts")): 0}])

    @property
    def _experience(self) -> str:
        """The key that counts what is learned from."""
        return self._counts.key

    @property
    def _training_key(self) -> str:
        return "return_mean" if self._counts is ENV_STEPS else "reward_mean"

    @property
    def elapsed_s(self) -> float:
        """Since this process began to tell of the run."""
        return time.monotonic() - self._began

    @property
    def experience_per_s(self) -> float | None:
        """Env steps or tokens."""
        if len(self._times) < 2 or self._times[-1][0] <= self._times[0][0]:
            return None
        return (self._times[-1][1] - self._times[0][1]) / (self._times[-1][0] - self._times[0][0])

    @property
    def wait_share(self) -> float | None:
        return self._share_of(sum(spent.waited for spent in self._spent))

    def _share_of(self, seconds: float) -> float | None:
        total = sum(spent.waited + spent.worked for spent in self._spent)
        return seconds / total if total > 0 else None

    @property
    def waiting(self) -> str | None:
        """Who waits for whom, in words."""
        share, scoring = self.wait_share, self._share_of(sum(spent.scored for spent in self._spent))
        runtime = self.start.get("runtime", "ray")
        if share is None or scoring is None or runtime is None:  # of a run without actors nobody waits
            return None
        if runtime == "serial":  # one process: nobody waits
            parts = [("acting", share - scoring), ("scoring", scoring), ("learning", 1 - share)]
            return ", ".join(f"{name} {part:.0%}" for name, part in parts if round(part, 2)) + " of the time"
        if share < _BUSY:
            return f"actors wait for the learner, busy {1 - share:.0%} of the time"
        whom = "the reward service" if scoring > share / 2 else "actors"
        return f"the learner waits for {whom} {share:.0%} of the time"

    @property
    def done(self) -> tuple[int, int | None, str]:
        """(done, of how many, of what): learner steps where their number is known, else env steps or tokens."""
        total_steps = self.start.get("total_learner_steps")
        if total_steps:
            done = int(self.last["step"]) + 1 if self.last else int(self.start.get("start_step") or 0)
            return done, int(total_steps), "step"
        total, done = self.start.get(f"total_{self._experience}"), int(self.last.get(self._experience) or 0)
        return done, int(total) if total else None, self._counts.unit

    @property
    def progress(self) -> str:
        """`step 50/100`."""
        done, total, what = self.done
        return f"{what} {number(done)}{f'/{number(total)}' if total else ''}"

    @property
    def eta_s(self) -> float | None:
        done, total, what = self.done
        column = 2 if what == "step" else 1
        if total is None or len(self._times) < 2:
            return None
        moved = self._times[-1][column] - self._times[0][column]
        elapsed = self._times[-1][0] - self._times[0][0]
        return (total - done) * elapsed / moved if moved > 0 else None

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs worth a glance, what one wants first in front; those without a value yet are left out.
        One that is a sentence has no name."""
        return [*self.learning(), *self.working(), *self.standing()]

    @property
    def evaluated(self) -> str:
        """What an evaluation is called."""
        mode = self.start.get("eval_mode")
        return f"{mode} eval" if mode else "eval"

    def learning(self) -> list[tuple[str, str]]:
        last = self.last
        if self._counts is ENV_STEPS:
            training: list[tuple[str, str | None]] = [("training return", number(last.get("return_mean")))]
        else:
            training = [
                ("training reward", number(last.get("reward_mean"))),
                ("exact match", percent(last.get("exact_match"))),
                (
                    "length",
                    f"{number(last['length_mean'])} tok" if plain(last.get("length_mean")) is not None else None,
                ),
            ]
        evaluated = eval_text(self.evaluation) if self.evaluation else None
        return _known([*training, (self.evaluated, evaluated), self._best_so_far()])

    def working(self) -> list[tuple[str, str]]:
        """How fast, and how fresh."""
        experience = self.last.get(self._experience)
        known = number(int(experience)) if experience and self.done[2] == "step" else None
        lag = number(self.last.get("lag_max"))
        return _known([(self._counts.units, known), ("speed", self._speed()), ("lag", lag)])

    def standing(self) -> list[tuple[str, str]]:
        """Who waits for whom, what was lost, what is kept."""
        restarts = self.last.get("restarts")
        drops = number(self._drops) if self._drops else None
        return _known([("", self.waiting), ("drops", drops), ("restarts", number(restarts) if restarts else None)])

    def checkpoint(self) -> list[tuple[str, str]]:
        """The newest one, as a fact."""
        if self._checkpoint is None:
            return []
        step, when = self._checkpoint
        return [("checkpoint", f"{step}, {duration(time.monotonic() - when)} ago")]

    def _best_so_far(self) -> tuple[str, str | None]:
        """By evaluations; in training, where there were none."""
        if self._best is not None:
            share = self.evaluation.get("unit") in ("exact match", BROKEN)
            return "best eval", f"{(percent if share else number)(self._best[0])} at step {number(self._best[1])}"
        if self._best_training is not None:
            return "best", f"{number(self._best_training[0])} at step {number(self._best_training[1])}"
        return "best", None

    def _speed(self) -> str | None:
        rate, bound = self.experience_per_s, plain(self.last.get("bound_fraction"))
        if not rate:
            return None
        return f"{number(rate)} {self._counts.per_second}" + (f" ({bound:.0%} of bound)" if bound else "")

    @property
    def _drops(self) -> int:
        """Degenerate groups are counted in the records too, over the whole run: the larger number has seen more."""
        others = sum(self.events[kind] for kind in DROPS if kind != "degenerate")
        return others + max(self.events["degenerate"], int(self.last.get("degenerate_dropped") or 0))


def _known(facts: Sequence[tuple[str, str | None]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in facts if value is not None and value != "-"]
