"""Draws the curves of docs/algorithms/tabular.md from runs that it makes: `python -m benchmarks.tabular_curves [--only
FIGURE ...]`, ten minutes on one core. SVG by hand: a few hundred points need no library."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.proofs import ROOT
from rollcall.deploy import train
from rollcall.deploy.report.run_lines import read_jsonl

FIGURES = ROOT / "docs" / "algorithms" / "curves"
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989")
GREY = "#57606a"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 62, 16, 34, 40
MAX_POINTS = 160
Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def curve(recipe: str, key: str, *, seeds: int = 1, records: str = "metrics", **overrides: Any) -> Curve:
    """The mean over runs with seeds 0, 1, ..., over learner steps."""
    columns, steps = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ROLLCALL_RUNS"] = folder
            summary = train(recipe, seed=seed, **overrides)
            lines = read_jsonl(Path(summary["run_directory"]) / f"{records}.jsonl")
        columns.append([float(line[key]) for line in lines])
        steps = [float(line["step"]) for line in lines]
    return steps, np.mean(columns, 0).tolist()


def smoothed(curve: Curve, reach: int, *, per_step: int = 1) -> Curve:
    """A mean over so many points to both sides. `per_step`: episodes of a learner step."""
    x, y = curve
    return [per_step * value for value in x], [
        float(np.mean(y[max(0, i - reach) : i + reach + 1])) for i in range(len(y))
    ]


def drawn(title: str, x_label: str, curves: Mapping[str, Curve], *, level: float | None = None) -> str:
    """One chart. `level`: the optimum, a line across."""
    high_x = max(max(x) for x, _ in curves.values())
    values = [value for _, y in curves.values() for value in y] + ([] if level is None else [level])
    margin = 0.05 * (max(values) - min(values))
    low, high = min(values) - margin, max(values) + margin

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / high_x * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    style = 'font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>']
    parts += [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', _text(LEFT, 20, title, "#1f2328", "start")]
    for value in np.linspace(low, high, 5).tolist():
        x, y = at(0, value)
        parts += [_line_across(y, "#e5e7eb"), _text(x - 6, y + 4, f"{value:.3g}", GREY, "end")]
    for value in np.linspace(0, high_x, 6).tolist():
        parts.append(_text(at(value, low)[0], HEIGHT - BOTTOM + 16, f"{value:,.0f}", GREY, "middle"))
    parts.append(_text(WIDTH / 2, HEIGHT - 6, x_label, GREY, "middle"))
    if level is not None:
        y = at(0, level)[1]
        parts += [_line_across(y, GREY, "5 4"), _text(WIDTH - RIGHT, y - 4, "the optimum", GREY, "end")]
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        colour, nth = COLOURS[number % len(COLOURS)], max(1, len(xs) // MAX_POINTS)
        points = " ".join(f"{x},{y}" for x, y in map(at, xs[::nth], ys[::nth]))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        down = HEIGHT - BOTTOM - 8 - 15 * (len(curves) - 1 - number)
        parts.append(_text(WIDTH - RIGHT - 8, down, name, colour, "end"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _line_across(y: float, colour: str, dashes: str = "none") -> str:
    return f'<path d="M{LEFT},{y}H{WIDTH - RIGHT}" stroke="{colour}" stroke-dasharray="{dashes}"/>'


def bandits() -> str:
    methods: dict[str, dict[str, Any]] = {
        "greedy": {"name": "greedy"},
        "epsilon 0.01": {"name": "epsilon_greedy", "epsilon": 0.01},
        "epsilon 0.1": {"name": "epsilon_greedy"},
        "gradient, 0.1": {"name": "gradient"},
        "UCB, c = 1": {"name": "ucb"},
        "Thompson": {"name": "thompson"},
    }
    curves = {
        name: smoothed(curve("bandit-ucb", "optimal_fraction", algorithm=own), 4) for name, own in methods.items()
    }
    return drawn("Ten-armed test bed: how often the best arm is pulled, 2,000 problems", "pulls", curves)


def cliff() -> str:
    expected = {"name": "expected_sarsa", "discount": 1.0, "step_size": 0.5}
    runs = {
        "Q-learning": curve("cliffwalking-q-learning", "return_mean", seeds=5),
        "Sarsa": curve("cliffwalking-sarsa", "return_mean", seeds=5),
        "expected Sarsa": curve("cliffwalking-sarsa", "return_mean", seeds=5, algorithm=expected),
    }
    clipped = {name: (x, [max(value, -100.0) for value in y]) for name, (x, y) in runs.items()}
    curves = {name: smoothed(found, 2, per_step=5) for name, found in clipped.items()}
    return drawn("CliffWalking-v1: return while learning, mean of 5 runs, cut at -100", "episodes", curves, level=-13.0)


def lake() -> str:
    own: dict[str, Any] = {"seeds": 2, "records": "evals", "eval": {"every_steps": 2, "episodes": 1}}
    names = {"Q-learning": "frozenlake-q-learning", "Sarsa": "frozenlake-sarsa"}
    curves = {name: smoothed(curve(recipe, "policy_value", **own), 0, per_step=100) for name, recipe in names.items()}
    title = "FrozenLake-v1: exact value of the greedy policy, discount 0.99, mean of 2 runs"
    return drawn(title, "episodes", curves, level=0.542026)


def taxi() -> str:
    short: dict[str, Any] = {"seeds": 2, "total_episodes": 1000, "episodes_per_step": 10}
    runs = {
        "Q-learning": curve("taxi-q-learning", "return_mean", **short),
        "Dyna-Q, 10 steps of planning": curve("taxi-dyna-q", "return_mean", seeds=2),
    }
    curves = {name: smoothed(found, 1, per_step=10) for name, found in runs.items()}
    return drawn("Taxi-v4: return while learning (epsilon 0.1), mean of 2 runs", "episodes", curves, level=7.93)


DRAWN: Mapping[str, Callable[[], str]] = {"bandits": bandits, "cliff": cliff, "lake": lake, "taxi": taxi}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(DRAWN))
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().only or DRAWN:
        path = FIGURES / f"tabular_{name}.svg"
        path.write_text(DRAWN[name]())
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1024:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
