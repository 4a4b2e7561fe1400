"""What a setting does to the critic of a shipped recipe, over its first learner steps."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from rollcall.deploy.cli import main


def test_returns_of_a_hundred_saturate_a_critic_and_scaled_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds 0 to 4 explain 0.90 to 0.99 of the returns' variance with scaled rewards, and 0.03 to 0.14 without, in the
    median of steps 200 to 400. At lag 0 a seed gives the same again."""
    monkeypatch.chdir(tmp_path)
    explained = {}
    for scaled in ("true", "false"):
        settings = ("seed=1", "runtime=serial", "total_env_steps=51200", f"policy.normalise_rewards={scaled}")
        assert main.main(["train", "cartpole-a2c", *settings, f"name=scaled-{scaled}", "-q"]) == 0
        lines = Path("runs", f"scaled-{scaled}", "metrics.jsonl").read_text().splitlines()
        explained[scaled] = statistics.median(json.loads(line)["explained_variance"] for line in lines[200:])
    assert explained["true"] > 0.6 and explained["false"] < 0.3
