"""The one door of this folder: `run(program, limits)` runs Python that nobody trusts and tells how each run ended;
`Served` keeps a function of such Python at work. All other files here are private to it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from rollcall.reward_service.sandbox.containment import Containment, probe
from rollcall.reward_service.sandbox.helper_process import Pipes, RunResult, SandboxBroken
from rollcall.reward_service.sandbox.judging_roles import PASSED, UNSUPPORTED
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.sandbox.served import Ended, Served

__all__ = [
    "PASSED",
    "UNSUPPORTED",
    "Containment",
    "Ended",
    "Program",
    "RunResult",
    "SandboxBroken",
    "Script",
    "Served",
    "Suite",
    "probe",
    "run",
]


@dataclass(frozen=True, slots=True)
class Script:
    """Run once for each standard input."""

    code: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """Each test is run against a fresh process of the code, in another sandbox than it. A test's exit status is PASSED,
    UNSUPPORTED or another number for a failure; its output is a message."""

    code: str
    tests: tuple[str, ...]
    preamble: str = ""  # runs before the code, and apart from it before each test: what it defines is the tests' own
    entry_point: str | None = None  # what the tests call, if it is named like a builtin


Program = Script | Suite


def run(program: Program, limits: Limits, containment: Containment | None = None) -> list[RunResult]:
    """How each run ended, in the order of the inputs or tests. Safe for use from several threads: each call has
    sandboxes of its own. `containment` is by default the strongest that this machine offers, probed once.

    Raises:
      SandboxBroken: nothing is known about the code.
    """
    containment = containment or _strongest()
    if isinstance(program, Script):
        return _run_script(program, limits, containment)
    return _run_suite(program, limits, containment)


@functools.cache
def _strongest() -> Containment:
    return probe(Limits())


def _run_script(script: Script, limits: Limits, containment: Containment) -> list[RunResult]:
    with Pipes.opened() as pipes:
        outputs = [pipes.pipe() for _ in script.inputs]
        files = [pipes.sealed_file(text.encode(errors="replace")) for text in script.inputs]
        runs = [{"stdin": file, "stdout": output[1]} for file, output in zip(files, outputs, strict=True)]
        with containment.helper(limits, "program_roles.program", {"code": script.code}, runs) as helper:
            pipes.close(*files, *(writing for _, writing in outputs))
            helper.await_ready()
            results = []
            for reading, _ in outputs:
                helper.begin()
                results.append(helper.finish(reading))
            return results


def _run_suite(suite: Suite, limits: Limits, containment: Containment) -> list[RunResult]:
    code = {"code": suite.code, "preamble": suite.preamble}
    tests = {"tests": suite.tests, "entry_point": suite.entry_point, "preamble": suite.preamble}
    with Pipes.opened() as pipes:
        channels = [pipes.socket_pair() for _ in suite.tests]
        outputs = [pipes.pipe() for _ in suite.tests]
        ends = [{"channel": channel[0]} for channel in channels]
        judging = [{"channel": c[1], "stdout": output[1]} for c, output in zip(channels, outputs, strict=True)]
        with (
            containment.helper(limits, "solution_roles.solution", code, ends) as solution,
            containment.helper(limits, "judging_roles.test", tests, judging) as judge,
        ):
            pipes.close(*(end for channel in channels for end in channel), *(writing for _, writing in outputs))
            solution.await_ready()
            judge.await_ready()
            results = []
            for reading, _ in outputs:
                solution.begin()
                judge.begin()
                results.append(judge.finish(reading))
                solution.end()
            return results
