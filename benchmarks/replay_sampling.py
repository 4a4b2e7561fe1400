"""What a replay buffer of HalfCheetah's size takes of memory, and how long a batch takes to be drawn from it:
uniformly, by priority, and over three steps. Prints a line for each.

    python benchmarks/replay_sampling.py [rows]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import psutil

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.learners.data.priorities import Priorities
from rollcall.learners.data.replay import ReplayBuffer
from rollcall.learners.data.replay_config import PriorityConfig

NUM_ENVS, NUM_STEPS, BATCH = 8, 1000, 256
OBSERVATION, ACTION = 17, 6  # HalfCheetah-v5's, float64 and float32


def _unit(number: int, rng: np.random.Generator) -> GymTrajectory:
    """A whole episode of each env, truncated at its end."""
    shape = (NUM_STEPS, NUM_ENVS)
    shown = rng.normal(size=(*shape, OBSERVATION))
    starts, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    starts[0], truncated[-1] = True, True
    index = np.stack([np.full(NUM_ENVS, NUM_STEPS - 1), np.arange(NUM_ENVS)], axis=1)
    steps: EnvSteps[Array] = EnvSteps(
        {"observation": shown},
        rng.normal(size=(*shape, ACTION)).astype(np.float32),
        np.zeros(shape, np.float32),
        rng.normal(size=shape).astype(np.float32),
        np.zeros(shape, bool),
        truncated,
        np.ones(shape, bool),
        starts,
    )
    last = {"observation": shown[-1]}
    return GymTrajectory(Header(number, 1, 1), 0, 0, number, Unroll(steps, last, index, last))


def _median_ms(draw: Callable[[], object], number: int = 300) -> float:
    times = []
    for _ in range(number):
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rng, process = np.random.default_rng(0), psutil.Process()
    before = process.memory_info().rss
    buffer = ReplayBuffer(capacity=rows, num_envs=NUM_ENVS)
    priorities = Priorities(PriorityConfig(), buffer.num_slots)
    began, units = time.perf_counter(), 0
    while buffer.num_transitions < 0.99 * rows:
        slots, begins = buffer.add(_unit(units, rng), env_steps=(units + 1) * NUM_STEPS * NUM_ENVS)
        buffer.keep()
        priorities.add(slots, begins, rng.exponential(size=len(slots)))
        priorities.keep()
        units += 1
    print(f"{buffer.num_transitions:,} transitions: {buffer.size_bytes / 1e6:.0f} MB in the ring, and of priorities")
    print(
        f"{priorities.size_bytes / 1e6:.0f} MB; the process grew by {(process.memory_info().rss - before) / 1e6:.0f} MB"
    )
    print(f"filled in {time.perf_counter() - began:.1f} s, the making of random units counted")

    def uniform(n_step: int) -> object:
        return buffer.transitions(buffer.uniform(BATCH, rng), n_step=n_step, discount=0.99)

    def prioritised() -> object:
        slots = priorities.draw(BATCH, rng)
        weights = priorities.weights(slots, num_transitions=buffer.num_transitions, done=0.5)
        return buffer.transitions(slots, n_step=1, discount=0.99, weights=weights)

    print(f"{BATCH} of them, uniformly: {_median_ms(lambda: uniform(1)):.3f} ms")
    print(f"of 3 steps: {_median_ms(lambda: uniform(3)):.3f} ms")
    print(f"by priority: {_median_ms(prioritised):.3f} ms")
    errors, slots = rng.exponential(size=BATCH), priorities.draw(BATCH, rng)
    print(f"priorities of {BATCH} set: {_median_ms(lambda: priorities.set(slots, errors)):.3f} ms")


if __name__ == "__main__":
    main()
