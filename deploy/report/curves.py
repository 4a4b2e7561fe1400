"""Turns metrics.jsonl and evals.jsonl into the few hundred points a page can show. Plain Python: no torch, no numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollcall.cluster.metrics.names import MEASURES, NAMES, name_of
from rollcall.deploy.report.counted import ENV_STEPS, TOKENS, Counted
from rollcall.deploy.report.recorders import STEP_KEYS

MAX_POINTS = 400
Records = Sequence[dict[str, Any]]
Record = dict[str, Any]
Column = list[float | None]

_ELSEWHERE = {
    *STEP_KEYS["env_steps"],
    *STEP_KEYS["tokens"],
    *("elapsed_s", "bound_fraction", "steps_per_s", "tokens_per_s", "step_s", "act_s"),
    *("episodes", "restarts", "env_restarts", "skipped"),
    *("reward_fresh_low", "reward_std", "task_std", "task_error", "reward_gain", "task_gain", "task_reward_lost"),
    *("exact_match", "length_mean", "length_max", "degenerate_dropped"),
    *("accuracy", "implicit_accuracy", "negative_log_likelihood", "mean_loss"),
    *("trained_comparisons", "trained_size", "trained_steps", "played_steps"),
}


def title_of(key: str) -> str:
    """What a number of metrics.jsonl is called on a page."""
    return name_of(key).title


def _column(records: Records, key: str) -> Column:
    values: Column = []
    for record in records:
        value = record.get(key)
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        values.append(float(value) if usable and value is not None else None)
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _buckets(count: int) -> list[tuple[int, int]]:
    size = max(1, math.ceil(count / MAX_POINTS))
    return [(start, min(count, start + size)) for start in range(0, count, size)]


def _pooled(values: Column, pool: Callable[[Sequence[float]], float]) -> Column:
    pooled: Column = []
    for start, stop in _buckets(len(values)):
        present = [v for v in values[start:stop] if v is not None]
        pooled.append(float(f"{pool(present):.5g}") if present else None)
    return pooled


def _smooth(values: Column) -> Column:
    """Centred moving average over a twentieth of the run: unlike an exponential one it does not trail behind."""
    reach = max(1, len(values) // 40)
    smoothed: Column = []
    for index in range(len(values)):
        near = [v for v in values[max(0, index - reach) : index + reach + 1] if v is not None]
        smoothed.append(float(f"{_mean(near):.5g}") if near else None)
    return smoothed


def _chart(title: str, x: Column, series: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    chart = {"title": title, "x": x, "unit": "", "series": series, "points": [], "group": "learning"}
    return {**chart, "stack": False, "zero": False, "wide": False, "spread": "", **more}


def _line(name: str, y: Column, colour: int = 1, *, faint: bool = False) -> dict[str, Any]:
    return {"name": name, "y": y, "colour": colour, "faint": faint}


def _points(evals: Records, at_key: str, words: str, *, scale: float = 1.0, of_mean: bool = False) -> list[Record]:
    """Of evaluations: their means, with the standard deviation to both sides, or the error of the mean."""
    points = []
    for record in evals:
        at, mean = _column([record], at_key)[0], _column([record], "mean")[0]
        if at is None or mean is None:
            continue
        std, n = _column([record], "std")[0] or 0.0, _column([record], "n")[0] or 1.0
        at_mean, spread = scale * mean, scale * (std / math.sqrt(n) if of_mean else std)
        shown = f"{at_mean:.1f} ± {spread:.2g} %" if scale != 1.0 else f"{at_mean:.5g} ± {spread:.3g}"
        text = f"evaluation: {shown} ({record.get('n', '?')} {words})"
        points.append({"x": at, "y": at_mean, "low": at_mean - spread, "high": at_mean + spread, "text": text})
    return points


def _scored(title: str, x: Column, raw: Column, points: list[Record], mode: str, **more: Any) -> list[Record]:
    """What a run is judged by: training and evaluation in one chart."""
    if not points and all(value is None for value in raw):
        return []
    series = [_line("raw", raw, faint=True), _line("training (sampled), smoothed", _smooth(raw))]
    shown = {"points": points, "wide": True, "points_name": f"evaluation ({mode}), mean ± {more.pop('spread')}"}
    return [_chart(title, x, series, **shown, **more)]


def _return_chart(records: Records, evals: Records, x: Column, mode: str) -> list[Record]:
    raw = _pooled(_column(records, "return_mean"), _mean)
    points = _points(evals, "env_steps", "episodes")
    return _scored(title_of("return_mean"), x, raw, points, mode, spread="std")


def _completion_charts(records: Records, evals: Records, x: Column, mode: str) -> list[Record]:
    """What is known of every language run's completions. A problem is solved or not, so that the standard deviation
    says nothing new: the bars are the error of the mean over the problems. Some are evaluated by the task's reward."""
    by_reward = [record for record in evals if record.get("unit") == "reward"]
    solved = _points(
        [e for e in evals if e.get("unit") in (None, "exact match")], "tokens", "problems", scale=100, of_mean=True
    )
    exact = _pooled(_percent(_column(records, "exact_match")), _mean)
    error = "standard error"
    charts = _scored(title_of("exact_match"), x, exact, solved, mode, unit=" %", spread=error)
    task, reward = (_pooled(_column(records, key), _mean) for key in ("reward_task", "reward_mean"))
    if any(value is not None for value in task):
        judged = _points(by_reward, "tokens", "problems", of_mean=True)
        charts = [
            *_scored(title_of("reward_task"), x, task, judged, mode, spread=error),
            *({**chart, "wide": bool(chart["points"])} for chart in charts),
        ]
        by_reward = []
    judged = _points(by_reward, "tokens", "problems", of_mean=True)
    if judged or any(value is not None for value in reward):
        lines = [_line("raw", reward, faint=True), _line("training (sampled), smoothed", _smooth(reward))]
        name = f"evaluation ({mode}), mean ± {error}"
        charts.append(_chart(title_of("reward_mean"), x, lines, points=judged, points_name=name))
    length, longest = _pooled(_column(records, "length_mean"), _mean), _pooled(_column(records, "length_max"), max)
    if any(value is not None for value in length):
        lines = [_line("mean", length), _line("longest", longest, 2)]
        more = {"zero": True, "unit": " tok", "group": "behaviour"}
        charts.append(_chart(title_of("length_mean"), x, lines, **more))
    return charts


def _percent(values: Column) -> Column:
    return [None if value is None else 100 * value for value in values]


def _speed(records: Records, experience: str) -> Column:
    """Env steps or tokens per second between the ends of neighbouring buckets."""
    steps, clock = _column(records, experience), _column(records, "elapsed_s")
    speed: Column = []
    before: tuple[float, float] | None = None
    for _, stop in _buckets(len(records)):
        now_steps, now = steps[stop - 1], clock[stop - 1]
        value = None
        if now_steps is not None and now is not None:
            if before is not None and now > before[1]:
                value = float(f"{(now_steps - before[0]) / (now - before[1]):.5g}")
            before = (now_steps, now)
        speed.append(value)
    return speed


def _time_chart(records: Records, x: Column) -> list[dict[str, Any]]:
    names = (("wait_batch_s", "wait"), ("update_s", "update"), ("publish_s", "publish"))
    series = []
    for colour, (key, name) in enumerate(names, start=1):
        scaled: Column = [None if v is None else v * 1e3 for v in _column(records, key)]
        series.append(_line(name, _pooled(scaled, _mean), colour))
    if all(value is None for line in series for value in line["y"]):
        return []
    return [_chart("Time per learner step", x, series, stack=True, zero=True, unit=" ms", group="time")]


def _preference_charts(evals: Records, records: Records, x: Column) -> list[dict[str, Any]]:
    """Of a run on preferences: who is right of held-out comparisons, and by what likelihood, beside the training's."""
    charts = []
    right = "accuracy" if any("accuracy" in record for record in records) else "implicit_accuracy"
    for title, key, seen, unit in (("Pairs right", right, "mean", " %"), ("Loss", _LOSS[right], "eval_loss", "")):
        raw = _pooled(_column(records, key), _mean)
        raw = _percent(raw) if unit else raw
        points = []
        for record in evals:
            at, value = _column([record], "tokens")[0], _column([record], seen)[0]
            if at is None or value is None:
                continue
            low, high = (_column([record], name)[0] if unit else None for name in ("low", "high"))
            span = [100 * v if unit else v for v in (value, low if low is not None else value, high or value)]
            text = f"held out: {span[0]:.4g}{unit} ({record.get('n', '?')} pairs)"
            points.append({"x": at, "y": span[0], "low": span[1], "high": span[2], "text": text})
        series = [_line("raw", raw, faint=True), _line("training, smoothed", _smooth(raw))]
        name = "held out, 95% interval" if unit else "held out"
        charts.append(_chart(title, x, series, points=points, wide=bool(unit), unit=unit, points_name=name))
    names = sorted({name for record in evals for name in record.get("groups") or {}})
    for title, key in (("Pairs right by group", "accuracy"), ("Held-out loss by group", "loss")):
        if names:
            places = _column(evals, "tokens")
            lines = []
            for colour, name in enumerate(names, start=1):
                own = _column([(record.get("groups") or {}).get(name, {}) for record in evals], key)
                lines.append(_line(name, _percent(own) if key == "accuracy" else own, colour))
            charts.append(_chart(title, places, lines, unit=" %" if key == "accuracy" else ""))
    kl = _column(evals, "kl_reference")
    if any(value is not None for value in kl):
        charts.append(_chart("KL to the reference, sampled", _column(evals, "tokens"), [_line("KL", kl)], unit=" nats"))
    return charts


_LOSS = {"accuracy": "negative_log_likelihood", "implicit_accuracy": "mean_loss"}


def calibration_chart(bins: Records) -> dict[str, Any]:
    """How often predictions of one confidence are right; on the diagonal they know how sure to be."""
    x: Column = [float(b["confidence"]) for b in bins]
    points = [
        {"x": b["confidence"], "y": b["frequency"], "low": b["low"], "high": b["high"]}
        | {"text": f"{b['frequency']:.1%} of {b['n']} right at {b['confidence']:.1%}"}
        for b in bins
    ]
    lines = [
        _line("predicted = observed", [0.5, *x, 1.0]),
        _line("observed", [None, *(p["y"] for p in points), None], 2),
    ]
    chart = _chart("Calibration: observed frequency", [0.5, *x, 1.0], lines, points=points, points_name="95% interval")
    return {**chart, "x_label": "predicted probability", "x_min": 0.5}


# What runs are held against each other by, in the order worth reading.
_COMPARED = (
    *("return_mean", "reward_mean", "reward_task", "exact_match", "kl_reference", "entropy", "length_mean"),
    *("unparsed_fraction", "truncated_fraction", "approx_kl", "lag_mean"),
)


def comparison_charts(runs: Mapping[str, Records]) -> list[dict[str, Any]]:
    """One chart for each thing that two or more of the named runs report, smoothed, over learner steps."""
    charts = []
    count = max(map(len, runs.values()))
    x = _pooled([float(step) for step in range(count)], max)
    for key in _COMPARED:
        lines = []
        for colour, (label, own) in enumerate(runs.items(), start=1):
            column = _column(own, key) + [None] * (count - len(own))
            y = _pooled(column, _mean)
            if any(value is not None for value in y):
                smoothed = [new if old is not None else None for old, new in zip(y, _smooth(y), strict=True)]
                lines.append(_line(label, smoothed, colour))
        if len(lines) > 1:
            charts.append({**_chart(title_of(key), x, lines), "x_label": "step"})
    return charts


def lines_chart(title: str, records: Records, keys: Mapping[str, str]) -> dict[str, Any]:
    """One chart of several numbers of the records over env steps: name -> key."""
    x = _pooled(_column(records, ENV_STEPS.key), max)
    lines = [_line(n, _pooled(_column(records, key), _mean), c) for c, (n, key) in enumerate(keys.items(), start=1)]
    return {**_chart(title, x, lines), "x_label": ENV_STEPS.units}


def points_chart(title: str, points: Sequence[Mapping[str, Any]], best: Column, *, x_label: str) -> dict[str, Any]:
    """Single points at x = 1, 2, ..., and a line through the best so far of each x."""
    x: Column = [float(n) for n in range(1, len(best) + 1)]
    chart = _chart(title, x, [_line("best so far", best)], points=list(points), wide=True)
    return {**chart, "points_name": "a candidate", "x_label": x_label, "x_min": 0.5}


def build_charts(
    records: Records,
    evals: Records,
    *,
    counts: Counted = ENV_STEPS,
    marks: Sequence[tuple[int, str]] = (),
    eval_mode: str = "greedy",
) -> list[dict[str, Any]]:
    """Every chart that has something to show, what one wants first in front; at most MAX_POINTS points each. `marks`:
    learner steps at which something changed, and what. `eval_mode`: how evaluations act, greedy or sampled."""
    experience, unit = counts.key, counts.units
    x = _pooled(_column(records, experience), max)
    on_pairs = any("trained_comparisons" in record for record in records)
    if on_pairs:
        charts = _preference_charts(evals, records, x)
    elif counts is TOKENS:
        charts = _completion_charts(records, evals, x, eval_mode)
    else:
        charts = _return_chart(records, evals, x, eval_mode)
    charts += _time_chart(records, x)
    speed = _speed(records, experience)
    if any(value is not None for value in speed):
        title = title_of("tokens_per_s" if counts is TOKENS else "steps_per_s")
        lines = [_line("speed", speed, 3)]
        charts.append(_chart(title, x, lines, zero=True, unit=f" {counts.per_second}", group="time"))
    keys = {key for record in records for key in record} - _ELSEWHERE
    if on_pairs:
        keys -= {"loss"}  # what the optimiser sees: of an ensemble a sum, of groups weighed
    elif counts is TOKENS:
        keys -= {"reward_task"}
    for key in [k for k in NAMES if k in keys] + sorted(keys - NAMES.keys()):
        y = _pooled(_column(records, key), _mean)
        if any(value is not None for value in y):
            name = name_of(key)
            shown = f" {name.unit}" if name.unit in MEASURES else ""
            lines = [_line("raw", y, faint=True), _line(key, _smooth(y))]
            charts.append(_chart(name.title, x, lines, unit=shown, group=name.group))
    lag_max, lag_mean = _pooled(_column(records, "lag_max"), max), _pooled(_column(records, "lag_mean"), _mean)
    if any(value is not None for value in lag_max):
        lines = [_line("largest", lag_max), _line("mean", lag_mean, 2)]
        charts.append(_chart("Policy lag", x, lines, zero=True, unit=" versions", group="books"))
    marked = [{"x": _at_step(records, experience, step), "text": text} for step, text in marks]
    return [{**chart, "x_label": unit, "marks": marked} for chart in charts]


def _at_step(records: Records, experience: str, step: int) -> float:
    """The experience learnt from before learner step `step`."""
    before = [record.get(experience) or 0 for record in records if record.get("step", step) < step]
    return float(before[-1]) if before else 0.0
