"""Runs on a data set in place of actors: the one loop of take, update, evaluate, checkpoint around the same learner, in
a run directory of the usual form, resumable bit for bit. Knows the order of events; must never know what is learnt."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, latest_checkpoint
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.config.preference_config import PreferenceRunConfig
from rollcall.deploy.drive.runs import driver_log, read_json, warnings_told, write_summary
from rollcall.deploy.report.page import write_report
from rollcall.deploy.report.progress import duration, number, percent
from rollcall.deploy.report.recorders import JsonLines, Record, Recorder, TensorBoard, read_jsonl
from rollcall.deploy.rundir.earlier_runs import run_hash
from rollcall.learners.loop.learner import BatchSource, Learner

_log = logging.getLogger("rollcall")


class Job(Protocol):
    """What an offline run does: built anew in every process of the run."""

    @property
    def learner(self) -> Learner: ...

    @property
    def source(self) -> BatchSource: ...

    @property
    def steps(self) -> int: ...

    @property
    def policy_id(self) -> str: ...

    @property
    def num_evaluations(self) -> int:
        """Over the run, where its config does not say how often."""

    @property
    def is_over(self) -> bool:
        """Whether there is no point in more steps, after an evaluation."""

    def save(self, checkpoint: Path) -> None:
        """Writes what `restore` needs beside the learner's state into a checkpoint that is being made."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> Mapping[str, Any]:
        """On what is held out: `mean`, `std`, `n`, `unit`, and whatever else is known."""

    def finish(self) -> Mapping[str, Any]:
        """After the last step, or where the run was stopped: writes the model; what is to be added to the summary."""


class ProgressLines:
    """A line every few seconds, and one for each evaluation."""

    def __init__(self, stream: TextIO, *, every_s: float = 5.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._total = self._start = 0
        self._began = self._printed = time.monotonic()

    def on_start(self, info: Record) -> None:
        self._total, self._start = int(info["total_learner_steps"]), int(info["start_step"])
        self._began = self._printed = time.monotonic()
        if self._start:
            self._print(f"resuming after step {self._start}")

    def on_step(self, record: Record) -> None:
        now, done = time.monotonic(), int(record["step"]) + 1
        if now - self._printed < self._every_s and done < self._total:
            return
        self._printed = now
        left = (now - self._began) / max(1, done - self._start) * (self._total - done)
        right = record.get("accuracy", record.get("implicit_accuracy"))
        self._print(
            f"step {done}/{self._total}  loss {number(record.get('loss'), 3)}  right {percent(right)}  "
            f"ETA {duration(left)}"
        )

    def on_eval(self, record: Record) -> None:
        interval = f" [{percent(record.get('low'))}, {percent(record.get('high'))}]"
        self._print(
            f"eval at step {record['step']}: {percent(record['mean'])}{interval} of {number(record['n'])} held-out "
            f"pairs right, loss {number(record.get('eval_loss'), 3)}"
        )

    def on_event(self, kind: str, text: str) -> None:
        if kind != "checkpoint":
            self._print(f"{kind}: {text}")

    def close(self, summary: Record) -> None: ...

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


@dataclass
class _State:
    """Of the driver: what a resumed run must know beside the learner's state."""

    step: int = 0
    size: int = 0  # tokens, or steps, learnt from
    train_s: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # the first and the last


def carry_out(
    config: PreferenceRunConfig,
    directory: Path,
    build: Callable[[], Job],
    *,
    resume: bool,
    stop: threading.Event,
    console: Sequence[Recorder] = (),
) -> dict[str, Any]:
    """Trains in `directory` and leaves summary.json and report.html behind, whatever happens; returns the summary.

    Raises:
      BadInput: before training began; a directory claimed for this run is removed again.
      Exception: whatever ended the run; its traceback is in <run>/logs/driver.log.
    """
    recorders: list[Recorder] = [JsonLines(directory), TensorBoard(directory), *console]
    summary: dict[str, Any] = {
        "status": "failed",
        "recipe": str(read_json(directory / "run.json").get("recipe", config.name)),
        "config_hash": run_hash(directory),
        "algorithm": config.algorithm_name,
        "seed": config.seed,
    }
    began = time.monotonic()
    job: Job | None = None
    with driver_log(directory) as log, warnings_told(recorders), _locked(directory):
        try:
            job = build()
            summary |= _train(config, directory, job, recorders, resume=resume, stop=stop)
            summary |= job.finish()
        except BaseException as error:
            if isinstance(error, BadInput) and job is None:
                if not resume:
                    shutil.rmtree(directory, ignore_errors=True)
                raise
            error.rollcall_log = directory / "logs" / "driver.log"  # type: ignore[attr-defined]
            log.error("the run ended with an error\n%s", traceback.format_exc())
            records = read_jsonl(directory / "metrics.jsonl")
            text = " ".join(f"{type(error).__name__}: {error}".split())
            failed = {"learner_steps": int(records[-1]["step"]) + 1 if records else 0, "error": text[:2000]}
            _finish(directory, recorders, summary | failed | {"status": "failed", "wall_s": time.monotonic() - began})
            raise
        summary["wall_s"] = time.monotonic() - began
        _finish(directory, recorders, summary)
    return summary


def _train(
    config: PreferenceRunConfig,
    directory: Path,
    job: Job,
    recorders: Sequence[Recorder],
    *,
    resume: bool,
    stop: threading.Event,
) -> dict[str, Any]:
    writer = CheckpointWriter(directory, keep=config.checkpoint.keep)
    state = _restored(directory, job) if resume else _State()
    info = {"kind": "language", "start_step": state.step, "epoch": 0, "total_learner_steps": job.steps}
    for recorder in recorders:
        recorder.on_start({**info, "total_env_steps": None})
    checkpoint_every = config.checkpoint_every(job.steps)
    eval_every = config.eval_every or max(1, job.steps // job.num_evaluations)
    saved = state.step if resume else -1
    if state.step == 0 and not state.evaluations:
        _evaluate(job, state, recorders)
    while state.step < job.steps and not job.is_over and not stop.is_set():
        began = time.monotonic()
        batch = job.source.take(state.step)
        assert batch is not None, "the source has a batch for every step"
        result, _ = job.learner.update(batch, StepOrder(step=state.step, epoch=0, progress=state.step / job.steps))
        state.step += 1
        state.size += int(result.metrics["trained_size"])
        state.train_s += time.monotonic() - began
        record = {
            **result.metrics,
            **{"step": result.step, "epoch": 0, "policy_version": state.step, "tokens": state.size},
            **{"update_s": result.update_s, "wait_batch_s": result.wait_s, "learning_rate": result.learning_rate},
            **({"skipped": True} if result.skipped else {}),
        }
        for recorder in recorders:
            recorder.on_step(record)
        if state.step % eval_every == 0 or state.step == job.steps:
            _evaluate(job, state, recorders)
        if state.step % checkpoint_every == 0 or state.step == job.steps:
            _save(config, directory, writer, job, state)
            saved = state.step
    if saved != state.step:  # stopped between two, or over
        _save(config, directory, writer, job, state)
    speed = state.size / state.train_s if state.train_s else 0.0
    completed = state.step == job.steps or job.is_over
    return {
        "status": "completed" if completed else "stopped",
        "train_s": state.train_s,
        "learner_steps": state.step,
        "trained_size": state.size,
        "size_per_s": speed,
        "first_eval": state.evaluations[0] if state.evaluations else None,
        "final_eval": state.evaluations[-1] if state.evaluations and completed else None,
    }


def _evaluate(job: Job, state: _State, recorders: Sequence[Recorder]) -> None:
    record = {"step": state.step, "policy_version": state.step, "tokens": state.size, **job.evaluate(state.step)}
    state.evaluations = [*state.evaluations[:1], record]
    for recorder in recorders:
        recorder.on_eval(record)


def _save(config: PreferenceRunConfig, directory: Path, writer: CheckpointWriter, job: Job, state: _State) -> None:
    aside = writer.begin(state.step)
    job.learner.save(aside, job.learner.weights(epoch=0, version=state.step))
    job.save(aside)
    manifest = Manifest(
        run_id=config.name,
        policy_id=job.policy_id,
        config_hash=run_hash(directory),
        step=state.step,
        epoch=0,
        tier="exact",
        ledger={},
        driver={"size": state.size, "train_s": state.train_s, "evaluations": state.evaluations},
        files={},
    )
    writer.finish(aside, manifest)


def _restored(directory: Path, job: Job) -> _State:
    """Raises CheckpointDamaged: when there is no checkpoint of this config."""
    checkpoint, manifest, damaged = latest_checkpoint(directory)
    for line in damaged:
        _log.warning("%s", line)
    if manifest.config_hash != run_hash(directory):
        raise CheckpointDamaged(f"{checkpoint}: made under another config than {directory / 'config.yaml'}")
    job.learner.restore(checkpoint)
    job.restore(checkpoint)
    return _State(step=manifest.step, **manifest.driver)


def _finish(directory: Path, recorders: Sequence[Recorder], summary: dict[str, Any]) -> None:
    for recorder in recorders:
        with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
            recorder.close(summary)
    write_summary(directory, summary)
    write_report(directory)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One driver at a time; and the process's number of threads as it was."""
    lock, threads = DirectoryLock(directory), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        lock.release()
