"""The report's curve of a gamed reward: proxy and truth over how far the policy has gone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.loop import gamed_rewards
from rollcall.deploy.report.kl_curve import MAX_BINS, kl_curve
from rollcall.deploy.report.page import write_report
from tests import ROOT

RECORDED = ROOT / "tests" / "deploy" / "recorded"


def recorded(name: str) -> list[dict[str, Any]]:
    kept: dict[str, float] = {}
    lines = (RECORDED / f"{name}.jsonl").read_text().splitlines()
    return [record | gamed_rewards.followed(kept, record) for record in map(json.loads, lines)]


def test_x_is_the_root_of_a_completions_kl_in_order_whatever_the_order_of_the_steps() -> None:
    records = [
        {"kl_reference": kl, "length_mean": 25.0, "reward_gain": gain, "task_gain": -gain}
        for kl, gain in ((0.04, 2.0), (0.01, 1.0), (0.0, 0.0))
    ]
    (chart,) = kl_curve([*records, {"kl_reference": 0.5}, {**records[0], "task_gain": None}])
    assert chart["x"] == pytest.approx([0.0, 0.5, 1.0])
    proxy, truth = chart["series"]
    assert (proxy["y"], truth["y"]) == ([0.0, 1.0, 2.0], [0.0, -1.0, -2.0])


def test_an_estimate_below_zero_is_no_kl() -> None:
    records = [{"kl_reference": -0.01, "length_mean": 9.0, "reward_gain": 0.0, "task_gain": 0.0}] * 2
    assert kl_curve(records)[0]["x"] == [0.0, 0.0]


def test_a_gamed_run_shows_the_truth_turn_while_the_proxy_goes_on_and_a_sound_one_does_not() -> None:
    (gamed,), (sound,) = kl_curve(recorded("gamed")), kl_curve(recorded("sound"))
    assert 2 < len(gamed["x"]) <= MAX_BINS and gamed["x"] == sorted(gamed["x"])
    proxy, truth = (line["y"] for line in gamed["series"])
    top = truth.index(max(truth))
    assert truth[-1] < -1.5 < 0.2 < truth[top] and proxy[-1] > 5 > proxy[top]
    assert all(math.isfinite(y) for y in (*proxy, *truth))
    _, truth = (line["y"] for line in sound["series"])
    assert truth[-1] > 0.5 and min(truth[5:]) > 0


def test_the_page_has_it_only_where_there_is_a_reference_and_a_truth(tmp_path: Path) -> None:
    for name, keys in (("gamed", ()), ("own", ("task_gain", "reward_gain"))):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.yaml").write_text("task: {name: reviews}\nalgorithm: {name: lm_ppo}\n")
        lines = [{k: v for k, v in record.items() if k not in keys} for record in recorded("gamed")]
        text = "".join(json.dumps({**line, "tokens": 1000 * (line["step"] + 1)}) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text)
        page = write_report(directory).read_text()
        assert ("Proxy and truth over KL" in page) == (name == "gamed")
        assert "Repeated 4-grams" in page
