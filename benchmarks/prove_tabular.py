"""What the tabular methods promise, by their recipes: exact solutions against each other, learnt policies against the
exact optimum, the cliff's two ways, and bandits' regret. `python -m benchmarks.prove_tabular [--only NAME ...]`; a
quarter of an hour on one core."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.proofs import Row, parser, report, rollcall
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.learners.tabular import planning
from rollcall.learners.tabular.model import Model

ENVS = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4")


def trained(recipe: str, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(summary, metrics) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        made = rollcall("train", recipe, "name=proof", *overrides, cwd=Path(folder))
        if made.returncode:
            raise RuntimeError(f"{recipe}: {made.stderr.strip()[-300:]}")
        run = Path(folder) / "runs" / "proof"
        return json.loads((run / "summary.json").read_text()), read_jsonl(run / "metrics.jsonl")


def exact() -> Iterator[Row]:
    worst = 0.0
    for env_id in ENVS:
        plain: Any = gym.make(env_id).unwrapped
        model = Model.of_table(plain.P, plain.initial_state_distrib)
        for discount in (0.5, 0.9, 0.99, 0.999):
            found = planning.value_iteration(model, discount)
            closed = planning.closed_form(model, found.policy, discount)
            worst = max(worst, float(np.abs(found.values - closed)[model.reachable()].max()))
    what = f"value iteration against the closed form, {len(ENVS)} envs, 4 discounts"
    yield Row(what, f"largest difference {worst:.1e} (1e-10)", worst <= 1e-10)


def lake() -> Iterator[Row]:
    for recipe in ("frozenlake-q-learning", "frozenlake-sarsa"):
        for seed in range(3):
            summary, _ = trained(recipe, f"seed={seed}")
            share = summary["policy_value"] / summary["optimal_value"]
            text = f"exactly {summary['policy_value']:.4f} of {summary['optimal_value']:.4f}: {share:.1%} (98 %)"
            yield Row(f"`rollcall train {recipe} seed={seed}`", text, share >= 0.98)


def cliff() -> Iterator[Row]:
    found = {}
    for recipe in ("cliffwalking-q-learning", "cliffwalking-sarsa"):
        runs = [trained(recipe, f"seed={seed}") for seed in range(10)]
        online = np.mean([record["return_mean"] for _, records in runs for record in records[20:]])
        greedy = [-np.inf if s["policy_value"] is None else s["policy_value"] for s, _ in runs]  # None: for ever
        found[recipe] = float(online), float(np.median(greedy))
    (q_online, q_greedy), (sarsa_online, sarsa_greedy) = found.values()
    text = (
        f"while they explore, episodes 100 to 500: Sarsa {sarsa_online:.1f}, Q-learning {q_online:.1f}; greedy, "
        f"median: Sarsa {sarsa_greedy:.0f}, Q-learning {q_greedy:.0f} (the optimum is -13)"
    )
    met = sarsa_online > q_online + 10 and q_greedy == -13.0 > sarsa_greedy
    yield Row("`cliffwalking-sarsa` beside `cliffwalking-q-learning`, seeds 0-9", text, met)


def taxi() -> Iterator[Row]:
    for recipe in ("taxi-q-learning", "taxi-dyna-q"):
        summary, _ = trained(recipe)
        own, best = summary["policy_value"], summary["optimal_value"]
        text = f"exactly {own:.3f} of {best:.3f} after {summary['env_steps']:,} steps"
        yield Row(f"`rollcall train {recipe}`", text, best - own < 0.1)


def bandits() -> Iterator[Row]:
    regret = {recipe: trained(recipe)[0]["regret"] for recipe in ("bandit-ucb", "bandit-epsilon-greedy")}
    ucb, greedy = regret.values()
    text = f"regret over 1,000 pulls, mean of 2,000 problems: UCB {ucb:.1f}, epsilon-greedy {greedy:.1f}"
    yield Row("`bandit-ucb` beside `bandit-epsilon-greedy`", text, ucb < greedy)


PROOFS = {"exact": exact, "lake": lake, "cliff": cliff, "taxi": taxi, "bandits": bandits}


def main() -> int:
    args = parser(__doc__, PROOFS).parse_args()
    chosen = args.only or PROOFS
    return report((row for name in chosen for row in PROOFS[name]()), args.append)


if __name__ == "__main__":
    sys.exit(main())
