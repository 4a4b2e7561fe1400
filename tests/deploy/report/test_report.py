"""The report of a run: one page that asks nothing of the network, says how the run ended, and stays small."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.report.chart_choice import chosen
from rollcall.deploy.report.counted import TOKENS
from rollcall.deploy.report.curves import MAX_POINTS, build_charts
from rollcall.deploy.report.page import write_report
from tests.needs import CHROMIUM, needs

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
        "wait_batch_s": 0.004 + 0.001 * (step % 4),
        "update_s": 0.02,
        "publish_s": 0.001,
        "lag_max": step % 2,
        "lag_mean": 0.5 * (step % 2),
        "return_mean": None if step == 1 else float(step),
        "env_steps": (step + 1) * 2048,
        "elapsed_s": (step + 1) * 0.15 + 0.01 * (step % 3),
        "policy_loss": -0.01 * (1 + step % 3),
        "clip_fraction": 0.1 + 0.01 * (step % 2),
    }
    return record | more


LANGUAGE_SUMMARY: dict[str, Any] = {
    **{key: value for key, value in SUMMARY.items() if key not in ("env_steps", "steps_per_s", "recipe", "algorithm")},
    "recipe": "gsm8k-grpo",
    "algorithm": "grpo",
    "generated_tokens": 303_104,
    "tokens_per_s": 3788.8,
    "final_eval": {"mean": 0.972, "std": 0.165, "n": 500},
}


def language_record(step: int, **more: Any) -> dict[str, Any]:
    shared = {key: value for key, value in step_record(step).items() if key not in ("return_mean", "env_steps")}
    measured = {
        "reward_mean": 0.01 * step,
        "reward_format": 0.5 + 0.001 * step,
        "exact_match": 0.005 * step,
        "length_mean": 80.0 + step % 5,
        "length_max": 128,
        "truncated_fraction": 0.02 + 0.001 * (step % 6),
        "degenerate_dropped": 3,
        "entropy": 0.6 - 0.001 * step,
        "kl_reference": 0.01 * (step % 7),
        "mismatch": 0.002 + 0.0001 * (step % 8),
        "apply_s": 0.1 + 0.01 * (step % 9),
        "tokens": (step + 1) * 4096,
        "tokens_per_s": 27_000.0,
        "trained_tokens": 4096.0 - step,
    }
    return shared | measured | more


def sample(step: int, text: str = "The answer is 4.") -> dict[str, Any]:
    return {"step": step, "samples": [{"prompt": f"question {step}", "text": text, "reward": 1.0}]}


def write_language_run(
    directory: Path, *, num_steps: int = 74, samples: list[dict[str, Any]] | None = None, **summary: Any
) -> Path:
    directory.mkdir()
    (directory / "config.yaml").write_text("seed: 3\ntask:\n  name: gsm8k\nalgorithm:\n  name: grpo\n")
    lines = [json.dumps(language_record(step)) for step in range(num_steps)]
    (directory / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    shown = [sample(step) for step in range(num_steps)] if samples is None else samples
    (directory / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown))
    evaluation = {"step": 10, "tokens": 40_960, "mean": 0.5, "std": 0.5, "n": 100, "unit": "exact match"}
    (directory / "evals.jsonl").write_text(json.dumps(evaluation) + "\n")
    (directory / "summary.json").write_text(json.dumps(LANGUAGE_SUMMARY | summary))
    return directory


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
        "498.2 ± 5.1 final evaluation (greedy), 100 episodes",
        "73.0 training return (sampled), the last 100 episodes",
        "151,552 env steps, 74 learner steps",
        "1 min 35 s wall time",
        "13,650 steps/s speed",
        "Rollouts issued 300 committed to a learner step 296 dropped 3 actor died 2 stale 1",
        "Late or duplicate attempts refused 7 Restarts 2",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (None, ["not finished", "200.0 ± 10.0 latest evaluation (greedy), 20 episodes", "74 learner steps"]),
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
    records = [{**record, "elapsed_s": 0.15 * (step + 1)} for step, record in enumerate(records)]
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
        "Time per learner step",
        "Env steps per second",
        "Policy loss",
        "Clip fraction",
        "Rho clipped",
        "Policy lag",
    ]


def test_the_page_of_a_language_run_speaks_of_tokens_and_problems(tmp_path: Path) -> None:
    html, page = page_of(write_language_run(tmp_path / "gsm8k-grpo-2"))
    text = " ".join(page.text.split())
    for part in (
        "recipe gsm8k-grpo · grpo on gsm8k · seed 3",
        "97.2 % final evaluation (greedy), 500 problems",
        "303,104 generated tokens, 74 learner steps",
        "3,789 tok/s speed",
        "Learning, over tokens",
        "training (sampled), smoothed evaluation (greedy), mean ± standard error",
    ):
        assert part in text
    assert "env steps" not in html
    assert page.loads == []
    assert page.open == []


def test_a_language_run_has_its_own_curves_over_tokens() -> None:
    evaluation = {"step": 1, "tokens": 4096, "mean": 0.5, "std": 0.5, "n": 100}
    charts = build_charts([language_record(s) for s in range(3)], [evaluation], counts=TOKENS)
    assert [chart["title"] for chart in charts] == [
        "Exact match",
        "Reward",
        "Completion length",
        "Time per learner step",
        "Tokens per second",
        "Policy loss",
        "KL to the reference",
        "Clip fraction",
        "Entropy",
        "Truncated completions",
        "Log-probability mismatch",
        "Trained tokens",
        "Weight loading time",
        "Reward format",
        "Policy lag",
    ]
    assert {chart["x_label"] for chart in charts} == {"tokens"}
    exact_match, reward, *_ = charts
    speed = next(chart for chart in charts if chart["title"] == "Tokens per second")
    assert {chart["title"]: chart["unit"] for chart in charts if chart["unit"]} == {
        "Exact match": " %",
        "Completion length": " tok",
        "Time per learner step": " ms",
        "Tokens per second": " tok/s",
        "KL to the reference": " nats",
        "Entropy": " nats",
        "Log-probability mismatch": " nats",
        "Trained tokens": " tok",
        "Weight loading time": " s",
        "Policy lag": " versions",
    }
    assert exact_match["x"] == [4096, 8192, 12_288]
    assert exact_match["series"][0]["y"] == [0.0, 0.5, 1.0]  # percent
    assert reward["series"][0]["y"] == [0.0, 0.01, 0.02]
    (point,) = exact_match["points"]
    assert (point["low"], point["y"], point["high"]) == (45.0, 50.0, 55.0)  # 0.5 / sqrt(100) to each side
    assert point["text"] == "evaluation: 50.0 ± 5 % (100 problems)"
    assert speed["series"][0]["y"][1] == pytest.approx(4096 / 0.16, rel=1e-3)


def test_the_completions_shown_are_of_the_first_the_middle_and_the_last_step(tmp_path: Path) -> None:
    directory = write_language_run(tmp_path / "run", num_steps=9)
    with (directory / "samples.jsonl").open("a") as file:
        file.write('{"step": 9, "samples": [{"pro')  # cut short by a kill
    _, page = page_of(directory)
    assert re.findall(r"question \d+", page.text) == ["question 0", "question 4", "question 8"]
    assert "4 question 4 The answer is 4. 1.00" in " ".join(page.text.split())


@pytest.mark.parametrize("num_lines", [1, 2])
def test_a_run_of_one_step_or_two_shows_each_once(tmp_path: Path, num_lines: int) -> None:
    _, page = page_of(write_language_run(tmp_path / "run", num_steps=num_lines))
    assert re.findall(r"question \d+", page.text) == [f"question {step}" for step in range(num_lines)]


@pytest.mark.parametrize(
    "text",
    [
        '<script>alert("x")</script>',
        "</td></table><img src=x onerror=alert(1)>",
        "<!--charts--> <!--body-->",
        "&lt;b&gt; 'single' \"double\"",
        "two\nlines\u2028and \u4e2d\u6587 \u202e turned",
    ],
)
def test_a_completion_may_hold_any_characters_and_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    samples = [{"step": 0, "samples": [{"prompt": text, "text": text, "reward": None}]}]
    html, page = page_of(write_language_run(tmp_path / "run", samples=samples))
    assert page.text.count(text) == 2
    assert page.scripts == 2  # the page's own
    assert page.loads == []
    assert page.open == []
    assert "onerror=alert(1)>" not in html


def test_half_a_surrogate_pair_spoils_no_report(tmp_path: Path) -> None:
    _, page = page_of(write_language_run(tmp_path / "run", samples=[sample(0, "x\ud83dy")]))
    assert "x?y" in page.text


def test_long_texts_are_cut(tmp_path: Path) -> None:
    long = {"step": 0, "samples": [{"prompt": "p" * 5000, "text": "c" * 5000, "reward": 0.5}]}
    _, page = page_of(write_language_run(tmp_path / "run", samples=[long]))
    prompt, completion = re.findall(r"p{100,}\.\.\.|c{100,}\.\.\.", page.text)
    assert len(prompt) == 403
    assert len(completion) == 1203


@pytest.mark.parametrize("line", ["{}", "[]", "null", '{"step": 1, "samples": 3}', '{"step": 1, "samples": ["a"]}'])
def test_a_damaged_line_of_completions_is_left_out(tmp_path: Path, line: str) -> None:
    directory = write_language_run(tmp_path / "run", num_steps=3)
    (directory / "samples.jsonl").write_text(f"{line}\n{json.dumps(sample(1))}\n{line}\n")
    _, page = page_of(directory)
    assert re.findall(r"question \d+", page.text) == ["question 1"]


def test_a_long_language_run_makes_no_large_page(tmp_path: Path) -> None:
    path = write_report(write_language_run(tmp_path / "run", num_steps=4000))
    assert path.stat().st_size < 400_000


def test_another_run_stands_beside_in_the_same_charts_as_far_as_both_go(tmp_path: Path) -> None:
    run, shorter = write_language_run(tmp_path / "with-kl"), write_language_run(tmp_path / "without", num_steps=30)
    html = write_report(run, beside=[shorter]).read_text(encoding="utf-8")
    assert "Beside without" in Page(html).text
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert found is not None
    chart = next(chart for chart in json.loads(found.group(1)) if chart["title"] == "KL to the reference")
    assert [line["name"] for line in chart["series"]] == ["with-kl", "without"]
    assert [sum(value is not None for value in line["y"]) for line in chart["series"]] == [74, 30]


def test_several_runs_stand_beside_and_those_of_one_name_are_told_apart(tmp_path: Path) -> None:
    run = write_language_run(tmp_path / "run", num_steps=10)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    others = [write_language_run(tmp_path / name, num_steps=10) for name in ("a/other", "b/other", "third")]
    html = write_report(run, beside=others).read_text(encoding="utf-8")
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert found is not None
    names = {tuple(line["name"] for line in chart["series"]) for chart in json.loads(found.group(1))}
    assert ("run", str(others[0]), str(others[1]), "third") in names


def test_charts_stand_in_groups_with_what_one_wants_first_and_samples_second(tmp_path: Path) -> None:
    records = [language_record(step, engine_running=step % 4) for step in range(74)]
    directory = write_language_run(tmp_path / "run")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    html, _ = page_of(directory)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Learning, over tokens",
        "Sample completions",
        "Behaviour, over tokens",
        "Engine, over tokens",
        "Time, over tokens",
        "Books, over tokens",
    ]
    titles = re.findall(r"<figcaption>([^<]+)", html)
    assert titles[:2] == ["Exact match, %", "Reward"]
    assert titles[titles.index("Completion length, tok") :] == [
        *("Completion length, tok", "Entropy, nats", "Truncated completions"),
        *("Log-probability mismatch, nats", "Running requests", "Trained tokens, tok"),
        *("Time per learner step, ms", "Tokens per second, tok/s", "Weight loading time, s"),
        "Policy lag, versions",
    ]


def test_what_says_nothing_and_what_another_says_is_named_and_not_drawn(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    more = {"learning_rate": 0.001, "approx_kl": 1e-13, "lag_max": 1, "lag_mean": 0.5, "never": None}
    records = [step_record(step, **more, loss=-0.01 * (1 + step % 3)) for step in range(40)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    html, page = page_of(directory)
    assert (
        "Not drawn: Loss: as Policy loss; Approximate KL: 0 throughout; Learning rate: 0.001 throughout; "
        "Policy lag: largest 1.00 versions, mean 0.5 versions throughout." in " ".join(page.text.split())
    )
    titles = re.findall(r"<figcaption>([^<]+)", html)
    assert not {"Loss", "Approximate KL, nats", "Learning rate", "Policy lag, versions", "Never"} & set(titles)
    assert {"Policy loss", "Clip fraction"} <= set(titles)


def test_of_two_steps_nothing_is_said_to_be_so_throughout() -> None:
    charts = build_charts([step_record(step, learning_rate=0.1) for step in range(2)], [])
    assert chosen(charts).left_out == []


def test_a_start_that_hides_the_rest_of_a_chart_of_time_is_cut_off_and_said() -> None:
    def chart_of(title: str, first_s: float) -> dict[str, Any]:
        records = [
            step_record(step, update_s=first_s if step == 0 else 0.02, grad_norm=step + 1.0) for step in range(60)
        ]
        records[0]["grad_norm"] = 1e6
        groups = chosen(build_charts(records, [])).groups
        return next(chart for own in groups.values() for chart in own if chart["title"] == title)

    cut = chart_of("Time per learner step", 20.0)
    assert cut["top"] == pytest.approx(1.1 * (20 + 7 + 1))  # ms: the longest step after the start
    assert cut["note"] == "the start, up to 20 s, is cut off"
    assert "top" not in chart_of("Time per learner step", 0.04)
    assert "top" not in chart_of("Gradient norm", 20.0), "what is learnt from is shown as it is"


def test_an_evaluation_by_the_tasks_reward_is_no_share_of_problems(tmp_path: Path) -> None:
    evaluation = {"step": 1, "tokens": 4096, "mean": 0.5, "std": 0.5, "n": 100, "unit": "reward"}
    records = [language_record(step, reward_task=0.1 * step) for step in range(9)]
    charts = {
        chart["title"]: chart for chart in build_charts(records, [evaluation], counts=TOKENS, eval_mode="sampled")
    }
    assert charts["Exact match"]["points"] == [] and not charts["Exact match"]["wide"]
    (point,) = charts["Task reward, not learnt from"]["points"]
    assert (point["low"], point["y"], point["high"]) == (0.45, 0.5, 0.55)
    assert charts["Task reward, not learnt from"]["points_name"] == "evaluation (sampled), mean ± standard error"
    without = {chart["title"]: chart for chart in build_charts([language_record(1)], [evaluation], counts=TOKENS)}
    assert len(without["Reward"]["points"]) == 1
    directory = write_language_run(tmp_path / "run", final_eval={"mean": 0.79, "std": 0.29, "n": 300, "unit": "reward"})
    (directory / "config.yaml").write_text("task: {name: reviews}\neval: {greedy: false}\n")
    assert "0.79 ± 0.29 final evaluation (sampled), 300 problems" in " ".join(page_of(directory)[1].text.split())


def test_the_head_says_when_where_from_which_commit_and_what_somebody_chose(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", summary=SUMMARY)
    origin = {
        "began_unix_s": 1795806556.2,
        "machine": {"system": "Linux x86_64", "cpu_cores": 2, "host": "trainer-3"},
        "project": {"name": "robots", "commit": "0fac105c895f77f6", "changed": True},
        "written": {
            "over": {"total_env_steps": [150_000, 20_000], "seed": [None, 1], "env.kwargs.text": [None, "<b>" * 40]},
            "chosen": {"algorithm.discount": 0.98, "seed": 1},
        },
    }
    (directory / "run.json").write_text(json.dumps(origin))
    text = " ".join(page_of(directory)[1].text.split())
    assert "2026-11-27 19:09 UTC · trainer-3, 2 cores, Linux x86_64 · robots at commit 0fac105c89, with changes" in text
    assert "Other than the recipe: total_env_steps=20000 150000 seed=1 env.kwargs.text=<b><b>" in text
    assert "Other than the defaults: algorithm.discount=0.98 " in text


@pytest.mark.parametrize("written", [None, [], "x", {"over": 3, "chosen": None}, {"over": {"a": 5}}])
def test_a_head_of_an_earlier_run_or_a_strange_one_has_no_such_lines(tmp_path: Path, written: Any) -> None:
    directory = write_run(tmp_path / "run")
    (directory / "run.json").write_text(json.dumps({} if written is None else {"written": written}))
    text = page_of(directory)[1].text
    assert ("a=5" in text) == (written == {"over": {"a": 5}})
    assert "Other than the defaults" not in text


@needs("chromium")
@pytest.mark.parametrize(("kind", "num_charts"), [("control", 6), ("language", 15)])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_curve_within_the_page(tmp_path: Path, width: int, kind: str, num_charts: int) -> None:
    if kind == "control":
        path = write_report(write_run(tmp_path / "run", summary=SUMMARY))
    else:
        path = write_report(write_language_run(tmp_path / "run", samples=[sample(0, "wide" * 400)]))
    probe = path.read_text(encoding="utf-8").replace(
        "</body>",
        "<script>document.title = [document.querySelectorAll('figure').length,"
        "[...document.querySelectorAll('figure')].filter(f => f.querySelector('path[d^=M]')).length,"
        "document.documentElement.scrollWidth <= innerWidth].join(' ')</script></body>",
    )
    path.write_text(probe, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title.group(1) == f"{num_charts} {num_charts} true"
