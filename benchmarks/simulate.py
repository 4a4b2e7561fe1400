"""Simulated runs by their seeds: thousands of schedules of deaths, partitions, late answers and outages against the
real loop, ledger and parameter server. Prints one JSON object. A seed that breaks a promise is shrunk, and the command
that shows it printed.

    python -m benchmarks.simulate --seeds 10000
    python -m benchmarks.simulate --seed 17
    python -m benchmarks.simulate --seeds 200 --planted double_commit
    python -m benchmarks.simulate --cost
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from typing import Any

from tests.simulation.cost import cost_table
from tests.simulation.drive import Outcome, private_redis, run
from tests.simulation.planted import PLANTED
from tests.simulation.schedule import Schedule
from tests.simulation.shrink import shrink


def simulate(arguments: argparse.Namespace) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    broken: list[Outcome] = []
    seeds = range(arguments.first, arguments.first + arguments.seeds) if arguments.seed is None else [arguments.seed]
    with ExitStack() as stack:
        client = stack.enter_context(private_redis()) if arguments.real_redis else None
        stack.enter_context(PLANTED[arguments.planted]() if arguments.planted else nullcontext())
        for seed in seeds:
            outcome = run(_schedule(arguments, seed), client)
            totals["seeds"] += 1
            for name in ("tickets", "drivers", "steps", "redis_calls", "sealed"):
                totals[name] += getattr(outcome, name)
            totals["simulated_s"] += round(outcome.simulated_s)
            faults.update(name.partition(":")[0] for name in outcome.faults)
            if outcome.violation:
                broken.append(outcome)
                if len(broken) >= arguments.enough:
                    break
        least = shrink(broken[0], lambda schedule: run(schedule, client)) if broken else None
    return {
        **totals,
        "faults": dict(sorted(faults.items())),
        "violations": len(broken),
        "found": [{"seed": found.schedule.seed, "what": found.text[:300]} for found in broken],
        "least": least
        and {"what": least.text[:300], "faults": len(least.faults), "command": _command(arguments, least)},
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def _schedule(arguments: argparse.Namespace, seed: int) -> Schedule:
    only = frozenset(arguments.only.split(",")) if arguments.only else None
    return Schedule(seed, arguments.actors, arguments.batch, arguments.steps, only, arguments.quiet)


def _command(arguments: argparse.Namespace, least: Outcome) -> str:
    return least.schedule.command() + (f" --planted {arguments.planted}" if arguments.planted else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--actors", type=int, help="how many, whatever the seed says")
    parser.add_argument("--batch", type=int, help="tickets of a learner step, whatever the seed says")
    parser.add_argument("--steps", type=int, help="learner steps, whatever the seed says")
    parser.add_argument("--only", help="the faults that happen, by name, with commas between them")
    parser.add_argument("--quiet", action="store_true", help="no faults")
    parser.add_argument("--planted", choices=sorted(PLANTED), help="a bug to be found")
    parser.add_argument("--enough", type=int, default=5, help="stop after so many broken seeds")
    parser.add_argument("--real-redis", action="store_true", help="on a real server: twenty times as slow")
    parser.add_argument("--cost", action="store_true", help="what a ticket costs with 1 to 10,000 actors, instead")
    arguments = parser.parse_args()
    result = cost_table() if arguments.cost else simulate(arguments)
    print(json.dumps(result, indent=1))
    return 1 if result.get("violations") else 0


if __name__ == "__main__":
    sys.exit(main())
