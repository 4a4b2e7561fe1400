"""What Ray's errors become: one line that can be read."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from rollcall.cluster.errors import BudgetSpent
from rollcall.deploy.plan.machine import Machine
from rollcall.deploy.plan.needs import GIB, Needs, Part, Role
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.runtimes.on_ray.deaths import Deaths
from rollcall.deploy.runtimes.on_ray.faults import death_of, in_a_line

# As Ray 2 writes it, its table of processes shortened.
KILLED = (
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7, ID: 1e1e) where the "
    "task (actor ID: ab12, name=Learner.__init__, pid=78, memory used=19.50GB) was running was 22.80GB / 24.00GB "
    "(0.951), which exceeds the memory usage threshold of 0.95. Ray killed this worker (ID: cd34) because it was the "
    "most recently scheduled task; to see more information about memory usage on this node, use `ray logs`.\nTop 10:\n"
) + "78\t19.50\tray::Learner\n" * 200


def test_a_process_that_was_killed_for_its_memory_says_how_much_and_what_takes_less() -> None:
    assert len(KILLED) > 4000
    line = in_a_line(OutOfMemoryError(KILLED))
    assert line.startswith("out of memory: the process used 19.50GB, and all of its node's 22.80GB of 24.00GB; ")
    assert "algorithm.token_budget" in line and len(line) < 400 and "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 9.27 GiB. GPU 0 has a total capacity of 79 GiB." * 9
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."
        ),
        MemoryError(),
    ],
)
def test_allocations_that_fail_say_what_takes_less(error: Exception) -> None:
    line = in_a_line(error)
    assert line.startswith("out of memory: ") and "a smaller model" in line and len(line) < 450


# As Ray 2 writes them of a process that was killed: of its own, and of one that ended by itself.
DIED = (
    "The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: GymActorProcess\n\tactor_id: 9f\n\tpid: 4711\n"
    "\tnamespace: 1e\n\tip: 127.0.0.1\nThe actor is dead because its worker process has died. Worker exit type: "
    "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop "
    "--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected error."
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (DIED, "its process 4711 is gone: killed by a signal, or crashed"),
        (DIED + " Worker exits with an exit code 3.", "its process 4711 is gone: exit code 3"),
        ("The actor died because its node has died. " + "Node Id: 12 " * 90, "its node is gone"),
        ("something new " * 90, ("something new " * 90)[:200]),
    ],
)
def test_a_death_is_told_in_a_few_words(text: str, line: str) -> None:
    assert death_of(RayActorError(error_msg=text)) == line.strip()


def test_other_errors_are_cut_to_what_can_be_read() -> None:
    assert in_a_line(ValueError("a\nb")) == "ValueError('a\\nb')"
    assert len(in_a_line(ValueError("x" * 10_000))) == 300


PLAN = Plan(
    Needs(
        "a model",
        (Role("learner process", (Part("program", GIB), Part("logits", 17 * GIB, "token_budget")), 1, "learner"),),
    ),
    [Machine("this machine", 24 * GIB, 24 * GIB, 0, 0)],
)


def test_a_learner_without_memory_says_in_two_lines_what_it_holds_and_what_takes_less() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.27 GiB. GPU 0 has 79 GiB.")
    said = Deaths(PLAN).raised("the learner", "learner", RayTaskError("step", "trace", error), "log").splitlines()
    assert said == [
        "the learner ran out of memory: CUDA out of memory; by its plan it takes 18.0 GiB (logits 17.0 GiB)",
        "what makes it smaller: token_budget",
    ]


def test_a_process_that_the_kernel_ended_is_told_from_one_that_somebody_else_did() -> None:
    gone = RayActorError(
        "", "Worker unexpectedly exits. (1) The process is killed by SIGKILL by OOM killer (2) ray stop"
    )
    kills = iter([4, 4, 5, 5])
    deaths = Deaths(PLAN, kills=lambda: next(kills))
    assert deaths.of("the learner", "learner", gone).startswith("the learner died (")
    first = deaths.of("the learner", "learner", gone).splitlines()[0]
    assert "the kernel ended its process" in first and "18.0 GiB" in first


def test_the_command_line_says_the_remedy_below_what_is_wrong() -> None:
    error = BudgetSpent(
        f"the learner failed: {Deaths(PLAN).raised('it', 'learner', RayTaskError('s', 't', MemoryError()), '')}"
    )
    assert "by its plan" in error.headline and "\n" not in error.headline
    assert error.remedy == "what makes it smaller: token_budget"
