"""Rounds summed up: kills by kind of process, how long recovery took, and what was not as expected."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.chaos.progress import HANG_S


def summed_up(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One JSON object."""
    struck: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for done in rounds:
        for strike in done["strikes"]:
            if _is_kill(strike):
                struck[strike["what"]].append(strike)
            else:
                struck[f"{strike['what']} ({strike['how']})"].append(strike)
    seams = Counter(s["how"] for done in rounds for s in done["strikes"] if s["how"].startswith("seam:"))
    read = [done["books"] for done in rounds if done["books"]]
    return {
        "rounds": len(rounds),
        "kills": sum(_is_kill(strike) for done in rounds for strike in done["strikes"]),
        "stops": sum(strike["how"] == "stop" for done in rounds for strike in done["strikes"]),
        "other_faults": sum(strike["how"] == "fault" for done in rounds for strike in done["strikes"]),
        "by_kind": {name: _recovery(strikes) for name, strikes in sorted(struck.items())},
        "by_run": dict(sorted(Counter({d["kind"]: 0 for d in rounds} | _kills_by_run(rounds)).items())),
        "by_seam": dict(sorted(seams.items())),
        "lost": sum(found["lost"] for found in read),
        "doubled": sum(found["doubled"] for found in read),
        "damaged": sum(found["damaged"] for found in read),
        "tickets_committed": sum(found["committed"] for found in read),
        "attempts": sum(found["attempts"] for found in read),
        "epochs": sum(found["epochs"] for found in read),
        "hangs": sum(done["hangs"] for done in rounds),
        "recoveries_over_120_s": sum(
            (strike["recovered_s"] or 0.0) > HANG_S for done in rounds for strike in done["strikes"]
        ),
        "leftovers": sum(len(done["leftovers"]) for done in rounds),
        "resumes": sum(done["resumes"] for done in rounds),
        "drivers_let_go_of": sum(done.get("let_go", 0) for done in rounds),
        "audits": dict(
            Counter("right" if done["audit"] == 0 else "wrong" for done in rounds if done["audit"] is not None)
        ),
        "hashes": dict(
            Counter("equal" if d["hash_equal"] else "different" for d in rounds if d["hash_equal"] is not None)
        ),
        "broken_rounds": sum(bool(done["faults"]) for done in rounds),
        "lane_hours": round(sum(done["wall_s"] for done in rounds) / 3600, 2),
    }


def table(sums: Mapping[str, Any]) -> str:
    lines = ["| who or what | times | recovery: mean | median | worst |", "| --- | --- | --- | --- | --- |"]
    for name, found in sums["by_kind"].items():
        times = " | ".join(f"{found[key]:.1f} s" if found["n"] else "-" for key in ("mean_s", "median_s", "worst_s"))
        lines.append(f"| {name} | {found['times']} | {times} |")
    return "\n".join(lines)


def _is_kill(strike: Mapping[str, Any]) -> bool:
    return str(strike["how"]) == "kill" or str(strike["how"]).startswith("seam:")


def _kills_by_run(rounds: Sequence[Mapping[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for done in rounds:
        found[done["kind"]] += sum(map(_is_kill, done["strikes"]))
    return found


def _recovery(strikes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`n`: of those after which the next strike waited for it."""
    waited = [strike["recovered_s"] for strike in strikes if strike["recovered_s"] is not None]
    found: dict[str, Any] = {"times": len(strikes), "n": len(waited)}
    if waited:
        found |= {"mean_s": round(fmean(waited), 2), "median_s": round(median(waited), 2), "worst_s": max(waited)}
    return found
