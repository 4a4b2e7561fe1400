"""Envs that cannot live in processes of their own, or not twice: one line says why, and what to set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from rollcall.actors.control import state
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_vector_env, spaces_of
from rollcall.cluster.errors import BadInput

_ENVS = """
import multiprocessing, socket, time

class Alone(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}

class Port(Alone):
    def __init__(self, port):
        self.server = socket.socket()
        try:
            self.server.bind(("127.0.0.1", port))
        except OSError:
            self.server.close()
            raise
        self.server.listen()

    def close(self):
        self.server.close()

class Parent(Alone):
    def __init__(self):
        self.child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        self.child.start()

    def close(self):
        self.child.kill()

class Unclosable(Alone):
    def close(self):
        raise RuntimeError("nobody told me")

class Misnamed(Alone):
    def __init__(self):
        self.arm = None
        self.arm.move()
"""


@pytest.fixture
def module(user_module: Callable[[str], str]) -> str:
    return user_module(_ENVS)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(config: EnvConfig) -> str:
    with pytest.raises(BadInput) as error:
        make_vector_env(config, 2)
    (line,) = str(error.value).splitlines()
    return line


def test_an_env_that_starts_processes_is_told_to_be_stepped_in_this_one(module: str) -> None:
    line = refusal(EnvConfig(id=f"{module}:Parent", vectorization="async"))
    assert (
        f"env '{module}:Parent' cannot be made (" in line and "in __init__: self.child.start(): AssertionError" in line
    )
    assert line.endswith("it starts processes, which an env in a process of its own cannot: set env.vectorization=sync")
    group = make_vector_env(EnvConfig(id=f"{module}:Parent", vectorization="sync"), 2)
    group.close()


@pytest.mark.parametrize("vectorization", ["async", "sync"])
def test_envs_that_want_one_port_are_told_that_each_needs_its_own(
    module: str, free_port: int, vectorization: Literal["async", "sync"]
) -> None:
    line = refusal(EnvConfig(id=f"{module}:Port", kwargs={"port": free_port}, vectorization=vectorization))
    assert "Address already in use" in line and 'in __init__: self.server.bind(("127.0.0.1", port)): OSError' in line
    assert "let each take a free one, as binding to port 0 does, or set actors.num_envs=1 and eval.episodes=0" in line


def test_one_env_of_a_port_can_be_learnt_from_and_is_not_restored_exactly(module: str, free_port: int) -> None:
    config = EnvConfig(id=f"{module}:Port", kwargs={"port": free_port})
    assert not state.is_exact(lambda *, seed: make_vector_env(config, 1, seed=seed))
    make_vector_env(config, 1).close()


def test_an_env_that_cannot_be_closed_can_be_learnt_from(module: str) -> None:
    spaces_of(EnvConfig(id=f"{module}:Unclosable"))
    for vectorization in ("sync", "async"):
        make_vector_env(EnvConfig(id=f"{module}:Unclosable", vectorization=vectorization), 2).close()


def test_a_constructor_that_raises_shows_its_own_line_first(module: str) -> None:
    line = refusal(EnvConfig(id=f"{module}:Misnamed", vectorization="sync"))
    file = Path.cwd() / f"{module}.py"
    place = f"{file}, line {len(file.read_text().splitlines())}, in __init__: self.arm.move()"
    assert f"cannot be made ({place}: AttributeError: 'NoneType' object has no attribute 'move')" in line


def test_a_script_that_trains_without_a_main_guard_is_told_so_in_one_line(module: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import rollcall.deploy\n"
        f"rollcall.deploy.train('tiny.yaml', env={{'id': '{module}:Alone', 'vectorization': 'async'}})\n"
    )
    (tmp_path / "tiny.yaml").write_text(
        "runtime: serial\ntotal_learner_steps: 1\nenv: CartPole-v1\nalgorithm: {name: ppo, num_minibatches: 1}\n"
        "actors: {num_envs: 2, unroll_length: 8}\neval: {episodes: 0}\nmetrics: {enabled: false}\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert "what trains there must stand under `if __name__ == '__main__':`" in run.stderr.splitlines()[-1]
    assert "bootstrapping" not in run.stderr and "Connection reset" not in run.stderr


def test_a_temporary_directory_too_long_for_sockets_is_told_its_remedy(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: str(long))
    monkeypatch.setattr("multiprocessing.forkserver._forkserver._forkserver_address", None)
    monkeypatch.setattr("multiprocessing.forkserver._forkserver._forkserver_pid", None)
    line = refusal(EnvConfig(id=f"{module}:Alone", vectorization="async"))
    assert line.startswith(f"TMPDIR={long}: too long a path for the sockets") and "set TMPDIR=/tmp" in line
