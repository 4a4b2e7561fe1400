"""What the soak calls a leak: synthetic ones of every shape are found, and what only breathes is none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.prove_soak import ALLOWED, MB, Soak, allowance, judged, rows_of
from benchmarks.soak.growth import Allowance, Growth, growth, slope
from benchmarks.soak.picture import picture
from benchmarks.soak.samples import DRIVER, Sample, directory_bytes, process_values

TIMES = np.arange(0.0, 3600.0, 5.0)
TICKETS = 40.0 * TIMES
MEMORY = Allowance(per_hour=6 * MB)
Shape = Callable[[np.random.Generator], np.ndarray[Any, np.dtype[Any]]]


def grown(values: np.ndarray[Any, np.dtype[Any]], allowed: Allowance = MEMORY) -> Growth:
    return growth("memory: x", list(TIMES), list(TICKETS), list(values), allowed, warm_up_s=900)


def noise(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[Any]]:
    return 400 * MB + rng.normal(0, 3 * MB, len(TIMES))


HEALTHY: dict[str, Shape] = {
    "noise": noise,
    "a cache that fills while it warms up": lambda rng: noise(rng) + 200 * MB * (1 - np.exp(-TIMES / 200)),
    "peaks, a fifth of the time": lambda rng: noise(rng) + 900 * MB * (rng.random(len(TIMES)) < 0.2),
    "teeth": lambda rng: noise(rng) + 20 * MB * (TIMES % 200) / 200,
    "memory that is given back": lambda rng: noise(rng) - 30 * MB * TIMES / 3600,
}
LEAKING: dict[str, Shape] = {
    "a line": lambda rng: noise(rng) + 16 * MB * TIMES / 3600,
    "a line below peaks": lambda rng: noise(rng) + 16 * MB * TIMES / 3600 + 900 * MB * (rng.random(len(TIMES)) < 0.2),
    "one step up, of which nobody knows whether it was the last": lambda rng: noise(rng) + 50 * MB * (TIMES > 2000),
    "stairs, as an allocator takes pages": lambda rng: 400 * MB + 4 * MB * (TIMES // 600) + 0 * noise(rng),
    "only once work goes on, after half an hour": lambda rng: (
        noise(rng) + 60 * MB * np.clip(TIMES - 1800, 0, None) / 3600
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HEALTHY)
def test_what_breathes_does_not_leak(name: str, seed: int) -> None:
    found = grown(HEALTHY[name](np.random.default_rng(seed)))
    assert found.met, found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LEAKING)
def test_a_leak_is_found_below_noise_teeth_and_steps(name: str, seed: int) -> None:
    found = grown(LEAKING[name](np.random.default_rng(seed)))
    assert not found.met and found.share > 1.4, found


def test_a_file_left_open_now_and_then_is_found_among_many() -> None:
    files = Allowance(per_hour=1, teeth=2)
    rng = np.random.default_rng(0)
    busy = 60.0 + rng.integers(0, 8, len(TIMES))
    assert grown(busy, files).met
    assert not grown(busy + TIMES // 480, files).met, "one in eight minutes"


def test_a_leak_by_tickets_is_found_where_the_work_has_slowed_down() -> None:
    """All of the work in the first half: over time the line is bent, over tickets it is straight."""
    tickets = np.minimum(TIMES, 1800) * 100.0
    values = list(400 * MB + 200 * tickets)
    found = growth("x", list(TIMES), list(tickets), values, Allowance(per_ticket=100), warm_up_s=0)
    assert found.per_ticket == pytest.approx(200) and not found.met
    assert growth("x", list(TIMES), list(tickets), values, Allowance(per_ticket=201), warm_up_s=0).met


def test_a_slope_is_the_median_of_those_between_all_pairs() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 2.0, 4.0]), np.array([0.0, 1.0, 9.0, 2.0, 4.0])
    pairs = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(5) for j in range(i + 1, 5) if x[j] > x[i]]
    assert slope(x, y) == np.median(pairs) == 1.0
    assert slope(np.zeros(3), np.arange(3.0)) == 0.0, "no time has passed"


def test_a_look_that_is_too_short_says_so() -> None:
    with pytest.raises(ValueError, match="4 samples after a warm-up of 3580 s; ten are the least: look longer"):
        growth("memory: x", list(TIMES), list(TICKETS), list(TIMES), MEMORY, warm_up_s=3580)


HOLDS = """
import sys, time
kept, size = [], int(sys.argv[1])
print("here", flush=True)
while True:
    kept.append(bytearray(size or 1 << 18))
    if not size:
        kept.clear()
    time.sleep(0.02)
"""


def test_a_process_that_leaks_is_found_by_its_samples_and_one_that_does_not_is_not() -> None:
    samples: list[Sample] = []
    with (
        subprocess.Popen([sys.executable, "-c", HOLDS, str(1 << 18)], stdout=subprocess.PIPE) as leaking,
        subprocess.Popen([sys.executable, "-c", HOLDS, "0"], stdout=subprocess.PIPE) as sound,
    ):
        try:
            for one in (leaking, sound):
                assert one.stdout is not None and one.stdout.readline() == b"here\n"
            began = time.monotonic()
            while (at_s := time.monotonic() - began) < 1.5:
                values = process_values(leaking.pid, "learner") | process_values(sound.pid, "actors")
                samples.append(Sample(at_s, len(samples), values))
                time.sleep(0.03)
        finally:
            leaking.kill()
            sound.kill()
    found = {one.name: one for one in judged(samples, 0.2)}
    # The first one takes 12 MB a second, 45 GB an hour, less on a busy machine; the second one nothing.
    assert not found["memory: learner"].met and found["memory: learner"].per_hour > 1000 * MB
    assert found["memory: actors"].grown < 0.3 * MB
    assert found["open files: learner"].met and found["threads: learner"].last == 1
    [memory, *others] = [
        row for row in rows_of("x", Soak(samples, list(found.values()), 130, False, "", [])) if not row.met
    ]
    assert "memory: learner" in memory.text and "1 others within theirs" in memory.text and not others
    drawn = picture("a soak", samples, list(found.values()), warm_up_s=0.2)
    assert drawn.count("<polyline") == len(found) and drawn.count('stroke="#dc2626"') == 1


def test_a_run_that_leaves_a_process_or_unbalanced_books_fails_whatever_it_held() -> None:
    samples = [Sample(float(at), at, {f"memory: {DRIVER}": MB}) for at in range(20)]
    sound = Soak(samples, judged(samples, 1.0), 130, False, "", [])
    wrongs: list[dict[str, Any]] = [
        {"ended": 1},
        {"early": True},
        {"audit": "ticket 7: lost"},
        {"left": ["ray::Learner"]},
    ]
    for wrong in wrongs:
        *_, last = rows_of("x", replace(sound, **wrong))
        assert not last.met, wrong
    assert all(row.met for row in rows_of("x", sound))


def test_everything_that_is_sampled_has_its_bound() -> None:
    this = psutil.Process()
    for name in process_values(this.pid, DRIVER):
        assert allowance(name).per_hour > 0
    kinds = {name.partition(":")[0] for name in ALLOWED}
    assert kinds == {"memory", "shared memory", "data", "disk", "open files", "threads"}


def test_what_is_told_of_each_step_is_told_apart_from_what_stays(tmp_path: Path) -> None:
    files = {
        "metrics.jsonl": 1,
        "tensorboard/events.out": 2,
        "logs/driver.log": 4,
        "report.html": 8,
        "policy/model": 16,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert directory_bytes(tmp_path) == {"lines per step": 3, "logs": 4, "others": 24}
