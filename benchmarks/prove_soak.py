"""A long look at both halves, side by side: an hour of control (Ray, two actors, evaluator, a reward service) and of
language (vLLM, the real thing), with a sample every few seconds of each process's memory, open files and threads by its
role, of Redis, and of the run's files by what they are for. Whatever grows faster than it may fails the proof. At the
end each run is stopped with a signal, audited, and must leave nothing behind.

python -m benchmarks.prove_soak [--minutes 60] [--only control] [--directory DIR] [--append FILE.md]

Writes soak-<half>.json (every sample, every slope) and soak-<half>.svg into the directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks import proofs
from benchmarks.proofs import ROLLCALL, Row
from benchmarks.soak.growth import Allowance, Growth, growth
from benchmarks.soak.picture import amount, picture
from benchmarks.soak.samples import DRIVER, Sample, look
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import inspect_store

EVERY_S = 5.0
WARM_UP = 0.25  # of the time
STARTS_S, ENDS_S, LEFT_S = 1800.0, 300.0, 20.0
STOPPED = 130  # the exit code of a run that was stopped, and kept its checkpoint
MB = 1e6

# What may grow, and by how much. A week at 6 MB an hour is 1 GB. Teeth: what is folded, sealed, rewritten or replaced
# once there is enough of it. What is told of each learner step grows with the steps: that is what it is for.
ALLOWED: Mapping[str, Allowance] = {
    "memory": Allowance(per_hour=6 * MB),
    "memory: GCS": Allowance(per_hour=4 * MB),
    "memory: raylet": Allowance(per_hour=4 * MB),
    "memory: Redis": Allowance(per_hour=1 * MB, teeth=12 * MB),  # 2^15 tickets, and as many as a checkpoint covers
    f"memory: {DRIVER}": Allowance(per_hour=6 * MB, teeth=6 * MB),  # what it remembers of the same tickets
    "memory: reward service": Allowance(per_hour=6 * MB, teeth=64 * MB),  # its cache, of 32 MB by its own count
    "threads: GCS": Allowance(per_hour=1, teeth=64),  # gRPC's, as many as were ever busy at once
    "threads: raylet": Allowance(per_hour=1, teeth=64),
    "data: Redis": Allowance(per_hour=0.5 * MB, teeth=10 * MB),
    "shared memory": Allowance(per_hour=2 * MB, teeth=10 * MB),
    "open files": Allowance(per_hour=1, teeth=2),
    "threads": Allowance(per_hour=1, teeth=2),
    "disk: consumption log": Allowance(per_ticket=40, teeth=34 * MB),
    "disk: sealed books": Allowance(per_ticket=8, teeth=1 * MB),
    "disk: Redis' files": Allowance(per_hour=1 * MB, teeth=140 * MB),  # rewritten from 64 MB on, when it has doubled
    "disk: checkpoints": Allowance(per_hour=1 * MB, teeth=10 * MB),
    "disk: lines per step": Allowance(per_ticket=600, teeth=1 * MB),
    "disk: logs": Allowance(per_hour=2 * MB),
    "disk: others": Allowance(per_hour=1 * MB),
}

SCORER = '''
def score(item):
    """1 a step, as CartPole's own, but from a service."""
    return 1.0 + 0 * item.segment.observations.array()[:, 0]
'''


@dataclass(frozen=True)
class Half:
    """Runs that do not end by themselves, with all that a run can have, at sizes of which an hour has many steps."""

    recipe: str
    settings: tuple[str, ...]


HALVES = {
    "control": Half(
        "cartpole-ppo",
        (
            *("total_env_steps=1_000_000_000_000", "actors.num=2", "reward=soak_scoring:score", "eval.every_steps=100"),
            *("eval.episodes=4", "checkpoint.every_steps=100", "learner.learning_rate=1e-5", "algorithm.epochs=2"),
        ),
    ),
    "language": Half(
        "arithmetic-grpo",
        (
            *("total_learner_steps=1_000_000", "actors.prompts_per_batch=16", "eval.num_rows=32"),
            *("policy.warm_start.steps=100",),
            *("eval.every_steps=50", "checkpoint.every_steps=25", "learner.learning_rate=1e-5"),
        ),
    ),
}
_STAYS = ("learner.anneal_learning_rate=false",)


def main(argv: Sequence[str] | None = None) -> int:
    made = proofs.parser(__doc__, HALVES)
    made.add_argument("--minutes", type=float, default=60.0, help="of samples, from the first learner step on")
    made.add_argument("--directory", type=Path, default=Path("soak"), help="for the runs and what was found")
    args = made.parse_args(argv)
    args.directory.mkdir(parents=True, exist_ok=True)
    return proofs.report(_rows(args.only or list(HALVES), args.directory.resolve(), 60 * args.minutes), args.append)


def _rows(names: Sequence[str], directory: Path, duration_s: float) -> Iterator[Row]:
    """The halves run side by side; rows come as each is done."""
    with ThreadPoolExecutor(len(names)) as pool:
        under_way = [(name, pool.submit(soak, name, directory, duration_s)) for name in names]
        for name, soaking in under_way:
            yield from rows_of(name, soaking.result())


@dataclass(frozen=True)
class Soak:
    """What one half showed."""

    samples: Sequence[Sample]
    grown: Sequence[Growth]
    ended: int  # the driver's exit code
    early: bool  # by itself
    audit: str  # empty: the books balance
    left: Sequence[str]  # processes


def soak(name: str, directory: Path, duration_s: float) -> Soak:
    """Starts the run, looks at it for so long, stops it."""
    half, run_name = HALVES[name], f"soak-{name}-{int(time.time())}"
    run = directory / "runs" / run_name
    (directory / "soak_scoring.py").write_text(SCORER)
    environment = {**os.environ, "ROLLCALL_RUNS": str(directory / "runs"), "OMP_NUM_THREADS": "1"}
    command = [*ROLLCALL, "train", half.recipe, *half.settings, *_STAYS, f"name={run_name}"]
    with (directory / f"{run_name}.txt").open("wb") as said:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=said, stderr=said, process_group=0)
    driver, seen = psutil.Process(process.pid), dict[int, psutil.Process]()
    try:
        samples = list(_samples(process, driver, run, duration_s, seen))
        early = process.poll() is not None
        process.send_signal(signal.SIGTERM)
        ended = process.wait(ENDS_S)
    finally:
        if process.poll() is None:
            for one in (*_alive(seen), driver):
                with suppress(psutil.Error):
                    one.kill()
    _, left = psutil.wait_procs(_alive(seen), LEFT_S)
    audited = subprocess.run(
        [*ROLLCALL, "audit", str(run)], env=environment, capture_output=True, text=True, check=False
    )
    found = Soak(
        samples,
        judged(samples, WARM_UP * samples[-1].at_s),
        ended,
        early,
        "" if audited.returncode == 0 else (audited.stdout + audited.stderr)[-500:],
        [" ".join(one.cmdline())[:200] for one in left],
    )
    _write(directory / f"soak-{name}", " ".join(command[len(ROLLCALL) :]), found, WARM_UP * samples[-1].at_s)
    return found


def _samples(
    process: subprocess.Popen[bytes],
    driver: psutil.Process,
    run: Path,
    duration_s: float,
    seen: dict[int, psutil.Process],
) -> Iterator[Sample]:
    """From the first learner step on."""
    deadline = time.monotonic() + STARTS_S
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{run}: no learner step; the driver's exit code is {process.poll()}")
        time.sleep(0.5)
    began = time.monotonic()
    with inspect_store(RedisConfig(), run) as store:
        while (at_s := time.monotonic() - began) < duration_s:
            if process.poll() is not None:
                return  # by itself
            with suppress(psutil.NoSuchProcess, redis.RedisError):
                seen |= {child.pid: child for child in driver.children(recursive=True)}
                yield look(at_s, driver, run, store)
            time.sleep(max(0.0, EVERY_S - (time.monotonic() - began - at_s)))


def _alive(seen: Mapping[int, psutil.Process]) -> list[psutil.Process]:
    return [one for one in seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def judged(samples: Sequence[Sample], warm_up_s: float) -> list[Growth]:
    """All that was seen, by name; what has come up once is 0 where it is not there."""
    times, tickets = [sample.at_s for sample in samples], [sample.tickets for sample in samples]
    names = sorted({name for sample in samples for name in sample.values})
    return [
        growth(
            name,
            times,
            tickets,
            [sample.values.get(name, 0.0) for sample in samples],
            allowance(name),
            warm_up_s=warm_up_s,
        )
        for name in names
    ]


def allowance(name: str) -> Allowance:
    """Of the thing itself, or of its kind."""
    return ALLOWED[name] if name in ALLOWED else ALLOWED[name.partition(":")[0]]


def rows_of(name: str, found: Soak) -> Iterator[Row]:
    """A row for each kind, which names what grew most for what it may, and one for how the run ended."""
    first, last = found.samples[0], found.samples[-1]
    minutes = (last.at_s - first.at_s) / 60
    for kind in dict.fromkeys(one.name.partition(":")[0] for one in found.grown):
        own = [one for one in found.grown if one.name.partition(":")[0] == kind]
        worst = [one for one in own if not one.met] or [max(own, key=lambda one: one.share)]
        text = "; ".join(
            f"{one.name}: {amount(one.name, one.last)}, grew by {amount(one.name, one.grown)} of "
            f"{amount(one.name, one.allowed)} allowed ({amount(one.name, one.per_hour)} an hour)"
            for one in worst
        )
        beside = f"; {len(own) - len(worst)} others within theirs" if len(own) > len(worst) else ""
        yield Row(f"{name}, {minutes:.0f} min, {last.tickets:,} tickets", text + beside, all(one.met for one in own))
    left = f"left behind: {'; '.join(found.left)}" if found.left else "nothing left behind"
    books = "balance" if not found.audit else found.audit
    text = f"{'it ended by itself: ' if found.early else ''}exit code {found.ended}, books {books}, {left}"
    yield Row(f"{name}, stopped", text, _is_sound(found))


def _is_sound(found: Soak) -> bool:
    return found.ended == STOPPED and not (found.early or found.audit or found.left)


def _write(path: Path, command: str, found: Soak, warm_up_s: float) -> None:
    """`<path>.json` and `<path>.svg`."""
    names = [one.name for one in found.grown]
    told: dict[str, Any] = {
        "command": f"rollcall {command}",
        "warm_up_s": warm_up_s,
        "kept": all(one.met for one in found.grown),
        "ended": found.ended,
        "early": found.early,
        "audit": found.audit,
        "left": list(found.left),
        "growth": [asdict(one) | {"met": one.met} for one in found.grown],
        "at_s": [round(sample.at_s, 1) for sample in found.samples],
        "tickets": [sample.tickets for sample in found.samples],
        "samples": {name: [sample.values.get(name, 0) for sample in found.samples] for name in names},
    }
    path.with_suffix(".json").write_text(json.dumps(told) + "\n")
    title = f"{path.name}: {found.samples[-1].at_s / 60:.0f} minutes, {found.samples[-1].tickets:,} tickets"
    path.with_suffix(".svg").write_text(picture(title, found.samples, found.grown, warm_up_s=warm_up_s))


if __name__ == "__main__":
    sys.exit(main())
