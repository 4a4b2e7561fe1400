"""What libraries read from the environment: set for every process of a run, and heeded by the libraries installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollcall.deploy.cli.main import main
from rollcall.deploy.runtimes.library_settings import SETTINGS

ROOT = Path(__file__).parents[3]
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT = """
import resource, torch
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(8 << 20)
before = faults()
for _ in range(10):
    torch.ones(16 << 20)  # float32: 64 MiB, more than the allocator keeps
print(faults() - before)
"""


def test_a_command_sets_them_and_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert main(["--version"]) == 0
    assert {name: os.environ[name] for name in SETTINGS} == SETTINGS | {"GOMP_SPINCOUNT": "7"}


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_images_set_them_for_clusters_whose_processes_no_command_begins(name: str) -> None:
    lines = (ROOT / "deploy" / "docker" / name).read_text()
    assert all(f"{setting}={value} " in lines for setting, value in SETTINGS.items())


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text() or "[always]" in HUGE_PAGES.read_text(),
    reason="the system gives huge pages to everybody, or to nobody",
)
def test_torch_takes_huge_pages_for_large_tensors() -> None:
    faults = {}
    for asked in ("0", "1"):
        environment = os.environ | {"THP_MEM_ALLOC_ENABLE": asked}
        done = subprocess.run(
            [sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        faults[asked] = int(done.stdout)
    assert faults["0"] > 10 * (64 << 20) / 4096 / 2, "otherwise there is nothing to gain"
    assert faults["1"] < 0.1 * faults["0"]
