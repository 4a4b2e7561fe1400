"""One of several learner processes of a run on a data set:
`python -m rollcall.deploy.drive.learner_member PARENT DIRECTORY RANK NUMBER MEETING`. It reads from its input what
process 0 does next, does its part of it, and ends with its input, or with the driver, whatever ends that."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rollcall.cluster.messages.reports import StepOrder
from rollcall.deploy.drive.learner_group import READY
from rollcall.deploy.kinds.recipes import load_run
from rollcall.deploy.kinds.shared_run import SharedRun
from rollcall.learners.collective import Collective
from rollcall.learners.loop.learner import Learner, resolve_device

_PR_SET_PDEATHSIG = 1


class Member:
    """The run as one process sees it that is not the driver. What only concerns the driver (evaluations, files) it
    takes part in where parameters lie in pieces: they are read by all processes together."""

    def __init__(self, made: Any, collective: Collective) -> None:
        made.share(collective)
        for _ in made.preparations():
            raise AssertionError("process 0 has made what the run loads")
        self._made = made
        self._learner: Learner = made.learner

    def take_part(self, what: str, value: Any) -> None:
        made, learner = self._made, self._learner
        match what:
            case "step":
                batch = made.source.take(value)
                assert batch is not None, "a data set has a batch for each step"
                learner.update(batch, StepOrder(step=value, epoch=0, progress=value / made.steps))
            case "restore":
                learner.restore(Path(value))
                made.restore(Path(value))
            case _ if not learner.in_pieces:
                pass
            case "evaluate":
                made.evaluate(value)
            case "save":
                step, checkpoint = value
                learner.publish(epoch=0, version=step, checkpoint=Path(checkpoint))
                made.save(Path(checkpoint))
            case "finish":
                made.finish(value)
            case _:
                raise AssertionError(f"told of {what!r}")


def main() -> None:
    parent, directory, rank, number, meeting = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return
    # A terminal, or a batch system, sends them to all: the driver decides.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anybody else prints belongs into the log
    run = load_run(Path(directory))
    made = run.kind.make(run.config, run.directory)
    assert isinstance(made, SharedRun)
    print(READY, file=said, flush=True)
    member: Member | None = None
    for line in sys.stdin:
        what, value = json.loads(line)
        if what == "end":
            break
        if what == "meet":
            device = resolve_device(run.config.learner.device)
            collective = Collective.join(rank=int(rank), num_processes=int(number), address=meeting, device=device)
            member = Member(made, collective)
        else:
            assert member is not None, "they meet before all"
            member.take_part(what, value)
    # Nothing is left to do or to write: whoever takes leave of the others properly waits for one that is gone already.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
