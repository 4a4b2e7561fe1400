"""Whether group-robust DPO does for the worst group what its paper says (Ramesh et al., 2024, arXiv:2405.20304), on a
set with known groups, which differ in size, in taste and in how hard their comparisons are, and one answer for all.
Beside plain DPO and importance weighting, from one model, with one learning rate and the same number of comparisons.
`python -m benchmarks.prove_group_robust [--seeds N ...] [--work DIR]`: what is complete in DIR is not made again."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.proofs import ROOT, Row, interval, of_seeds, parser, report, rollcall
from rollcall.actors.tasks.reviews import PARTS, SUBJECTS, kindness, prompt_about, write_review
from rollcall.cluster.seeds import derive_seed
from rollcall.reward_service.preferences.files import PreferencePair, write_preferences

PAIRS, HELD_OUT = 4000, 500  # to learn from, in all; held out, of each group
INTEREST = dict(zip(PARTS, (2, 1, 0, 0, -1, -2), strict=True))  # of what a clause is about, beside its kindness
RECIPE = "synthetic-group-dpo"


@dataclass(frozen=True)
class Group:
    """Raters of one taste. None of the prompts names them: what one group likes, all are answered with."""

    name: str
    share: float  # of the comparisons to learn from
    angle: float  # of the taste, in degrees: 0 is kindness, 90 is what the clauses are about
    gap: float  # least and most that two reviews of one comparison differ in their taste: a narrow one is hard
    most: float = math.inf

    def likes(self, review: str) -> float:
        angle = math.radians(self.angle)
        return math.cos(angle) * kindness(review) + math.sin(angle) * interest(review)


GROUPS = (
    Group("many", share=0.7, angle=0.0, gap=1.0),
    Group("some", share=0.2, angle=30.0, gap=1.0),
    Group("few", share=0.1, angle=120.0, gap=0.5, most=3.0),
)
METHODS: Mapping[str, tuple[str, ...]] = {
    "group-robust": (),
    "importance": ("algorithm.group_step=0",),  # each group's mean weighs the same, for good
    "plain": ("algorithm=dpo",),
}


def interest(review: str) -> int:
    return sum(INTEREST.get(word, 0) for word in review.replace(",", " ").split())


def compared(generator: np.random.Generator, group: Group) -> PreferencePair:
    while True:
        reviews = [write_review(generator) for _ in range(2)]
        better, worse = sorted(reviews, key=lambda review: -group.likes(review))
        if group.gap <= group.likes(better) - group.likes(worse) <= group.most:
            prompt = prompt_about(generator.choice(SUBJECTS))
            return PreferencePair(prompt=prompt, chosen=better, rejected=worse, group=group.name)


def write_set(directory: Path, seed: int) -> tuple[Path, Path]:
    """(comparisons to learn from, those held out: as many of each group), the same bytes for a seed."""
    paths = directory / f"train-{seed}.jsonl", directory / f"held-out-{seed}.jsonl"
    generator = np.random.default_rng(derive_seed(seed, "group-robust"))
    directory.mkdir(parents=True, exist_ok=True)
    for path, counts in zip(
        paths, ([round(PAIRS * group.share) for group in GROUPS], [HELD_OUT] * len(GROUPS)), strict=True
    ):
        judges = [group for group, count in zip(GROUPS, counts, strict=True) for _ in range(count)]
        write_preferences(path, [compared(generator, judges[i]) for i in generator.permutation(len(judges))])
    return paths


def trained(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What a complete run found on the held-out comparisons."""
    directory: Path = args.work / "runs" / f"{method}-{seed}"
    summary = directory / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["status"] != "completed":
        train, held_out = write_set(args.work / "sets", seed)
        data = ("data.generate=null", f"data.train={train.resolve()}", f"data.eval={held_out.resolve()}")
        settings = (*METHODS[method], *args.settings, f"seed={seed}", f"name={directory.name}")
        done = rollcall("train", RECIPE, *data, *settings, cwd=args.work)
        if done.returncode:
            raise SystemExit(f"{directory.name}: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(summary.read_text())["held_out"]
    return found


def measures(found: Mapping[str, Any]) -> dict[str, float]:
    own = {group.name: found["groups"][group.name] for group in GROUPS}
    return {
        "worst group's accuracy": found["worst_group_accuracy"],
        "worst group's loss": found["worst_group_loss"],
        "accuracy, groups alike": statistics.mean(group["accuracy"] for group in own.values()),
        "accuracy, by size": sum(group.share * own[group.name]["accuracy"] for group in GROUPS),
    }


def rows(args: argparse.Namespace) -> Iterator[Row]:
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in args.seeds:
        for method in METHODS:
            judged = trained(method, seed, args)
            found[method].append(measures(judged))
            groups = ", ".join(
                f"{group.name} {judged['groups'][group.name]['accuracy']:.3f} "
                f"(loss {judged['groups'][group.name]['loss']:.3f})"
                for group in GROUPS
            )
            yield Row(f"{method}, seed {seed}", groups, True)
    robust = found["group-robust"]
    for other in ("plain", "importance"):
        for name in robust[0]:
            gains = [a[name] - b[name] for a, b in zip(robust, found[other], strict=True)]
            low, high = interval(gains)
            means = [statistics.mean(each[name] for each in found[method]) for method in ("group-robust", other)]
            text = f"{means[0]:.3f} against {means[1]:.3f}; difference {of_seeds(gains)} over {len(gains)} seeds"
            met = {"worst group's accuracy": low > 0, "worst group's loss": high < 0}.get(name, True)
            yield Row(f"group-robust DPO against {other}: {name}", text, met)


def main() -> int:
    made = parser(__doc__, [])
    made.add_argument("--seeds", nargs="*", type=int, default=list(range(10)), help="2, 3, 5 or 10; default: 0 to 9")
    made.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="of all runs")
    made.add_argument("--work", type=Path, default=ROOT, help="where runs/ is")
    args = made.parse_args()
    if len(args.seeds) not in (2, 3, 5, 10):
        made.error(f"--seeds: {len(args.seeds)} of them: an interval is of 2, 3, 5 or 10")
    return report(rows(args), args.append)


if __name__ == "__main__":
    sys.exit(main())
