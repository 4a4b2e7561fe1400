"""The long proofs: trains every recipe for every seed it has a target for, evaluates the final policy, and writes
docs/results.md. `python -m benchmarks.prove [--only RECIPE ...] [--seeds 0 1] [key=value ...]`; hours on two cores."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proofs import ROOT, rollcall

RESULTS = ROOT / "docs" / "results.md"
EVAL_EPISODES = 100
EVAL_SEED = 20_000  # of the evaluation only: no training run uses it


@dataclass(frozen=True)
class Target:
    """What a recipe must reach with each of its seeds: the mean return of the final policy, the success rate, or the
    share of held-out problems answered right."""

    recipe: str
    seeds: Sequence[int]
    at_least: float | None  # None: run as far as time allows, and say how far
    overrides: Sequence[str] = ()
    measure: str = "mean return"
    episodes: int = EVAL_EPISODES
    before_at_most: float | None = None  # language: after the warm start, so that there is something left to learn


TARGETS = (
    Target("cartpole-ppo", range(5), 475),
    Target("cartpole-a2c", range(3), 475),
    Target("cartpole-impala", range(3), 475),
    Target("cartpole-reinforce", range(3), 400),
    Target("cartpole-masked-ppo", range(3), 400),
    Target("acrobot-ppo", range(3), -90),
    Target("pendulum-ppo", range(3), -250),
    Target("frozenlake-a2c", range(3), 0.95 * 0.744, measure="exact success"),
    Target("halfcheetah-ppo", range(1), 1400),
    Target("cartpole-dqn", range(3), 475),
    Target("acrobot-dqn", range(3), -85),
    Target("lunarlander-dqn", range(3), 200),
    Target("cartpole-rainbow", range(3), 475),
    Target("cartpole-apex", range(3), 475),
    Target("minatar-breakout-dqn", range(1), None),
    Target("minatar-breakout-rainbow", range(1), None),
    Target("pendulum-sac", range(3), -160),
    Target("pendulum-td3", range(3), -160),
    Target("halfcheetah-sac", range(2), None, ("total_env_steps=100_000",)),
    Target("hopper-sac", range(3), None, ("total_env_steps=100_000",)),
    *(Target("cartpole-a3c", range(3), 475, (f"actors.num={number}",)) for number in (1, 2, 4)),
    Target("cartpole-trpo", range(3), 475),
    Target("halfcheetah-trpo", range(1), 1400),
    Target("cartpole-ppo-kl", range(3), 475),
    Target("pendulum-ppo-kl", range(3), -250),
    Target("mountaincar-rnd", range(3), -130),
    Target("minigrid-rnd", range(3), 0.7),
    Target("arithmetic-grpo", range(2), 0.95, measure="exact match", before_at_most=0.85),
    Target("arithmetic-rloo", range(2), 0.92, measure="exact match"),
    Target("arithmetic-reinforce-pp", range(2), 0.92, measure="exact match"),
    Target("arithmetic-ppo", range(2), 0.92, measure="exact match"),
    Target("arithmetic-gspo", range(2), 0.92, measure="exact match"),
    Target("arithmetic-cispo", range(2), 0.92, measure="exact match"),
    Target("calculator-grpo", range(1), 0.9, measure="exact match", before_at_most=0.6),
    Target("pong-ppo", range(1), None, ("total_env_steps=1_000_000",), episodes=10),
    Target("pong-impala", range(1), None, ("total_env_steps=1_000_000",), episodes=10),
)


def frozenlake_success(run_directory: Path) -> float:
    """The exact probability that the greedy policy reaches the goal of the 4x4 slippery lake within its 100 steps:
    the distribution over states, pushed through env.P."""
    import gymnasium as gym
    import numpy as np

    import rollcall.deploy

    env = gym.make("FrozenLake-v1")
    transitions = env.unwrapped.P  # type: ignore[attr-defined]
    limit = env.spec.max_episode_steps if env.spec and env.spec.max_episode_steps else 100
    policy = rollcall.deploy.load_policy(str(run_directory))
    actions = [int(policy.act(np.array(state))) for state in range(len(transitions))]
    here = np.zeros(len(transitions))
    here[0] = 1.0
    success = 0.0
    for _ in range(limit):
        there = np.zeros_like(here)
        for state in np.flatnonzero(here):
            for probability, following, reward, terminated in transitions[int(state)][actions[int(state)]]:
                arrived = here[state] * probability
                success += arrived * reward
                there[following] += 0.0 if terminated else arrived
        here = there
    return float(success)


def prove(target: Target, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """One recipe, one seed: trained, evaluated, audited."""
    name = f"prove-{target.recipe}-{seed}-{int(time.time())}"
    arguments = [target.recipe, f"seed={seed}", *target.overrides, *overrides]
    trained = rollcall("train", *arguments, f"name={name}")
    row: dict[str, Any] = {"command": "rollcall train " + shlex.join(arguments), "at_least": target.at_least}
    run = ROOT / "runs" / name
    if trained.returncode:
        return row | {"error": trained.stderr.strip()[-300:]}
    summary = json.loads((run / "summary.json").read_text())
    row |= {"amount": summary.get("env_steps", summary.get("generated_tokens")), "wall_s": summary["wall_s"]}
    row["per_s"] = summary.get("steps_per_s", summary.get("tokens_per_s"))
    row["audit"] = rollcall("audit", name).returncode
    if target.measure == "exact match":
        final, first = summary["final_eval"], summary["first_eval"]
        row["result"], row["std"], row["n"] = final["mean"], final["std"], f"{final['n']}; {first['mean']:.3g} before"
        early = target.before_at_most is None or first["mean"] <= target.before_at_most
        row["met"] = early and final["mean"] >= (target.at_least or 0.0)
        return row
    if target.measure == "exact success":
        row["result"], row["std"], row["n"] = frozenlake_success(run), 0.0, "exact"
    else:
        evaluated = rollcall("eval", name, "--episodes", str(target.episodes), "--seed", str(EVAL_SEED), "--json")
        if evaluated.returncode:
            return row | {"error": evaluated.stderr.strip()[-300:]}
        found = json.loads(evaluated.stdout)
        row["result"], row["std"], row["n"] = found["mean"], found["std"], found["n"]
    row["met"] = target.at_least is None or row["result"] >= target.at_least
    return row


def line(row: dict[str, Any], today: str) -> str:
    if "error" in row:
        return f"| {today} | `{row['command']}` | failed: {row['error']} | | | | |"
    bound = "-" if row["at_least"] is None else f"{row['at_least']:g}"
    verdict = "" if row["at_least"] is None else (" yes" if row["met"] else " **no**")
    books = "balance" if row["audit"] == 0 else "**do not balance**"
    return (
        f"| {today} | `{row['command']}` | {row['result']:.4g} ± {row['std']:.3g} ({row['n']}) | {bound}{verdict} "
        f"| {row['amount']:,} | {row['wall_s']:.0f} s, {row['per_s']:,.0f}/s | {books} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="recipes")
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--append", type=Path, default=RESULTS, help="to this file, a row for each run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    today = datetime.date.today().isoformat()
    failures = 0
    for target in TARGETS:
        if args.only and target.recipe not in args.only:
            continue
        for seed in args.seeds or target.seeds:
            row = prove(target, seed, args.overrides)
            failures += "error" in row or not row["met"] or row["audit"] != 0
            text = line(row, today)
            print(text, flush=True)
            with args.append.open("a") as file:
                file.write(text + "\n")
    print(f"{machine}: {failures} targets missed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
