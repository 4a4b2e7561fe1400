"""What the page of a search for a reward shows: the fitness of its candidates, their curves, and the tree of them, with
code and film. Codes and reasons were written by a model: all of it is escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rollcall.deploy.report.curves import Column, lines_chart, points_chart
from rollcall.deploy.report.progress import number
from rollcall.deploy.report.run_lines import iter_jsonl, thinned
from rollcall.deploy.rundir.candidates import VIDEO, Candidate, best_of, run_of

MAX_FILM_BYTES = 4 << 20  # a film that is larger is linked to, and not part of the page
MAX_CURVES = 40  # candidates, the newest, whose curves are drawn
_PREFIX = "reward_"
_LENGTH = "episode_length_mean"
_NO_COMPONENT = ("reward_mean", "reward_versions")


def training_curves(run: Path) -> dict[str, list[float]]:
    """Of a candidate's training, by step: its components, the whole reward, the length of episodes."""
    records = list(iter_jsonl(run / "metrics.jsonl"))
    curves: dict[str, list[float]] = {}
    for name, key in _keys(records).items():
        values = [float(record[key]) for record in records if _is_number(record.get(key))]
        if values:
            curves[name] = values
    return curves


def charts(run_directory: Path, candidates: Mapping[str, Candidate]) -> list[dict[str, Any]]:
    """The fitness over iterations, and the curves of each trained candidate."""
    points: list[dict[str, Any]] = []
    best: Column = []
    for found in candidates.values():
        while len(best) < found.iteration:
            best.append(best[-1] if best else None)
        if found.fitness is not None:
            so_far = best[-1]
            best[-1] = found.fitness if so_far is None else max(so_far, found.fitness)
            at = {"x": found.iteration, "y": found.fitness, "low": found.fitness, "high": found.fitness}
            points.append({**at, "text": f"candidate {found.name}: {found.fitness:.5g}"})
    drawn = [points_chart("Fitness", points, best, x_label="iterations")]
    for name in [found.name for found in candidates.values() if found.fitness is not None][-MAX_CURVES:]:
        records = thinned(iter_jsonl(run_of(run_directory, name) / "metrics.jsonl"))
        keys = {what: key for what, key in _keys(records).items() if key != _LENGTH}
        drawn.append(lines_chart(f"Candidate {name}: components", records, keys))
    return drawn


def tiles(candidates: Mapping[str, Candidate]) -> list[tuple[str | None, str]]:
    best = best_of(dict(candidates))
    trained = sum(found.fitness is not None for found in candidates.values())
    failed = sum(found.problem is not None for found in candidates.values())
    return [
        (number(best.fitness, 3) if best else None, f"fitness of the best, candidate {best.name if best else ''}"),
        (number(trained), "candidates trained"),
        (number(failed), "candidates failed"),
    ]


def tree(run_directory: Path, candidates: Mapping[str, Candidate]) -> str:
    """Every candidate below the one that the model was shown when it wrote it."""
    if not candidates:
        return ""
    best = best_of(dict(candidates))
    branches = "".join(_branch(run_directory, candidates, None, best))
    return f'<h2>Tree of candidates</h2><div class="tree">{branches}</div>'


def _branch(
    run_directory: Path, candidates: Mapping[str, Candidate], parent: str | None, best: Candidate | None
) -> Iterator[str]:
    children = [found for found in candidates.values() if found.parent == parent]
    if not children:
        return
    yield "<ul>"
    for found in children:
        yield f"<li>{_node(run_directory, found, is_best=found == best)}"
        yield from _branch(run_directory, candidates, found.name, best)
        yield "</li>"
    yield "</ul>"


def _node(run_directory: Path, found: Candidate, *, is_best: bool) -> str:
    if found.fitness is not None:
        tone, state = ("good", "best") if is_best else ("", "trained")
        told = f"fitness {number(found.fitness, 3)} after {number(found.env_steps)} env steps"
    elif found.problem is not None:
        tone, state, told = "bad", "failed", found.problem
    else:
        tone, state, told = "warn", "in training" if found.begun else "waits", ""
    code = f"<pre>{escape(found.code.strip())}</pre>" if found.code else f"<pre>{escape(found.text[:4000])}</pre>"
    film = _film(run_directory, found.name)
    return (
        f"<details{' open' if is_best else ''}><summary>{escape(found.name)} "
        f'<span class="badge {tone}">{state}</span> <span class="told">{escape(told)}</span></summary>'
        f"{film}{code}</details>"
    )


def _film(run_directory: Path, name: str) -> str:
    path = run_of(run_directory, name) / VIDEO
    if not path.exists():
        return ""
    where = path.relative_to(run_directory).as_posix()
    if path.stat().st_size > MAX_FILM_BYTES:
        return f'<p><a href="{escape(where)}">film of one episode</a></p>'
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="one episode of candidate {escape(name)}" src="data:image/gif;base64,{content}"></p>'


def _keys(records: list[dict[str, Any]]) -> dict[str, str]:
    """Of a candidate's records: name -> key."""
    found = sorted({key for record in records for key in record if key.startswith(_PREFIX)} - {*_NO_COMPONENT})
    return {
        **{key.removeprefix(_PREFIX): key for key in found},
        "the whole reward": "reward_mean",
        "episode length": _LENGTH,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
