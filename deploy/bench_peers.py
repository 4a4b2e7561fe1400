"""Peers to be measured against, each in a virtual environment of its own, so that its dependencies cannot touch ours.
Knows how to install and to time a peer; must never be imported by anything but the benchmarks."""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rollcall.cluster.errors import BadInput, RollcallError

INSTALL_TIMEOUT_S = 900
MEASURE_TIMEOUT_S = 300

# Stable-Baselines3's PPO at the settings of `rollcall bench gym`: 16 envs x 128 steps, minibatches of 256, 4 epochs;
# its default policy is two 64x64 tanh networks. Prints env steps per second after a warm-up of two batches.
SB3_PPO = """
import time, torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
torch.set_num_threads(2)
model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=16), n_steps=128, batch_size=256, n_epochs=4, device="cpu")
model.learn(4096)
began = time.perf_counter()
model.learn(100_000)
print(model.num_timesteps / (time.perf_counter() - began))
"""


@dataclass(frozen=True)
class Peer:
    """A peer that is installed."""

    name: str
    python: Path
    program: str

    def measure(self) -> float:
        """Env steps per second of one run in a process of its own."""
        environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        done = subprocess.run(
            [str(self.python), "-c", self.program],
            capture_output=True,
            text=True,
            timeout=MEASURE_TIMEOUT_S,
            env=environment,
            check=False,
        )
        if done.returncode:
            raise RollcallError(f"{self.name} failed: {done.stderr.strip().splitlines()[-1:]}")
        return float(done.stdout.strip().splitlines()[-1])


_PEERS = {"sb3": ("stable-baselines3==2.9.2", SB3_PPO)}


def prepare(name: str, say: Callable[[str], None]) -> Peer:
    """Installs a peer, once, under the user's cache directory.

    Raises:
      BadInput: when it cannot be installed.
    """
    requirement, program = _PEERS[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rollcall" / "peers" / requirement
    python = cache / "bin" / "python"
    if not (cache / ".installed").exists():
        say(f"installing {requirement} into {cache} ...")
        venv.create(cache, with_pip=True, clear=True)
        # The same torch as ours, so that only the frameworks differ.
        command = [str(python), "-m", "pip", "install", "--quiet", "torch==2.13.0", requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise BadInput(f"--peer {name}: {requirement} cannot be installed here ({reason})")
        (cache / ".installed").touch()
    return Peer(name, python, program)
