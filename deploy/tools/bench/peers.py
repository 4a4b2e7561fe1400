"""Peers to be measured against, each in a virtual environment of its own, so that its dependencies cannot touch ours.
Knows how to install and to time a peer."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput, RollcallError

INSTALL_TIMEOUT_S = 900
MEASURE_TIMEOUT_S = 600

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

# Stable-Baselines3's SAC at its defaults (batches of 256, two layers of 256, a gradient step for each env step), with
# the env and the step size that it is given, after 300 gradient steps. Prints env steps per second.
SB3_SAC = """
import json, sys, time, torch
from stable_baselines3 import SAC
settings = json.loads(sys.argv[1])
torch.set_num_threads(2)
model = SAC("MlpPolicy", settings["env"], learning_rate=settings["learning_rate"], learning_starts=100, device="cpu")
model.learn(400)
began, before = time.perf_counter(), model.num_timesteps
model.learn(2000, reset_num_timesteps=False)
print((model.num_timesteps - before) / (time.perf_counter() - began))
"""

# TRL's GRPO with the model, prompts and batch that it is given, generating with transformers: it uses all cores for
# one thing after the other. Tokens are counted where they are rewarded. Prints tokens per second: the mean tokens of
# a step after the warm-up over the median time of one.
TRL_GRPO = """
import json, statistics, sys, tempfile, time, warnings
warnings.filterwarnings("ignore")
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["threads"])
tokens, ends = [], []

def reward(prompts, completions, completion_ids, answer, **columns):
    tokens.append(sum(len(ids) for ids in completion_ids))
    return [float(text.strip() == right) for text, right in zip(completions, answer)]

class Clock(TrainerCallback):
    def on_step_end(self, *positional, **named):
        ends.append(time.perf_counter())

rows = [json.loads(line) for line in open(settings["rows"], encoding="utf-8")]
sampling = settings["sampling"]
length = sampling["max_tokens"]
config = GRPOConfig(
    output_dir=tempfile.mkdtemp(prefix="rollcall-trl-"),
    per_device_train_batch_size=settings["prompts"] * settings["samples"],
    num_generations=settings["samples"],
    max_completion_length=length,
    generation_kwargs={"min_new_tokens": length} if sampling["ignore_eos"] else None,
    shuffle_dataset=False,
    temperature=sampling["temperature"],
    top_p=sampling["top_p"],
    top_k=sampling["top_k"],
    learning_rate=settings["learning_rate"],
    max_grad_norm=settings["max_grad_norm"],
    lr_scheduler_type="constant",
    beta=0.0,
    max_steps=settings["steps"],
    bf16=settings["bfloat16"],
    use_cpu=not torch.cuda.is_available(),
    gradient_checkpointing=False,
    save_strategy="no",
    logging_steps=1000,
    report_to=[],
    disable_tqdm=True,
)
trainer = GRPOTrainer(
    model=settings["model"], reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows)
)
trainer.add_callback(Clock())
trainer.train()
warm_up = settings["warm_up"]
times = [end - begin for begin, end in zip(ends[warm_up - 1 :], ends[warm_up:])]
print(statistics.mean(tokens[warm_up : len(ends)]) / statistics.median(times))
"""


@dataclass(frozen=True)
class Peer:
    """A peer that is installed."""

    name: str
    python: Path
    program: str

    def measure(self, settings: Mapping[str, Any] | None = None) -> float:
        """What the program prints last, env steps or tokens per second, of one run in a process of its own."""
        environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        arguments = [] if settings is None else [json.dumps(settings)]
        done = subprocess.run(
            [str(self.python), "-c", self.program, *arguments],
            capture_output=True,
            text=True,
            timeout=MEASURE_TIMEOUT_S,
            env=environment,
            check=False,
        )
        if done.returncode:
            raise RollcallError(f"{self.name} failed: {done.stderr.strip().splitlines()[-1:]}")
        return float(done.stdout.strip().splitlines()[-1])


# name -> (what it is, what else must be of our version, how it is timed)
_PEERS = {
    "sb3": ("stable-baselines3==2.9.2", ("torch",), SB3_PPO),
    "sb3-sac": ("stable-baselines3==2.9.2", ("torch", "gymnasium", "mujoco", "imageio", "packaging"), SB3_SAC),
    "trl": ("trl==1.16.0", ("torch", "transformers"), TRL_GRPO),
}


def prepare(name: str, say: Callable[[str], None]) -> Peer:
    """Installs a peer, once, under the user's cache directory.

    Raises:
      BadInput: when it cannot be installed.
    """
    requirement, shared, program = _PEERS[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rollcall" / "peers"
    cache /= requirement if name != "sb3-sac" else f"{requirement}-mujoco"  # the one has what the other has not
    python = cache / "bin" / "python"
    if not (cache / ".installed").exists():
        say(f"installing {requirement} into {cache} ...")
        venv.create(cache, with_pip=True, clear=True)
        # The same torch (and transformers) as ours, so that only the frameworks differ.
        command = [str(python), "-m", "pip", "install", "--quiet", *map(_as_ours, shared), requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise BadInput(f"--peer {name}: {requirement} cannot be installed here ({reason})")
        (cache / ".installed").touch()
    return Peer(name, python, program)


def _as_ours(package: str) -> str:
    """A requirement for the version that is installed here, whatever it was built for."""
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        raise BadInput(f"the peer is compared at our version of {package}, which is not installed") from None
