"""Kills, stops and faults by the hundred: runs of every kind, whose processes are killed at random and at every seam,
and whose disk, Redis, network and clock fail them. After each run its books are read twice (by `rollcall audit`, and by
a reading of its own), its weights compared with those of an undisturbed run where they must be alike, and what it has
left behind is looked for. Prints a table and one JSON object; appends each finished round to a file, and goes on there.

    python -m benchmarks.prove_chaos --kills 1000 --side-by-side 2 --directory /var/tmp/chaos
    python -m benchmarks.prove_chaos --rounds 1 --kinds "control in one process" --seed 3

How it is drawn: kinds of runs follow each other in an order drawn by the seed, each as often as
benchmarks/chaos/kinds.py says. In a run, whom a strike hits, whether it kills or stops for half a second to three, and
before or after which seam, is drawn by the round's seed, by the weights there, among those who are there. Three of ten
strikes do not wait for the recovery from the one before, and so hit processes that start."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.chaos.kinds import CYCLE, KINDS
from benchmarks.chaos.round import Round, undisturbed
from benchmarks.chaos.struck_run import FOLDER, StoppedByOthers
from benchmarks.chaos.surroundings import Unavailable
from benchmarks.chaos.table import summed_up, table
from benchmarks.proofs import ROOT

ROUNDS, REFERENCES = "rounds.jsonl", "references.json"


class Campaign:
    """Rounds into one directory, some side by side, until there are enough."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._directory: Path = arguments.directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {name: threading.Lock() for name in KINDS}
        self.done = [json.loads(line) for line in self._lines()]
        self._plan = _plan(arguments.seed, arguments.kinds or list(KINDS))
        for _ in self.done:
            next(self._plan)
        self._begun = 0
        self.lacking: dict[str, str] = {}
        self.ends = threading.Event()

    def _lines(self) -> list[str]:
        path = self._directory / ROUNDS
        return path.read_text().splitlines() if path.exists() else []

    def carry_out(self) -> None:
        with ThreadPoolExecutor(self._arguments.side_by_side) as pool:
            for lane in [pool.submit(self._lane) for _ in range(self._arguments.side_by_side)]:
                lane.result()

    def _lane(self) -> None:
        while not self.ends.is_set():
            with self._lock:
                if self._is_enough():
                    return
                self._begun += 1
                name, seed = next(self._plan)
            try:
                made = Round(name, seed, kills=self._arguments.kills_a_round)
                result = made.carry_out(self._reference(name)).as_json()
            except Unavailable as lack:
                self.lacking[name] = str(lack)
                continue
            except StoppedByOthers as error:
                print(f"{name} {seed} was stopped by somebody else, and counts for nothing: {error}", flush=True)
                continue
            with self._lock:
                self.done.append(result | {"commit": _commit(), "at": time.strftime("%Y-%m-%d %H:%M:%S")})
                with (self._directory / ROUNDS).open("a") as file:
                    file.write(json.dumps(self.done[-1]) + "\n")
                self._tell(result)

    def _is_enough(self) -> bool:
        wanted, rounds = self._arguments.kills, self._arguments.rounds
        if rounds is not None and self._begun >= rounds:
            return True
        return wanted is not None and summed_up(self.done)["kills"] >= wanted

    def _reference(self, name: str) -> str | None:
        """The hash of an undisturbed run of this kind: made once for these settings."""
        if not KINDS[name].hashed:
            return None
        path, key = self._directory / REFERENCES, " ".join(KINDS[name].command)
        with self._making[name]:
            with self._lock:
                known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
            if key not in known:
                found = undisturbed(name)
                with self._lock:
                    known = json.loads(path.read_text()) if path.exists() else {}
                    path.write_text(json.dumps(known | {key: found}, indent=1))
                known[key] = found
        return known[key]

    def _tell(self, result: dict[str, Any]) -> None:
        kills = sum(strike["how"] == "kill" or strike["how"].startswith("seam") for strike in result["strikes"])
        text = "; ".join(result["faults"]) or "as expected"
        total = summed_up(self.done)["kills"]
        print(f"{total:5d}  {result['kind']}, {kills} kills in {result['wall_s']:.0f} s: {text}", flush=True)


def _plan(seed: int, kinds: list[str]) -> Iterator[tuple[str, str]]:
    """Kind and seed of each round, for ever."""
    chance, number = random.Random(seed), 0
    while True:
        cycle = [name for name in kinds for _ in range(CYCLE[name])]
        chance.shuffle(cycle)
        for name in cycle:
            yield name, f"{seed}.{number}"
            number += 1


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="until there are so many in the directory's rounds")
    parser.add_argument("--rounds", type=int, help="so many more at the most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), help="of these alone")
    parser.add_argument("--side-by-side", type=int, default=1, help="rounds at a time")
    parser.add_argument("--kills-a-round", type=int, help="default: as its kind says")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp/rollcall-chaos"), help="of finished rounds")
    parser.add_argument("--tell", action="store_true", help="only sum up what there is")
    arguments = parser.parse_args()
    if arguments.kills is None and arguments.rounds is None:
        arguments.kills = 1000
    os.environ.setdefault(FOLDER, str(arguments.directory))
    campaign = Campaign(arguments)
    if not arguments.tell:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: campaign.ends.set())  # rounds under way are finished
        campaign.carry_out()
    sums = summed_up(campaign.done)
    print(table(sums))
    for name, lack in campaign.lacking.items():
        print(f"left out: {name}: {lack}")
    print(json.dumps(sums))
    return 1 if sums["broken_rounds"] else 0


if __name__ == "__main__":
    sys.exit(main())
