"""Runs side by side: the table of a folder, and the comparison over seeds. The statistics are held against golden
values, the pages are read back as the browser would read them."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.cli import main
from rollcall.deploy.overview.comparison import compare
from rollcall.deploy.overview.group_curves import STEPS, Axis, group_curve, points_of
from rollcall.deploy.overview.run_reading import read_run_directory
from rollcall.deploy.overview.statistics import mean_of, t_quantile
from tests import EARLIER
from tests.runs import trained

ENV_STEPS = Axis("env_steps", "env steps")

CONFIG = """\
name: {name}
seed: {seed}
total_env_steps: 1000
env: {{id: CartPole-v1}}
algorithm: {{name: ppo, clip_range: {clip}}}
metrics: {{port: {port}}}
"""


def make_run(
    root: Path,
    name: str,
    *,
    seed: int = 0,
    clip: float = 0.2,
    returns: tuple[float, ...] = (1.0, 2.0, 3.0),
    final: float | None = 3.0,
    status: str | None = "completed",
    began: float = 1.0,
) -> Path:
    """A run directory as a run of 100 env steps a learner step leaves it."""
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(CONFIG.format(name=name, seed=seed, clip=clip, port=9000 + seed))
    origin = {"recipe": "cartpole-ppo", "began_unix_s": began, "machine": {"cpu_cores": 2, "host": "thinker"}}
    (directory / "run.json").write_text(json.dumps(origin))
    lines = [
        {"step": i, "env_steps": 100 * (i + 1), "return_mean": value, "elapsed_s": 0.5 * (i + 1)}
        for i, value in enumerate(returns)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = {"step": len(returns), "env_steps": 100 * len(returns), "mean": final, "std": 1.0, "n": 20}
    if final is not None:
        (directory / "evals.jsonl").write_text(json.dumps(evaluation) + "\n")
    if status is not None:
        summary: dict[str, Any] = {"status": status, "algorithm": "ppo", "seed": seed, "learner_steps": len(returns)}
        summary |= {"env_steps": 100 * len(returns), "wall_s": 61.0, "recipe": "cartpole-ppo"}
        summary |= {"final_eval": evaluation if final is not None else None}
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLCALL_RUNS", raising=False)
    return tmp_path / "runs"


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


# The table.


def test_the_table_has_a_line_for_each_run_the_newest_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs, "old", began=time.time() - 3 * 86_400, final=475.25)
    make_run(runs, "new", began=time.time() - 75, final=None, status="failed")
    assert main.main(["runs"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "recipe", "method", "status", "score", "steps", "experience", "began", "machine"]
    assert first.split("  ")[0] == "new" and "failed" in first and "3.0 (training)" in first
    assert "1 min 15 s ago" in first or "1 min 16 s ago" in first
    assert "ppo on CartPole-v1" in second and "475.2" in second and "300 env steps" in second
    assert "3 days ago" in second and second.endswith("thinker, 2 cores")


def test_a_run_without_a_driver_and_without_a_summary_was_cut_off(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = make_run(runs, "killed", status=None)
    make_run(runs, "begins", status=None, returns=())
    (killed / "checkpoints" / "step-00000002").mkdir(parents=True)
    (killed / "checkpoints" / "step-00000002" / "manifest.json").write_text("{}")
    going = make_run(runs, "going", status=None)
    locks = [DirectoryLock(runs / "begins"), DirectoryLock(going)]
    try:
        assert main.main(["runs", "--json"]) == 0
        status = {run["run"]: (run["status"], run["resumable"]) for run in told(capsys)}
        assert status == {"killed": ("cut off", True), "begins": ("starting", False), "going": ("running", False)}
        assert main.main(["runs", "--status", "cut off", "--json"]) == 0
        assert [run["run"] for run in told(capsys)] == ["killed"]
    finally:
        for lock in locks:
            lock.release()


def test_runs_of_earlier_releases_and_of_language_are_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["runs", "--json", str(EARLIER / "control"), str(EARLIER / "language")]) == 0
    found = {run["run"]: run for run in told(capsys)}
    assert found["control"]["env_steps"] == 62 and found["control"]["status"] == "stopped"
    assert found["control"]["score"] == 9.5 and found["control"]["score_of"] == "evaluation"
    assert found["language"]["score_unit"] == "exact match" and "tokens" in found["language"]


def test_a_damaged_run_is_left_out_of_the_table_and_refused_when_it_is_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs, "whole")
    (make_run(runs, "damaged") / "config.yaml").write_text("a: [")
    assert main.main(["runs", "--json"]) == 0
    assert [run["run"] for run in told(capsys)] == ["whole"]
    assert main.main(["runs", "damaged"]) == 2
    assert "not valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs"], "runs/ is not there yet"),
        (["runs", "nosuch"], "no run 'nosuch'"),
        (["runs", "--status", "done"], "--status = 'done' (command line): must be one of completed, stopped"),
        (["compare"], "the following arguments are required: RUN"),
        (["compare", "nosuch"], "no run 'nosuch'"),
    ],
)
def test_what_is_not_there_is_one_line(
    arguments: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_table_imports_neither_torch_nor_ray(runs: Path) -> None:
    for seed in range(3):
        make_run(runs, f"run-{seed}", seed=seed)
    code = (
        "import sys, time; from rollcall.deploy.cli import main; assert main.main(['runs']) == 0; "
        "assert main.main(['compare', 'run-0', 'run-1', 'run-2', '--csv', 'x.csv']) == 0; "
        "heavy = {'torch', 'ray', 'gymnasium'} & set(sys.modules); assert not heavy, heavy; "
        "assert time.process_time() < 1.5, time.process_time()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# The statistics.


def test_the_interval_is_students(runs: Path) -> None:
    # 490, 500, 495: mean 495, s = 5; t(0.975, 2) = 4.303; 4.303 * 5 / sqrt(3) = 12.42.
    mean = mean_of([490.0, 500.0, 495.0])
    assert mean is not None and mean.mean == 495.0 and mean.low is not None and mean.high is not None
    assert mean.high - mean.mean == pytest.approx(12.4217, abs=1e-3) == mean.mean - mean.low
    assert mean_of([]) is None
    alone = mean_of([3.0])
    assert alone is not None and (alone.mean, alone.low, alone.high) == (3.0, None, None)


def test_quantiles_between_two_rows_are_the_wider_ones() -> None:
    assert [t_quantile(n) for n in (1, 22, 29, 1000)] == [12.706, 2.086, 2.060, 1.980]
    with pytest.raises(ValueError, match="degrees is 0"):
        t_quantile(0)


def test_a_curve_of_seeds_ends_where_the_first_of_them_ends() -> None:
    long = [{"step": i, "env_steps": 100 * (i + 1), "return_mean": float(i)} for i in range(5)]
    short = [{"step": i, "env_steps": 150 * (i + 1), "return_mean": 10.0 * i} for i in range(3)]
    curve = group_curve([long, short], "return_mean", ENV_STEPS)
    assert curve is not None and curve.x[0] == 150 and curve.x[-1] == 450
    # At 150 env steps the long run is half way between 0 and 1, the short one at its first value, 0.
    assert curve.means[0].mean == pytest.approx((0.5 + 0.0) / 2)
    assert curve.means[-1].mean == pytest.approx((3.5 + 20.0) / 2)
    assert group_curve([long, []], "return_mean", ENV_STEPS) is None
    assert group_curve([long], "nothing", ENV_STEPS) is None


def test_what_a_restore_took_back_is_no_part_of_a_curve() -> None:
    records: list[Mapping[str, Any]] = [
        {"step": step, "return_mean": value} for step, value in ((0, 1.0), (1, 2.0), (2, 3.0), (1, 20.0), (2, math.nan))
    ]
    assert points_of(records, "return_mean", STEPS) == [(1.0, 1.0), (2.0, 20.0)]


# The comparison.


def test_seeds_are_grouped_by_settings_and_the_differing_settings_named(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, final in enumerate((490.0, 500.0, 495.0)):
        make_run(runs, f"narrow-{seed}", seed=seed, clip=0.1, final=final)
    make_run(runs, "wide", clip=0.3, final=450.0)
    names = ["narrow-0", "wide", "narrow-1", "narrow-2"]
    assert main.main(["compare", *names, "--json", "--csv", "curves.csv"]) == 0
    found: Any = told(capsys)
    assert [group["label"] for group in found["groups"]] == ["algorithm.clip_range=0.1", "algorithm.clip_range=0.3"]
    assert found["differing_settings"] == {"algorithm.clip_range": [0.1, 0.3]}
    first, second = (group["score"] for group in found["groups"])
    assert first["mean"] == 495 and first["high"] == pytest.approx(507.42, abs=0.01) and first["n"] == 3
    assert second == {"mean": 450, "low": None, "high": None, "n": 1}
    assert found["files"] == ["curves.csv"] and not (runs / "comparison.html").exists()

    with Path("curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["metric"], row["axis"]) for row in rows} == {
        ("evaluation", "env_steps"),
        ("return_mean", "env_steps"),
        ("return_mean", "step"),
        ("return_mean", "elapsed_s"),
    }
    last = [row for row in rows if row["axis"] == "step" and row["group"].endswith("0.1")][-1]
    assert (float(last["x"]), float(last["mean"]), last["seeds"]) == (3.0, 3.0, "3")


def test_the_terminal_says_what_the_page_says(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, final in enumerate((490.0, 500.0, 495.0)):
        make_run(runs, f"narrow-{seed}", seed=seed, clip=0.1, final=final)
    make_run(runs, "wide", clip=0.3, final=450.0)
    assert main.main(["compare", "narrow-0", "narrow-1", "narrow-2", "wide"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "algorithm.clip_range=0.1  495.0 [482.6, 507.4]  3 seeds, evaluation"
    assert "algorithm.clip_range=0.3  450.0 (one seed)  1 seed, evaluation" in lines
    assert "  algorithm.clip_range: 0.1 | 0.3" in lines and lines[-1] == "runs/comparison.html"
    page = (runs / "comparison.html").read_text()
    assert "495.0 [482.6, 507.4]" in page and "95 % t interval" in page and "<th>algorithm.clip_range</th>" in page
    data = page.partition('id="charts">')[2].partition("</script>")[0]
    charts = json.loads(data)
    assert [(chart["title"], chart["x_label"]) for chart in charts] == [
        ("Evaluation", "env steps"),
        ("Return", "env steps"),
        ("Return", "learner steps"),
        ("Return", "seconds of training"),
    ]
    assert "src=" not in page and "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert main.main(["compare", "wide", "--html", "own/page.html", "-q"]) == 0
    assert capsys.readouterr().out == "own/page.html\n"


def test_labels_that_would_be_alike_are_told_apart(runs: Path) -> None:
    config = CONFIG.replace("clip_range: {clip}", "a: {clip}, b: {clip}, c: {clip}, d: {clip}")
    for index in range(2):
        directory = make_run(runs, f"run-{index}", clip=index)
        (directory / "config.yaml").write_text(config.format(name="x", seed=0, clip=index, port=1))
    found = compare([runs / "run-0", runs / "run-1"])
    assert [group.label for group in found.groups] == ["run-0", "run-1"]
    assert set(found.differing) == {f"algorithm.{key}" for key in "abcd"}


def test_two_seeds_of_a_real_run_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trained(tmp_path, "first"):
        assert main.main(["train", "small.yaml", "name=second", "seed=1"]) == 0
        capsys.readouterr()
        assert main.main(["compare", "first", "second", "--json"]) == 0
        (group,) = json.loads(capsys.readouterr().out)["groups"]
        assert [run["seed"] for run in group["runs"]] == [0, 1] and group["score"]["n"] == 2
        reading = read_run_directory(Path("runs/first"))
        assert reading.status == "completed" and reading.score == group["runs"][0]["score"]
        assert reading.machine.count(",") == 1  # the host's name, and its cores
