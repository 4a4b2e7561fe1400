"""What becomes of the commands of each page in `make test`: run in this order in an empty folder, with settings that
make a run short; or run elsewhere, which is said. tests/pages/language_lines.py has those about language
models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import rollcall
from tests.pages.running import Elsewhere, Line, Page, train, write
from tests.runs import TWO_STEPS

# Two learner steps in one process.
SHORT = (
    *("runtime=serial", "learner.compile=off", "total_env_steps=4096", "algorithm.epochs=1"),
    *("eval.every_steps=null", "eval.episodes=2", "metrics.enabled=false"),
)
SMALL_POLICY = yaml.safe_load(TWO_STEPS)["policy"]
EPISODES = ("total_episodes=40", "eval.episodes=2")
SET_UP = Elsewhere("installs packages from an index; the same commands are steps of .github/workflows/check.yml")

JOBS = Elsewhere("takes two machines; tests/end_to_end/test_jobs.py has a cluster of two nodes")
MONITOR = Elsewhere(
    "tests/deploy/tools/monitoring/test_monitor.py::"
    "test_runs_are_found_watched_and_asked_about_and_everything_ends_with_ctrl_c"
)


def recipe_and_six_runs(folder: Path) -> None:
    write("my_recipe.yaml", TWO_STEPS)
    for group, rate in (("a", "1e-3"), ("b", "2e-3")):
        for seed in range(3):
            train("my_recipe.yaml", f"name={group}-{seed}", f"seed={seed}", f"learner.learning_rate={rate}")


def a_stopped_run(folder: Path) -> None:
    """Called RUN, as on the pages: two of four learner steps."""
    write("small.yaml", TWO_STEPS)

    def after_two(record: Mapping[str, Any]) -> bool:
        return record.get("step") == 1

    assert rollcall.train("small.yaml", stop=after_two, name="RUN", total_learner_steps=4).status == "stopped"


def a_finished_run(folder: Path) -> None:
    write("small.yaml", TWO_STEPS)
    train("small.yaml", "name=RUN")


CONTROL = {
    "docs/commands.md": Page(
        {
            "rollcall doctor": Line(says=r"redis +ok"),
            "rollcall new env my_env": Line(leaves=("my_env.py", "test_my_env.py")),
            "rollcall check my_env:MyEnv": Line(),
            "rollcall train my_recipe.yaml --dry-run": Line(),
            "rollcall config cartpole-ppo --explain gamma": Line(says="algorithm.discount"),
            "rollcall train cartpole-ppo n_envs=8": Line(code=2),
            "rollcall runs": Line(says="a-0"),
            "rollcall compare a-0 a-1 a-2 b-0 b-1 b-2": Line(says="learning_rate", leaves=("runs/comparison.html",)),
            "source <(rollcall completion bash)": Line(),
            "source <(rollcall completion zsh)": Line(
                part="rollcall completion zsh", says="compdef _rollcall rollcall"
            ),
            "rollcall completion fish | source": Line(part="rollcall completion fish", says="complete -c rollcall"),
        },
        recipe_and_six_runs,
    ),
    "docs/start/installation.md": Page(
        {
            "python3 -m venv .venv": SET_UP,
            ". .venv/bin/activate": SET_UP,
            "pip install rollcall-rl": SET_UP,
            "rollcall --version": Line(says=r"rollcall \d+\.\d+\.\d+"),
            "make setup": SET_UP,
            ".venv/bin/rollcall train cartpole-ppo": Line(part="rollcall train cartpole-ppo", add=SHORT),
            "rollcall recipes": Line(says="cartpole-ppo"),
            "rollcall train cartpole-ppo total_env_steps=20000": Line(add=SHORT),
        }
    ),
    "docs/going-on.md": Page(
        {
            "rollcall resume RUN": Line(says="completed"),
            "rollcall resume RUN total_env_steps=2_000_000 learner.learning_rate=1e-4": Line(
                add=("total_learner_steps=6",),
                put={" total_env_steps=2_000_000": ""},
                says="learner.learning_rate: .* -> 0.0001",
            ),
            "rollcall train cartpole-ppo policy.init_from=RUN_OR_CHECKPOINT": Line(
                add=(*SHORT, f"policy={SMALL_POLICY}"), put={"RUN_OR_CHECKPOINT": "runs/RUN"}
            ),
        },
        a_stopped_run,
    ),
    "docs/exporting.md": Page(
        {
            "rollcall export RUN": Line(needs=("onnxruntime",), leaves=("runs/RUN/policy.onnx",)),
            "rollcall export RUN policy.onnx": Line(needs=("onnxruntime",), leaves=("policy.onnx",)),
            "rollcall export RUN --onnx policy.onnx": Line(needs=("onnxruntime",), leaves=("policy.onnx",)),
        },
        a_finished_run,
    ),
    "docs/plan.md": Page(
        {
            "rollcall plan RECIPE [key=value ...]": Line(
                put={"RECIPE [key=value ...]": "arithmetic-grpo actors.num=1"}, says="disk"
            )
        }
    ),
    "docs/algorithms/behavioural_cloning.md": Page(
        {
            "rollcall train cartpole-ppo": Line(add=SHORT),
            "rollcall eval cartpole-ppo --episodes 12 --record expert.safetensors": Line(
                leaves=("expert.safetensors",)
            ),
            "rollcall train cartpole-bc data.train=expert.safetensors": Line(
                add=("total_learner_steps=4", "eval.episodes=2", "eval.every_steps=4")
            ),
            "rollcall train cartpole-ppo policy.init_from=cartpole-bc": Line(add=SHORT),
        }
    ),
    "docs/algorithms/tabular.md": Page(
        {
            "rollcall solve FrozenLake-v1": Line(says=re.escape("0.8235")),
            "rollcall solve FrozenLake-v1 is_slippery=false": Line(says=r"\b1\b"),
            "rollcall solve Taxi-v4 --discount 0.9 --json": Line(says=r'"policy"'),
            "rollcall train frozenlake-q-learning": Line(add=EPISODES),
            "rollcall train frozenlake-q-learning algorithm=sarsa_lambda algorithm.lam=0.8": Line(add=EPISODES),
            "rollcall train cliffwalking-sarsa env=CliffWalkingSlippery-v1": Line(add=EPISODES),
            "rollcall train bandit-ucb algorithm=thompson": Line(add=("bandit.problems=20",)),
        }
    ),
    "docs/runbook.md": Page(
        {
            "tail -n 20 runs/RUN/events.jsonl": Line(says="checkpoint"),
            "tail -n 50 runs/RUN/logs/driver.log": Line(),
            "ls runs/RUN/logs": Line(says=r"driver\.log"),
            "rollcall audit RUN": Line(says="RUN"),
        },
        a_finished_run,
    ),
    "docs/tracking.md": Page({"tensorboard --logdir runs": Line(add=("--inspect",), says="eval/mean")}, a_finished_run),
    "docs/operations.md": Page(
        {
            "(umask 077; ray get-auth-token --generate > /dev/null)": Line(leaves=(".ray/auth_token",)),
            "export RAY_AUTH_MODE=token ROLLCALL_RUNS=/shared/runs": JOBS,
            "ray start --head --port=6379 --dashboard-host=HEAD": JOBS,
            "ray start --address=HEAD:6379": JOBS,
            "ray job submit --address http://HEAD:8265 --working-dir . --metadata-json "
            """'{"rollcall_run": "mine"}' -- rollcall train cartpole-ppo name=mine""": JOBS,
            "ray job stop --address http://HEAD:8265 SUBMISSION_ID": JOBS,
            "ray job submit --address http://HEAD:8265 --working-dir . -- rollcall train cartpole-ppo name=mine": JOBS,
            "rollcall monitor": MONITOR,
            "rollcall monitor --check": MONITOR,
        }
    ),
}

# `make test-long`. What they leave ends with their own processes.
CODING = (
    *("design.url=$CODING_SERVER", "design.iterations=1", "design.candidates=1", "design.videos=false"),
    *("total_env_steps=128", "actors.num_envs=2", "actors.num_shards=1", "actors.unroll_length=32"),
    *("algorithm.num_minibatches=2", "algorithm.epochs=1", "eval.episodes=2", "metrics.enabled=false"),
)
SWEEP = tuple(setting.replace("total_env_steps=4096", "total_env_steps=2048") for setting in SHORT)
OUTSIDE = Elsewhere("tests/pages/test_outside_actors_page.py::test_the_pages_commands_run_side_by_side")

LONG = {
    "docs/commands.md": Page(
        {
            "rollcall sweep cartpole-ppo --seeds 5": Line(
                add=SWEEP, put={"--seeds 5": "--seeds 2"}, leaves=("runs/sweep-cartpole-ppo/results.json",)
            ),
            "rollcall sweep cartpole-ppo --seeds 3 --search algorithm.clip_range=0.1,0.2,0.3": Line(
                add=(*SWEEP, "--name", "grid"),
                put={"--seeds 3": "--seeds 1"},
                leaves=("runs/grid/comparison.html",),
            ),
            "rollcall sweep cartpole-ppo --trials 30 --search learner.learning_rate=1e-4..1e-2:log "
            "--search algorithm.epochs=2..15": Line(
                add=(*[setting for setting in SWEEP if "epochs" not in setting], "--name", "search"),
                put={"--trials 30": "--trials 3"},
                needs=("optuna",),
                leaves=("runs/search/results.json",),
            ),
        },
        apart=True,
    ),
    "docs/reward_design.md": Page(
        {
            "vllm serve Qwen/Qwen2.5-Coder-7B-Instruct &": Elsewhere(
                "a model of 15 GB; tests/deploy/drive/design/coding_server.py answers in its place, the same protocol"
            ),
            "rollcall train cartpole-eureka": Line(add=CODING),
            "rollcall train cartpole-eureka design.url=https://models.example.org/v1 design.model=NAME "
            "design.key_variable=MY_KEY": Line(
                add=(*CODING[1:], "name=keyed"), put={"https://models.example.org/v1": "$CODING_SERVER"}
            ),
            "rollcall resume runs/cartpole-eureka": Line(says="completed"),
            "rollcall eval runs/cartpole-eureka --episodes 100": Line(says="100 episodes"),
        },
        apart=True,
    ),
    "docs/outside_actors.md": Page(
        {
            "rollcall train cartpole-ppo actors.num=2 actors.outside.num_shards=2": OUTSIDE,
            'rollcall actor "$(cat runs/cartpole-ppo/outside.url)" '
            "--token-file runs/cartpole-ppo/outside.token": OUTSIDE,
            'node examples/outside_actor.mjs "$(cat runs/cartpole-ppo/outside.url)" '
            "runs/cartpole-ppo/outside.token": OUTSIDE,
        }
    ),
}
