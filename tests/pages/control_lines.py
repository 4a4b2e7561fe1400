"""What becomes of the commands of each page in `make test`: run in this order in an empty folder, with settings that
make a run short; or run elsewhere, which is said. tests/pages/long_lines.py has those that take longer."""

from __future__ import annotations

import re
from pathlib import Path

from rollcall.deploy.cli import main
from tests.deploy.test_export import RECIPE as SUMS
from tests.pages.running import Elsewhere, Line, Page
from tests.runs import TWO_STEPS

# Two learner steps in one process.
SHORT = (
    *("runtime=serial", "learner.compile=off", "total_env_steps=4096", "algorithm.epochs=1"),
    *("eval.every_steps=null", "eval.episodes=2", "metrics.enabled=false"),
)
EPISODES = ("total_episodes=40", "eval.episodes=2")
TINY = "{vocab_size: 300, hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}"
DIRECT = (
    *("data.generate={pairs: 30, eval_pairs: 10}", f"policy.tiny={TINY}", "policy.warm_start={steps: 2, threads: 1}"),
    *("batch_size=10", "epochs=1", "kl_prompts=0"),
)
SET_UP = Elsewhere("installs packages from an index; the same commands are steps of .github/workflows/check.yml")


def train(*settings: str) -> None:
    assert main.main(["train", *settings]) == 0


def files(**texts: str) -> None:
    for name, text in texts.items():
        Path(name.replace("__", ".")).write_text(text)


def for_commands(folder: Path) -> None:
    files(my_recipe__yaml=TWO_STEPS)


def six_runs(folder: Path) -> None:
    for group, rate in (("a", "1e-3"), ("b", "2e-3")):
        for seed in range(3):
            train(str(folder / "my_recipe.yaml"), f"name={group}-{seed}", f"seed={seed}", f"learner.learning_rate={rate}")


def for_installation(folder: Path) -> None: ...


def a_stopped_run(folder: Path) -> None:
    """Called RUN, as on the pages: two of four learner steps."""
    import rollcall

    files(small__yaml=TWO_STEPS)
    found = rollcall.train("small.yaml", name="RUN", total_learner_steps=4, stop=lambda record: record.get("step") == 1)
    assert found.status == "stopped"


def a_finished_run(folder: Path) -> None:
    files(small__yaml=TWO_STEPS)
    train("small.yaml", "name=RUN")


CONTROL = {
    "docs/commands.md": Page(
        {
            "rollcall doctor": Line(code=0, says="Python"),
            "rollcall new env my_env": Line(leaves=("my_env.py", "test_my_env.py")),
            "rollcall check my_env:MyEnv": Line(),
            "rollcall train my_recipe.yaml --dry-run": Line(),
            "rollcall config cartpole-ppo --explain gamma": Line(says="algorithm.discount"),
            "rollcall train cartpole-ppo n_envs=8": Line(code=2),
            "rollcall runs": Line(says="a-0"),
            "rollcall compare a-0 a-1 a-2 b-0 b-1 b-2": Line(says="learning_rate", leaves=("runs/a-0/comparison.html",)),
            "source <(rollcall completion bash)": Line(),
            "source <(rollcall completion zsh)": Line(part="rollcall completion zsh", says="compdef _rollcall rollcall"),
            "rollcall completion fish | source": Line(part="rollcall completion fish", says="complete -c rollcall"),
        },
        lambda folder: (for_commands(folder), six_runs(folder)) and None,
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
                add=("total_learner_steps=6",), put={" total_env_steps=2_000_000": ""}, says="learner.learning_rate: .* -> 0.0001"
            ),
            "rollcall train cartpole-ppo policy.init_from=RUN_OR_CHECKPOINT": Line(
                add=(*SHORT, "policy.hidden_sizes=[8]"), put={"RUN_OR_CHECKPOINT": "runs/RUN"}
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
        {"rollcall plan RECIPE [key=value ...]": Line(put={"RECIPE [key=value ...]": "arithmetic-grpo actors.num=1"}, says="disk")}
    ),
    "docs/algorithms/behavioural_cloning.md": Page(
        {
            "rollcall train cartpole-ppo": Line(add=SHORT),
            "rollcall eval cartpole-ppo --episodes 12 --record expert.safetensors": Line(leaves=("expert.safetensors",)),
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
}
