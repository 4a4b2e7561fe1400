"""The doctor's probes: what is there is said to be there, what is not is said with a remedy, and nothing is waited for
longer than a deadline."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from rollcall.deploy.cli import main
from rollcall.deploy.tools.doctor import probes
from rollcall.deploy.tools.doctor.findings import Finding, as_lines, findings


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_every_probe_answers_on_this_machine_without_torch_or_ray(tmp_path: Path) -> None:
    code = (
        "import sys, time; from rollcall.deploy.cli import main; code = main.main(['doctor', '--json']); "
        "heavy = {'torch', 'ray', 'gymnasium'} & set(sys.modules); assert not heavy, heavy; "
        "assert time.process_time() < 1.5, time.process_time(); sys.exit(code)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "ROLLCALL_REDIS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert [finding["what"] for finding in found["findings"]] == list(probes.probes())
    by_name = {finding["what"]: finding for finding in found["findings"]}
    assert by_name["python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))
    assert "2.13.0" in by_name["torch"]["found"] and "alkey" in by_name["redis"]["found"]
    assert list(tmp_path.iterdir()) == []  # it looks, and leaves nothing


def test_a_probe_that_hangs_or_fails_is_a_finding_and_the_others_are_told() -> None:
    def hangs() -> Finding:
        time.sleep(60)
        raise AssertionError

    def fails() -> Finding:
        raise OSError("the disk is gone")

    began = time.monotonic()
    found = findings({"a": hangs, "b": fails, "c": lambda: Finding("c", "ok", "there")}, deadline_s=0.3)
    assert time.monotonic() - began < 5
    assert [finding.level for finding in found] == ["problem", "problem", "ok"]
    assert found[0].found == "no answer within 0.3 s" and "the disk is gone" in found[1].found
    assert as_lines(found)[-1] == "2 to be fixed: see PROBLEM"


def test_another_python_is_a_problem() -> None:
    assert probes.python((3, 10, 4)).level == "problem" and "3.11 or 3.12" in probes.python((3, 13, 0)).means
    assert probes.python((3, 12, 1)).level == "ok"


def test_a_ray_or_redis_that_is_named_and_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        monkeypatch.setenv("ROLLCALL_REDIS_URL", f"redis://:secret@127.0.0.1:{port}/0")
        assert probes.ray().level == "ok" and "answers" in probes.ray().found
        assert probes.redis().level == "ok" and "secret" not in probes.redis().found
    assert probes.ray().level == "problem" and "ray start --head" in probes.ray().means
    assert probes.redis().level == "problem" and "secret" not in probes.redis().found + probes.redis().means


def test_a_machine_without_a_compiler_is_told_what_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert probes.compiler().level == "note" and "learner.compile" in probes.compiler().means
    program(tmp_path, "g++", "echo 'g++ (small) 12.2'")
    assert probes.compiler() == Finding("compiler", "ok", f"{tmp_path}/g++: g++ (small) 12.2")


def test_a_gpu_that_a_cpu_build_of_torch_cannot_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 570.1'")
    monkeypatch.setattr(probes, "_version", lambda package: "2.13.0+cpu")
    found = probes.gpu()
    assert found.level == "note" and "H200" in found.found and "CUDA build" in found.means
    monkeypatch.setattr(probes, "_version", lambda package: "2.13.0+cu129")
    assert probes.gpu().level == "ok"
    program(tmp_path, "nvidia-smi", "exit 9")
    assert probes.gpu().level == "problem"


def test_a_taken_port_a_small_shared_memory_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert "is taken" in probes.ports(listener.getsockname()[1]).found
    assert probes.shared_memory(tmp_path / "nosuch").level == "note"
    assert probes.disk(tmp_path / "not" / "yet" / "there").level in ("ok", "note")


def test_quiet_prints_problems_alone_and_the_exit_code_says_whether_there_are_any(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main.main(["doctor", "-q"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main.main(["doctor", "-q"]) == 1
    assert capsys.readouterr().out.startswith("ray  PROBLEM  ")
