"""What a test needs and a machine may lack: it is skipped there, and says why. With CI set, a skip for anything that is
not in MAY_LACK_IN_CI fails: a forgotten package is an error, not a test that nobody misses."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests import ROOT

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

SHARED = ROOT.parent / "shared"  # data that lies beside the checkout, where a machine has it
GSM8K = Path(os.environ.get("ROLLCALL_SHARED_DATA") or SHARED / "data") / "gsm8k"
KUBERAY = Path(os.environ.get("ROLLCALL_SHARED_KUBERAY") or SHARED / "kuberay")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SYSTEM_PYTHON = Path("/usr/bin/python3")

# And why: nothing that `make setup` installs brings it.
MAY_LACK_IN_CI = {
    "chromium": "a browser is the machine's",
    "containment": "what a sandbox is made of is the kernel's to give",
    "gsm8k": "data that we may not ship",
    "kuberay": "KubeRay's definitions are not ours to ship",
    "kubectl": "a program of its own",
    "envpool": "an extra that the lock is without",
    "minari": "an extra that the lock is without",
    "optuna": "an extra that the lock is without",
    "Box2D": "an extra that the lock is without",
    "minatar": "an extra that the lock is without",
    "minigrid": "an extra that the lock is without",
    "node": "a program of its own",
    "onnxruntime": "an extra that the lock is without",
    "datasets": "an extra that the lock is without",
    "mkdocs": "an extra that the lock is without",
    "nbclient": "runs notebooks as Jupyter does, for tests alone",
    "pyarrow": "an extra that the lock is without",
    "wandb": "an extra that the lock is without",
    "mlflow": "an extra that the lock is without",
    "trackio": "an extra that the lock is without",
    "prometheus": "a program of its own",
    "promtool": "a program of its own",
    "root": "only root can become another user",
    "system_python": "not every image has one",
}


@dataclass(frozen=True)
class Need:
    is_here: Callable[[], bool]
    remedy: str


def _program(name: str, remedy: str) -> Need:
    return Need(lambda: shutil.which(name) is not None, remedy)


def _package(name: str, remedy: str) -> Need:
    return Need(lambda: find_spec(name) is not None, remedy)


NEEDS = {
    **{name: _package(name, "the extra lm-cpu or lm-gpu") for name in ("peft", "tokenizers", "transformers", "vllm")},
    "ale_py": _package("ale_py", "the extra atari"),
    "envpool": _package("envpool", "the extra envpool"),
    "kubernetes_validate": _package("kubernetes_validate", "the extra dev"),
    "math_verify": _package("math_verify", "the extra maths"),
    "minari": _package("minari", "the extra minari"),
    "Box2D": _package("Box2D", "the extra box2d"),
    "minatar": _package("minatar", "the extra minatar"),
    "minigrid": _package("minigrid", "the extra minigrid"),
    "optuna": _package("optuna", "the extra sweep"),
    "mujoco": _package("mujoco", "the extra mujoco"),
    "onnxruntime": _package("onnxruntime", "the extra onnx"),
    **{name: _package(name, f"the extra {name}") for name in ("wandb", "mlflow", "trackio")},
    "nbclient": Need(lambda: all(map(find_spec, ("nbclient", "ipykernel"))), "pip install nbclient ipykernel"),
    "mkdocs": _package("material", "the extra docs"),
    **{name: _package(name, "the extra datasets") for name in ("datasets", "pyarrow")},
    "playwright": _package("playwright", "the extra dev"),
    "chromium": Need(lambda: CHROMIUM is not None, "chromium or google-chrome on PATH"),
    "gsm8k": Need((GSM8K / "test.jsonl").is_file, f"GSM8K in {GSM8K}: set ROLLCALL_SHARED_DATA"),
    "kuberay": Need(KUBERAY.is_dir, f"KubeRay's definitions in {KUBERAY}: set ROLLCALL_SHARED_KUBERAY"),
    "kubectl": _program("kubectl", "kubectl on PATH, which builds overlays"),
    "linux": Need(lambda: sys.platform == "linux", "Linux"),
    "node": _program("node", "Node.js 18 or newer on PATH"),
    "prometheus": _program("prometheus", "Debian: apt-get install prometheus"),
    "promtool": _program("promtool", "Debian: apt-get install prometheus"),
    "root": Need(lambda: os.geteuid() == 0, "to be run as root"),
    "system_python": Need(SYSTEM_PYTHON.exists, f"{SYSTEM_PYTHON}, which any user may read"),
}


def needs(*names: str) -> pytest.MarkDecorator:
    """Marks a test, or with `pytestmark =` a file."""
    missing = [name for name in names if not NEEDS[name].is_here()]
    return pytest.mark.skipif(bool(missing), reason=", ".join(f"needs {n}: {NEEDS[n].remedy}" for n in missing))


def require(*names: str) -> None:
    """The same within a fixture or a test, or at the head of a file that cannot be imported without."""
    for name in names:
        if not NEEDS[name].is_here():
            lack(name, NEEDS[name].remedy)


def require_for(recipe: str) -> None:
    """The package of a shipped recipe's env, where the lock is without."""
    packages = {"lunarlander-": "Box2D", "minatar-": "minatar", "minigrid-": "minigrid", "-envpool-": "envpool"}
    for part, package in packages.items():
        if part in recipe:
            require(package)


def require_module(name: str) -> Any:
    require(name.partition(".")[0])
    return importlib.import_module(name)


def lack(name: str, why: str) -> None:
    """Skips for want of what only an attempt shows."""
    pytest.skip(f"needs {name}: {why}", allow_module_level=True)


def refuse_unlisted_skip(report: Report) -> Report:
    """With CI set: a skipped report becomes a failed one, unless what it lacks is listed."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        name = reason.removeprefix("Skipped: ").removeprefix("needs ").partition(":")[0]
        if name not in MAY_LACK_IN_CI:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nCI is set, and this is no reason of MAY_LACK_IN_CI in tests/needs.py"
    return report
