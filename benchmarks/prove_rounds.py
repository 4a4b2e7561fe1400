"""Whether rounds of labels are worth asking for: rlhf-reviews with 4 rounds of 600 labels against one round of 2,400.
How right each final reward model is about pairs of its final policy's samples, and the true measure: where both reach
the same KL for the first time, and in the end. The ends come near one KL where each has its own weight of it: `--many
algorithm.kl_coef=0.1 --one algorithm.kl_coef=0.02`. `python -m benchmarks.prove_rounds [--seeds N ...] [--work DIR]`:
a run that is complete in DIR is not made again."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.proofs import ROOT, Row, of_seeds, parser, report, rollcall
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.reviews import Reviews, ReviewsConfig, kindness_of_a_review
from rollcall.actors.trajectory_scoring import asked_of
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.deploy.kinds.language.text_preferences import sampled_texts
from rollcall.deploy.preferences.accuracy import Accuracy
from rollcall.deploy.preferences.fresh_labels import FreshLabels
from rollcall.reward_service.preferences.files import PreferencePair

PAIRS = 2000  # sampled of each final policy
WINDOW = 5  # learner steps over which KL and the true measure are averaged: 256 samples each
LAST = 10  # learner steps at the end, likewise
ARMS = (4, 1)  # rounds


def trained(rounds: int, seed: int, args: argparse.Namespace) -> Path:
    """The directory of a complete run."""
    directory: Path = args.work / "runs" / f"rounds-{rounds}-seed-{seed}"
    summary = directory / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["status"] != "completed":
        own = args.one if rounds == 1 else args.many
        settings = (f"seed={seed}", f"preferences.rounds={rounds}", *args.settings, *own)
        done = rollcall("train", "rlhf-reviews", *settings, f"name={directory.name}", cwd=args.work)
        if done.returncode:
            raise SystemExit(f"{directory.name}: {done.stderr.strip()[-400:]}")
    return directory


def right_about_its_policy(directory: Path) -> Accuracy:
    """The final reward model, about pairs of its final policy's samples, judged without error; ties say nothing."""
    task, policy = Reviews(ReviewsConfig()), directory / "policy"
    drawn = sampled_texts(
        task, TextCodec(policy), policy, candidates=2, sampling=SamplingConfig(max_tokens=32), seed=12345
    )
    pairs = []
    for row, (a, b) in islice(drawn, PAIRS):
        liked = {text: kindness_of_a_review(row.prompt, text) for text in (a, b)}
        better, worse = sorted((a, b), key=lambda text: -liked[text])
        tie = liked[a] == liked[b]
        pairs.append(PreferencePair(prompt=asked_of(task, row), chosen=better, rejected=worse, tie=tie))
    models = directory / "reward_models"
    current = models / "current"
    found = FreshLabels(pairs).accuracy(current if current.exists() else models / "trained" / "model")
    assert found is not None, "not all samples are equally kind"
    return found


def curve(directory: Path, width: int = WINDOW) -> list[tuple[float, float]]:
    """(KL to the reference a token, true measure) over the run, averaged over so many steps."""
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()
    ]
    values = [(record["kl_reference"], record["reward_task"]) for record in records]
    windows = [values[i : i + width] for i in range(len(values) - width + 1)]
    return [(_mean(kl for kl, _ in window), _mean(true for _, true in window)) for window in windows]


def ending(directory: Path) -> tuple[float, float]:
    """(KL to the reference a token, true measure), over the last LAST steps."""
    return curve(directory, LAST)[-1]


def true_at(kl: float, points: Sequence[tuple[float, float]]) -> float:
    """Where the KL is first reached, between two points of the curve."""
    for (kl_a, true_a), (kl_b, true_b) in pairwise(points):
        if kl_a <= kl <= kl_b and kl_b > kl_a:
            return true_a + (true_b - true_a) * (kl - kl_a) / (kl_b - kl_a)
    return points[-1][1]


def rows(args: argparse.Namespace) -> Iterator[Row]:
    accuracy: dict[int, list[float]] = {arm: [] for arm in ARMS}
    true: dict[int, list[float]] = {arm: [] for arm in ARMS}
    last: dict[int, list[float]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        runs = {arm: trained(arm, seed, args) for arm in ARMS}
        curves = {arm: curve(run) for arm, run in runs.items()}
        kl = min(max(kl for kl, _ in points) for points in curves.values())
        for arm, run in runs.items():
            found, (last_kl, last_true) = right_about_its_policy(run), ending(run)
            accuracy[arm].append(found.accuracy)
            true[arm].append(true_at(kl, curves[arm]))
            last[arm].append(last_true)
            text = (
                f"final reward model right about {found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}] of {found.n} "
                f"pairs of its final policy; true measure {true[arm][-1]:.3f} at KL {kl:.2f}, in the end "
                f"{last_true:.3f} at {last_kl:.2f}"
            )
            yield Row(f"`rollcall train rlhf-reviews preferences.rounds={arm} seed={seed}`", text, True)
    many, one = ARMS
    for name, values in (
        ("accuracy on the final policy's samples", accuracy),
        ("true measure where the same KL is first reached", true),
        ("true measure in the end", last),
    ):
        gains = [a - b for a, b in zip(values[many], values[one], strict=True)]
        text = f"{of_seeds(values[many])} against {of_seeds(values[one])}; difference {of_seeds(gains)}"
        yield Row(
            f"4 rounds of 600 against one of 2,400, {len(gains)} seeds: {name}", text, statistics.mean(gains) >= 0
        )


def _mean(values: Iterator[float]) -> float:
    return statistics.mean(values)


def main() -> int:
    made = parser(__doc__, [])
    made.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="default: 0 1 2")
    made.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="of all runs: runtime=serial")
    made.add_argument("--many", nargs="*", default=[], metavar="key=value", help="besides, of those with 4 rounds")
    made.add_argument("--one", nargs="*", default=[], metavar="key=value", help="besides, of those with one round")
    made.add_argument("--work", type=Path, default=ROOT, help="where runs/ is")
    args = made.parse_args()
    return report(rows(args), args.append)


if __name__ == "__main__":
    sys.exit(main())
