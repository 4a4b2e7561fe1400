"""The three commands of docs/outside_actors.md, side by side as a reader would type them in three terminals: a run, an
actor in Python and one in Node that learn together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rollcall.cluster.books.audit import audit_run
from tests import ROOT
from tests.needs import needs
from tests.pages.blocks import commands
from tests.pages.running import environment
from tests.waiting import eventually

SHORT = (
    "learner.compile=off",
    "total_env_steps=40960",
    "eval.every_steps=null",
    "eval.episodes=2",
    "metrics.enabled=false",
)


def typed(command: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
@needs("node")
def test_the_pages_commands_run_side_by_side(tmp_path: Path) -> None:
    train, actor, node = commands("docs/outside_actors.md")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run = tmp_path / "runs" / "cartpole-ppo"
    begun = [typed(f"{train} {' '.join(SHORT)}", tmp_path)]
    try:
        eventually(lambda: (run / "outside.url").exists() or begun[0].poll() is not None, 120, "the gateway's address")
        begun += [typed(command, tmp_path) for command in (actor, node)]
        said = [process.communicate(timeout=240)[0] for process in begun]
    finally:
        for process in begun:
            process.kill()
            process.wait()
    assert [process.returncode for process in begun] == [0, 0, 0], said
    assert "joined cartpole-ppo as" in said[1] and re.search(r"done; [1-9]\d* trajectories were taken", said[1]), said[
        1
    ]
    assert "(node) has joined" in (run / "logs" / "driver.log").read_text()
    assert json.loads((run / "summary.json").read_text())["ledger"]["in_flight"] == 0
    assert audit_run(run) == []
