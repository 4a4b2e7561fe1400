"""The report of a run: one page that asks nothing of the network, says how the run ended, and stays small."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.curves import MAX_POINTS, build_charts
from rollcall.deploy.report import write_report

SUMMARY: dict[str, Any] = {
    "status": "completed",
    "recipe": "cartpole-ppo",
    "algorithm": "ppo",
    "seed": 3,
    "wall_s": 95.2,
    "train_s": 80.0,
    "learner_steps": 74,
    "env_steps": 151_552,
    "steps_per_s": 13_650.2,
    "final_eval": {"mean": 498.2, "std": 5.1, "n": 100},
    "policy_lag": {"max": 1, "mean": 0.61},
    "ledger": {
        "issued": 300,
        "committed": 296,
        "dropped": 3,
        "dropped_by_reason": {"actor_died": 2, "stale": 1},
        "rolled_back": 1,
        "in_flight": 0,
        "duplicates_refused": 7,
    },
    "restarts": 2,
}


def step_record(step: int, **more: Any) -> dict[str, Any]:
    record = {
        "step": step,
        "epoch": 1,
        "policy_version": step + 1,
        "wait_batch_s": 0.004,
        "update_s": 0.02,
        "publish_s": 0.001,
        "lag_max": 1,
        "lag_mean": 0.5,
        "return_mean": None if step == 1 else float(step),
        "env_steps": (step + 1) * 2048,
        "elapsed_s": (step + 1) * 0.15,
        "policy_loss": -0.01,
        "clip_fraction": 0.1,
    }
    return record | more


def write_run(directory: Path, *, num_steps: int = 74, summary: dict[str, Any] | None = None) -> Path:
    directory.mkdir()
    (directory / "config.yaml").write_text("seed: 3\nruntime: ray\nenv:\n  id: CartPole-v1\nalgorithm:\n  name: ppo\n")
    lines = [json.dumps(step_record(step)) for step in range(num_steps)]
    (directory / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    evaluation = {"step": 10, "env_steps": 20_480, "mean": 200.0, "std": 10.0, "n": 20}
    (directory / "evals.jsonl").write_text(json.dumps(evaluation) + "\n")
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


class Page(HTMLParser):
    """What a browser would load, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.scripts += tag == "script"
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data + " "


def page_of(directory: Path) -> tuple[str, Page]:
    html = write_report(directory).read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    html, page = page_of(write_run(tmp_path / "run", summary=SUMMARY))
    assert page.loads == []
    assert page.open == []
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[\w/.]*", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace, never fetched
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|new Image", html)


def test_the_page_says_what_was_run_how_it_ended_and_where_every_rollout_went(tmp_path: Path) -> None:
    _, page = page_of(write_run(tmp_path / "cartpole-ppo-7", summary=SUMMARY))
    text = " ".join(page.text.split())
    assert "cartpole-ppo-7 completed recipe cartpole-ppo · ppo on CartPole-v1 · seed 3 · ray runtime" in text
    for part in (
        "498.2 ± 5.1 final evaluation, 100 episodes",
        "151,552 env steps",
        "74 learner steps",
        "1 min 35 s wall time",
        "13,650 env steps per second",
        "Rollouts issued 300 committed to a learner step 296 dropped 3 actor died 2 stale 1",
        "Late or duplicate attempts refused 7 Restarts 2",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (None, ["not finished", "200.0 ± 10.0 latest evaluation, 20 episodes", "74 learner steps"]),
        (SUMMARY | {"status": "failed", "error": "EnvFailure: env 3 raised"}, ["failed", "EnvFailure: env 3 raised"]),
        (SUMMARY | {"status": "stopped", "final_eval": None, "ledger": None}, ["stopped", "latest evaluation"]),
    ],
)
def test_a_run_that_did_not_complete_has_a_report_too(
    tmp_path: Path, summary: dict[str, Any] | None, words: list[str]
) -> None:
    _, page = page_of(write_run(tmp_path / "run", summary=summary))
    text = " ".join(page.text.split())
    assert all(word in text for word in words)


def test_a_run_without_a_single_step_has_a_report(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text("seed: 0\nenv: {id: CartPole-v1}\nalgorithm: {name: ppo}\n")
    _, page = page_of(directory)
    assert "No learner step was recorded yet." in page.text


def test_nothing_a_run_says_can_become_markup(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", summary=SUMMARY | {"recipe": "<script>alert(1)</script>"})
    hostile = '</script><script>alert("x")</script>'
    (directory / "events.jsonl").write_text(json.dumps({"step": 1, "kind": "stale", "text": hostile}) + "\n")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_record(74, **{hostile: 1.0})) + "\n")
    _, page = page_of(directory)
    assert page.scripts == 2  # the page's own: the data and the drawing
    assert hostile in page.text


def test_where_there_is_no_run_the_report_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run here"):
        write_report(tmp_path)


def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run", num_steps=20_000))
    assert path.stat().st_size < 250_000


def test_downsampling_keeps_means_and_the_largest_lag() -> None:
    records = [step_record(step, lag_max=4 if step == 777 else 1, return_mean=float(step)) for step in range(4000)]
    charts = {chart["title"]: chart for chart in build_charts(records, [])}
    assert all(len(chart["x"]) <= MAX_POINTS for chart in charts.values())
    lag = charts["Policy lag"]["series"][0]["y"]
    assert max(lag) == 4
    raw = charts["Return"]["series"][0]["y"]
    assert raw[0] == pytest.approx(4.5)  # the mean of the first bucket of ten
    assert raw[-1] == pytest.approx(3994.5)
    assert charts["Env steps per second"]["series"][0]["y"][1] == pytest.approx(2048 / 0.15, rel=1e-3)


def test_a_missing_value_is_a_gap_and_not_a_zero() -> None:
    charts = build_charts([step_record(step) for step in range(3)], [])
    assert charts[0]["series"][0]["y"] == [0.0, None, 2.0]


def test_every_metric_of_an_algorithm_gets_a_curve_without_being_known() -> None:
    titles = [chart["title"] for chart in build_charts([step_record(s, rho_clipped=0.5) for s in range(3)], [])]
    assert titles == [
        "Return",
        "Policy loss",
        "Fraction clipped",
        "Rho clipped",
        "Policy lag",
        "Time per learner step",
        "Env steps per second",
    ]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_curve_within_the_page(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    path = write_report(write_run(tmp_path / "run", summary=SUMMARY))
    probe = path.read_text(encoding="utf-8").replace(
        "</body>",
        "<script>document.title = [document.querySelectorAll('figure').length,"
        "[...document.querySelectorAll('figure')].filter(f => f.querySelector('path[d^=M]')).length,"
        "document.documentElement.scrollWidth <= innerWidth].join(' ')</script></body>",
    )
    path.write_text(probe, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title.group(1) == "6 6 true"
