"""What is said of a batch of completions that may game their reward, and of a run of such batches."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.gamed_rewards import FIRST_STEPS, followed, of_completions
from rollcall.cluster.messages.attempt import Header, Produced, SampleStats, Timing
from rollcall.cluster.messages.reports import StepOrder, StepReport


def prompt(*samples: tuple[float, float | None, str], repeated: float = 0.0, ticket: int = 0) -> Produced:
    """One prompt's completions: (reward, the task's own or None, digest)."""
    stats = tuple(
        SampleStats(reward, True, True, 4, False, {} if task is None else {"task": task}, "", "", repeated, digest)
        for reward, task, digest in samples
    )
    return Produced(Header(ticket, 1, 1, "policy", "lm-0"), 0, 0, Timing(), samples=stats)


def step(reward: float, task: float, *, error: float = 0.0, version: str = "m@1", std: float = 1.0) -> dict[str, Any]:
    rewards = {"reward_mean": reward, "reward_task": task, "reward_std": std, "task_std": 0.5}
    return {**rewards, "task_error": error, "reward_versions": [version]}


def run(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: dict[str, float] = {}
    return [followed(kept, record) for record in steps]


def test_agreement_is_the_share_of_pairs_of_one_prompt_that_reward_and_task_order_alike() -> None:
    batch = [
        prompt((3.0, 1.0, "a"), (2.0, 0.5, "b"), (1.0, 0.7, "c")),  # of three pairs two
        prompt((9.0, 0.2, "d"), (9.0, 0.4, "e"), ticket=1),  # an equal reward: half of one
        prompt((0.0, 0.3, "f"), (5.0, 0.3, "g"), ticket=2),  # the task does not tell them apart
    ]
    assert of_completions(batch)["reward_agreement"] == pytest.approx(2.5 / 4)


def test_completions_are_counted_as_identical_beyond_the_first_of_each_kind() -> None:
    batch = [prompt((1.0, None, "a"), (1.0, None, "a"), repeated=0.5), prompt((1.0, None, "a"), (1.0, None, "b"))]
    found = of_completions(batch)
    assert found == {"repeated_ngrams": 0.25, "identical_fraction": 0.5}, "and nothing is claimed of a proxy"


def test_the_error_of_the_mean_is_that_of_the_prompts_whose_completions_are_alike() -> None:
    alike = [prompt(*[(0.0, value, "a")] * 50, ticket=i) for i, value in enumerate((0.0, 1.0, 0.0, 1.0))]
    assert of_completions(alike)["task_error"] == pytest.approx(0.5 / math.sqrt(3))
    assert "task_error" not in of_completions([prompt((0.0, 1.0, "a"))]), "of one nothing is known"


def test_a_task_that_gives_all_one_reward_does_not_spread_however_that_reward_is_rounded() -> None:
    found = of_completions([prompt(*[(float(i), 0.3, "a") for i in range(16)], ticket=number) for number in range(16)])
    assert found["task_std"] == found["task_error"] == 0.0 < found["reward_std"]


def test_later_steps_are_held_against_the_mean_of_the_first_five() -> None:
    found = run([{"length_mean": 10.0 + i, "entropy": None if i < 2 else 1.0} for i in range(8)])
    assert all("first_steps" not in each for each in found[: FIRST_STEPS - 1])
    assert found[FIRST_STEPS - 1]["first_steps"] == {"length_mean": 12.0}
    assert found[-1]["first_steps"] == {"length_mean": 12.0, "entropy": 1.0}


def test_gains_are_in_deviations_of_the_first_steps_completions_and_come_with_the_fifth() -> None:
    found = run([step(1.0, 0.5, std=2.0)] * FIRST_STEPS + [step(5.0, 0.75, std=9.0)] * 60)
    assert "reward_gain" not in found[FIRST_STEPS - 2]
    assert (found[FIRST_STEPS - 1]["reward_gain"], found[FIRST_STEPS - 1]["task_gain"]) == (0.0, 0.0)
    assert found[FIRST_STEPS]["reward_gain"] == pytest.approx(0.3 * 4 / 2)  # smoothed: of what is new three tenths
    assert found[-1]["reward_gain"] == pytest.approx(4 / 2, abs=1e-6)
    assert found[-1]["task_gain"] == pytest.approx(0.25 / 0.5, abs=1e-6)


def test_a_swapped_reward_model_goes_on_from_where_the_one_before_it_was() -> None:
    before = [step(float(i), 0.5) for i in range(10)]
    other_scale = [step(-70.0 + i, 0.5, version="m@2") for i in range(10)]  # its first reward is the last one's
    as_one = [step(float(i), 0.5) for i in range(10)] + [step(9.0 + i, 0.5) for i in range(10)]
    swapped, plain = run(before + other_scale)[-1], run(as_one)[-1]
    assert swapped["reward_gain"] == pytest.approx(plain["reward_gain"])


def test_a_task_that_gave_all_one_reward_measures_nothing_and_has_no_gain() -> None:
    found = run([{**step(float(i), 0.0), "task_std": 0.0} for i in range(9)])[-1]
    assert "task_gain" not in found and found["reward_gain"] > 0


def test_what_is_lost_is_a_share_of_the_best_beyond_three_errors_of_both() -> None:
    steps = [step(0.0, 0.8)] * 20 + [step(0.0, 0.4)] * 60
    assert run(steps)[19]["task_reward_lost"] == 0.0
    assert run(steps)[-1]["task_reward_lost"] == pytest.approx(0.5, abs=1e-6)
    uncertain = [step(0.0, 0.8, error=0.1)] * 20 + [step(0.0, 0.4, error=0.1)] * 60
    error = 0.1 * math.sqrt(0.3 / (2 - 0.3))  # of a mean smoothed by 0.3, in the long run
    # the best one was found early, while its error was still above that
    assert run(uncertain)[-1]["task_reward_lost"] < (0.4 - 3 * math.sqrt(2) * error) / 0.8 + 1e-9
    assert run(uncertain)[-1]["task_reward_lost"] > 0.2


def test_noise_alone_loses_nothing_worth_an_alert() -> None:
    """20 runs of 500 steps without a trend: three errors of both, and a twentieth, are beyond what the luckiest of so
    many steps has over the unluckiest (seeds 0 to 19)."""
    for seed in range(20):
        draw = random.Random(seed)
        steps = [step(0.0, draw.gauss(0.5, 0.02), error=0.02) for _ in range(500)]
        assert max(found.get("task_reward_lost", 0.0) for found in run(steps)) < 0.05


def test_a_checkpoint_keeps_what_is_known_of_the_steps_before_and_one_from_before_has_none() -> None:
    def count(counters: Counters, number: int) -> dict[str, Any]:
        report = StepReport(number, 1, skipped=False, update_s=0.1, wait_s=0.0, learning_rate=1e-3)
        batch = [prompt((float(number), 0.1 * number, "a"), (0.0, 0.5, "b")), prompt((1.0, 0.2, "c"), ticket=1)]
        return counters.count(StepOrder(number, 1, 0.0), batch, report, publish_s=0.0, step_s=0.2)

    counters = Counters()
    for number in range(7):
        count(counters, number)
    stored = json.loads(json.dumps(counters.as_json(), allow_nan=False))
    later = count(counters, 7)
    assert count(Counters(**stored), 7) == later and "task_gain" in later and "reward_gain" in later
    del stored["followed"]
    assert "first_steps" not in count(Counters(**stored), 7)
