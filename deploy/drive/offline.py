"""The drive of a run on a data set: take, update, evaluate, checkpoint around the same learner as everywhere, resumable
bit for bit. Knows the order of events; what is learnt, the run knows."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, latest_checkpoint
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.drive.learner_group import Others, learners_of
from rollcall.deploy.drive.nested import NestedRuns
from rollcall.deploy.drive.planned import plan_alone
from rollcall.deploy.drive.records import RunRecorder, refuse_foreign
from rollcall.deploy.drive.signals import nothing_to_keep
from rollcall.deploy.kinds.kind import OfflineRun, StoredRun
from rollcall.deploy.kinds.language.warm_start import WarmStart
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.report.recorders import Record
from rollcall.learners.loop.heap import return_freed_memory

_log = logging.getLogger("rollcall")


@dataclass
class _State:
    """Of the driver: what a resumed run must know beside the learner's state."""

    step: int = 0
    size: int = 0  # tokens, or steps, learnt from
    train_s: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # the first and the last


class OfflineDrive:
    """One driver's part of a run on a data set."""

    def __init__(
        self,
        run: StoredRun,
        made: OfflineRun,
        recorder: RunRecorder,
        stop_requested: Callable[[], bool],
        nested: NestedRuns,
        while_training: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`while_training`: entered once the run is prepared, left when it has trained."""
        self._while_training = while_training
        self._run = run
        self._made = made
        self._recorder = recorder
        self._stop_requested = stop_requested
        self._nested = nested
        self._others = Others()
        self._state = _State()
        self.plan: Plan | None = None
        self.facts: dict[str, Any] = {}  # for the summary

    def carry_out(self, *, resume: bool) -> str:
        """To the end, or to a checkpoint once a stop is requested. Returns the run's status."""
        with _one_driver(self._run.directory), ExitStack() as stack:
            made, others = self._made, self._others
            with nothing_to_keep():
                self.plan = plan_alone(self._run.config, made, self._run.directory, self._recorder.on_event)
                self._nested.prepare(made, self._stop_requested)
                others = self._others = stack.enter_context(learners_of(made, self._run.config, self._run.directory))
                stack.enter_context(others.watched())
                _ = made.learner
            writer = CheckpointWriter(self._run.directory, keep=self._run.config.checkpoint.keep)
            if resume:
                self._restore()
            with self._while_training():
                self._train(writer, saved=self._state.step if resume else -1)
            state = self._state
            completed = state.step == made.steps or made.is_over
            self.facts = {
                "train_s": state.train_s,
                "learner_steps": state.step,
                **self._run.kind.counts.done(state.size, state.train_s),
                "first_eval": state.evaluations[0] if state.evaluations else None,
                "final_eval": state.evaluations[-1] if state.evaluations and completed else None,
            }
            others.tell("finish", state.step)
            self.facts |= made.finish(state.step)
        return "completed" if completed else "stopped"

    def known_from(self, records: Iterable[Record]) -> dict[str, Any]:
        """What metrics.jsonl still says of a run that failed."""
        newest = deque(records, maxlen=1)
        return {"learner_steps": int(newest[0]["step"]) + 1 if newest else 0}

    def _train(self, writer: CheckpointWriter, *, saved: int) -> None:
        made, state = self._made, self._state
        info = {
            "counts": self._run.kind.counts.key,
            "start_step": state.step,
            "epoch": 0,
            "total_learner_steps": made.steps,
        }
        self._recorder.on_start({**info, "total_env_steps": None})
        checkpoint_every = self._run.config.checkpoint_every(made.steps)
        if state.step == 0 and not state.evaluations:
            self._evaluate()
        if saved < 0 and made.drive == "collecting":  # what it collects before its first step is not lost with it
            self._save(writer)
            saved = state.step
        while state.step < made.steps and not made.is_over and not self._stop_requested():
            began = time.monotonic()
            self._others.tell("step", state.step)
            record = _update(made, state.step)
            if record is None:  # a stop was requested while the batch was being made
                break
            state.step += 1
            state.size += int(record[self._run.kind.counts.step])
            state.train_s += time.monotonic() - began
            counts = {"epoch": 0, "policy_version": state.step, self._run.kind.counts.key: state.size}
            self._recorder.on_step({**record, **counts})
            if state.step % made.eval_every == 0 or state.step == made.steps:
                self._evaluate()
            if state.step % checkpoint_every == 0 or state.step == made.steps:
                self._save(writer)
                saved = state.step
        if saved != state.step:  # stopped between two, or over
            self._save(writer)

    def _evaluate(self) -> None:
        state = self._state
        self._others.tell("evaluate", state.step)
        found = self._made.evaluate(state.step)
        if found is None:
            return
        counts = {"policy_version": state.step, self._run.kind.counts.key: state.size}
        record = {"step": state.step, **counts, **found}
        state.evaluations = [*state.evaluations[:1], record]
        self._recorder.on_eval(record)

    def _save(self, writer: CheckpointWriter) -> None:
        state, made = asdict(self._state), self._made
        step = state.pop("step")
        aside = writer.begin(step)
        self._others.tell("save", [step, str(aside)])
        made.learner.save(aside, made.learner.weights(epoch=0, version=step))
        made.save(aside)
        manifest = Manifest(
            run_id=self._run.directory.name,
            policy_id=made.policy_id,
            config_hash=self._run.config_hash,
            step=step,
            epoch=0,
            tier="exact",
            ledger={},
            driver=state,
            files={},
        )
        writer.finish(aside, manifest)

    def _restore(self) -> None:
        checkpoint, manifest, damaged = latest_checkpoint(self._run.directory)
        for line in damaged:
            _log.warning("%s", line)
        refuse_foreign(self._recorder.segments, checkpoint, manifest)
        self._others.tell("restore", str(checkpoint))
        self._made.learner.restore(checkpoint)
        self._made.restore(checkpoint)
        self._state = _State(step=manifest.step, **manifest.driver)


def imitate(run: WarmStart, stop_requested: Callable[[], bool]) -> None:
    """Training alone: to its end, or to where a stop is requested, of which the run makes what it can."""
    threads, done = torch.get_num_threads(), 0
    _ = run.learner
    recorder = run.recorder()
    recorder.on_start({"start_step": 0, "total_learner_steps": run.steps})
    try:
        while done < run.steps and not stop_requested():
            record = _update(run, done)
            assert record is not None, "demonstrations do not run out"
            done += 1
            recorder.on_step(record)
    finally:
        recorder.close({})
        torch.set_num_threads(threads)
        return_freed_memory()
    run.finish(done)


def _update(run: OfflineRun | WarmStart, step: int) -> Mapping[str, Any] | None:
    """One learner step; its record. None: the source has no batch for it yet."""
    batch = run.source.take(step)
    if batch is None:
        return None
    result, _ = run.learner.update(batch, StepOrder(step=step, epoch=0, progress=step / run.steps))
    return {
        **result.metrics,
        **{"step": result.step, "learning_rate": result.learning_rate},
        **{"update_s": result.update_s, "wait_batch_s": result.wait_s},
        **({"skipped": True} if result.skipped else {}),
    }


@contextmanager
def _one_driver(directory: Path) -> Iterator[None]:
    """One at a time; and the process's number of threads as it was."""
    lock, threads = DirectoryLock(directory), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        lock.release()
