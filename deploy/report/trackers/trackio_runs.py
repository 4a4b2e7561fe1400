"""Runs at Trackio, on this machine or in a Space of Hugging Face. The only file that knows trackio."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.recorders_config import TrackioConfig
from rollcall.deploy.report.trackers.tracker import LEARNER_STEP, TrackedRun, said_by


class TrackioRun:
    """A Tracker. A resumed run goes on under its name; steps that it does again are there twice."""

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config
        self._run: Any = None

    def open(self, run: TrackedRun) -> str:
        import trackio

        config = self._config
        if config.space_id is None:
            return self._opened(trackio, run)
        opening: queue.Queue[str | Exception] = queue.Queue(1)

        def work() -> None:
            try:
                opening.put(self._opened(trackio, run))
            except Exception as error:
                opening.put(error)

        # Its client waits for a Space for as long as that is being built, or asleep.
        threading.Thread(target=work, name="rollcall-trackio-opening", daemon=True).start()
        try:
            found = opening.get(timeout=config.open_timeout_s)
        except queue.Empty:
            raise BadInput(
                f"recorders.trackio: the Space {config.space_id} has not answered within {config.open_timeout_s:g} s: "
                "look at it in a browser, raise recorders.trackio.open_timeout_s, or leave space_id out"
            ) from None
        if isinstance(found, Exception):
            raise found
        return found

    def _opened(self, trackio: Any, run: TrackedRun) -> str:
        config = self._config
        # Runs are told apart by their names alone there, and another directory may have one of this name.
        known = run.known_id or _free_name(trackio, config.project, run.name)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it advertises
                self._run = trackio.init(
                    project=config.project,
                    name=known,
                    group=config.group,
                    space_id=config.space_id,
                    config=dict(run.settings),
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
                # Else it would be ended once more when the process ends, and say so.
                trackio.context_vars.current_run.set(None)
        except Exception as error:  # trackio's own, and those of its client
            raise BadInput(f"recorders.trackio: no run can be opened ({said_by(error)}): fix the section") from None
        return known

    def log(self, step: int, values: Mapping[str, float], *, unix_s: float) -> None:
        self._run.log({**values, LEARNER_STEP: step}, step=step)

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        texts = {
            f"samples/{i}": f"{s.get('prompt')}\n>>> {s.get('text')}\n({s.get('reward')})"
            for i, s in enumerate(samples)
        }
        self._run.log(texts, step=step)

    def close(self, status: str, summary: Mapping[str, float]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


def _free_name(trackio: Any, project: str, name: str) -> str:
    """That name, or with the first number behind it that no run of the project on this machine has."""
    try:
        taken = {str(run.name) for run in trackio.Api().runs(project)}
    except Exception:  # there is no such project yet
        taken = set()
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
