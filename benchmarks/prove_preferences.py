"""The proofs of learning from preferences: a reward model of known reward, DPO, IPO and KTO, group-robust DPO against
DPO, HH's dialogues where their file is given, a pendulum without reward, RLHF with and without its penalty.
`python -m benchmarks.prove_preferences [--only NAME ...] [--hh FILE]`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium

from benchmarks.proofs import ROOT, Row, parser, report, rollcall
from rollcall.cluster.seeds import derive_seed

T_QUANTILE = {2: 4.303, 4: 2.776}  # of Student's distribution at 97.5%, by degrees of freedom
LN_2 = math.log(2)


def run(*arguments: str, work: Path) -> dict[str, Any]:
    """The summary of one run of the command line."""
    name = f"{arguments[-1].split('=')[-1]}-{time.monotonic_ns()}"
    done = rollcall(*arguments[:-1], f"name={name}", cwd=work)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:-1])}: {done.stderr.strip()[-400:]}")
    summary: dict[str, Any] = json.loads((work / "runs" / name / "summary.json").read_text())
    return summary | {"run": f"runs/{name}"}


def shown(found: dict[str, Any]) -> str:
    accuracy = found.get("accuracy", found.get("mean"))
    return f"{accuracy:.3f} [{found['low']:.3f}, {found['high']:.3f}] of {found['n']}"


def reward(args: argparse.Namespace) -> Iterator[Row]:
    for seed in args.seeds or range(3):
        summary = run("reward", "train", "synthetic-reward", f"seed={seed}", "reward", work=args.work)
        error = summary["calibration"]["expected_calibration_error"]
        text = f"{shown(summary['held_out'])}; calibration error {error:.3f}"
        met = summary["held_out"]["accuracy"] >= 0.9
        yield Row(f"`rollcall reward train synthetic-reward seed={seed}`", f"held out {text} (0.9)", met)


def direct(args: argparse.Namespace) -> Iterator[Row]:
    for recipe in ("synthetic-dpo", "synthetic-ipo", "synthetic-kto"):
        for seed in args.seeds or range(3):
            summary = run("train", recipe, f"seed={seed}", recipe, work=args.work)
            found = summary["final_eval"]
            text = f"implicit accuracy {shown(found)} (interval above 0.5); KL {found['kl_reference']:.2f}"
            yield Row(f"`rollcall train {recipe} seed={seed}`", text, found["low"] > 0.5)


def groups(args: argparse.Namespace) -> Iterator[Row]:
    """Worst group's held-out accuracy of both methods on the same data, from the same model."""
    gains = []
    seeds = list(args.seeds or range(5))
    for seed in seeds:
        worst = {}
        for method in ("group_dpo", "dpo"):
            more = [] if method == "group_dpo" else [f"algorithm={method}"]
            summary = run("train", "synthetic-group-dpo", f"seed={seed}", *more, f"{method}", work=args.work)
            own = summary["held_out"]["groups"]
            worst[method] = summary["held_out"]["worst_group_accuracy"]
            text = ", ".join(f"{name} {value['accuracy']:.3f}" for name, value in own.items())
            command = " ".join(["rollcall train synthetic-group-dpo", f"seed={seed}", *more])
            yield Row(f"`{command}`", f"worst group {worst[method]:.3f} ({text}, 500 each)", True)
        gains.append(worst["group_dpo"] - worst["dpo"])
    mean = statistics.mean(gains)
    half = T_QUANTILE[len(seeds) - 1] * statistics.stdev(gains) / math.sqrt(len(seeds))
    text = (
        f"worst group, robust less plain: {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] over {len(seeds)} seeds"
    )
    yield Row("group-robust DPO against DPO", text, mean - half > 0)


def hh(args: argparse.Namespace) -> Iterator[Row]:
    if args.hh is None:
        return
    summary = run("reward", "train", "hh-reward", f"data.train={args.hh.resolve()}", "hh", work=args.work)
    train, comparisons = summary["train"], summary["comparisons"]
    text = (
        f"training loss {train['loss']:.3f} (below ln 2 = {LN_2:.3f}), held out {shown(summary['held_out'])}; "
        f"{comparisons['train']} learnt from, {comparisons['left_out']} too long"
    )
    yield Row("`rollcall reward train hh-reward data.train=FILE`", text, train["loss"] < LN_2)


EPISODES, EPISODE_SEED = 200, 7  # on which policies of one env are compared


def mean_return(run_directory: str, work: Path) -> float:
    episodes = ("--episodes", str(EPISODES), "--seed", str(EPISODE_SEED))
    done = rollcall("eval", run_directory, "--json", *episodes, cwd=work)
    done.check_returncode()
    return float(json.loads(done.stdout)["mean"])


def random_return(env_id: str) -> float:
    """Of uniform actions, in the same episodes."""
    env = gymnasium.make(env_id)
    env.action_space.seed(EPISODE_SEED)
    total = 0.0
    for episode in range(EPISODES):
        env.reset(seed=derive_seed(EPISODE_SEED, "eval", episode) >> 32)  # as an evaluation does
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
    return total / EPISODES


def pendulum(args: argparse.Namespace) -> Iterator[Row]:
    """How much of what PPO gains from the env's own reward is gained from preferences alone."""
    floor = random_return("Pendulum-v1")
    for seed in args.seeds or [0]:
        reached = {}
        for recipe in ("pendulum-ppo", "pendulum-preferences"):
            summary = run("train", recipe, f"seed={seed}", recipe, work=args.work)
            reached[recipe] = mean_return(summary["run"], args.work)
        share = (reached["pendulum-preferences"] - floor) / (reached["pendulum-ppo"] - floor)
        returns = ", ".join(f"{recipe} {value:.0f}" for recipe, value in reached.items())
        text = f"{share:.2f} of PPO's gain (0.85): random {floor:.0f}, {returns}; {EPISODES} shared episodes"
        yield Row(f"`rollcall train pendulum-preferences seed={seed}`", text, share >= 0.85)


def rlhf(args: argparse.Namespace) -> Iterator[Row]:
    """With the KL penalty, and without; both in the report of the first."""
    directories = []
    for more in ([], ["algorithm.kl_coef=1e-9"]):  # as good as none, and still measured
        summary = run("train", "rlhf-reviews", *more, "rlhf", work=args.work)
        lines = (args.work / summary["run"] / "metrics.jsonl").read_text().splitlines()
        kl = json.loads(lines[-1])["kl_reference"]
        gain = summary["final_eval"]["mean"] - summary["first_eval"]["mean"]
        text = (
            f"independent score {summary['first_eval']['mean']:.3f} -> {summary['final_eval']['mean']:.3f} "
            f"(a rise of 0.3), KL {kl:.2f} a token"
        )
        met = bool(more) or (gain >= 0.3 and kl < 0.5)
        yield Row(f"`{' '.join(['rollcall train rlhf-reviews', *more])}`", text, met)
        directories.append(summary["run"])
    rollcall("report", directories[0], "--beside", directories[1], cwd=args.work).check_returncode()


PROOFS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "reward": reward,
    "direct": direct,
    "groups": groups,
    "hh": hh,
    "pendulum": pendulum,
    "rlhf": rlhf,
}


def main() -> int:
    made = parser(__doc__, PROOFS)
    made.add_argument("--seeds", nargs="*", type=int, help="of groups 3 or 5")
    made.add_argument("--hh", type=Path, metavar="FILE", help="HH's harmless preferences, .jsonl or .jsonl.gz")
    made.add_argument("--work", type=Path, default=ROOT, help="where runs/ is")
    args = made.parse_args()
    return report((row for name in args.only or PROOFS for row in PROOFS[name](args)), args.append)


if __name__ == "__main__":
    sys.exit(main())
