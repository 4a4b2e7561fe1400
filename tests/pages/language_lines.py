"""What becomes of the commands about language models. LANGUAGE needs no engine and is a part of `make test`; ENGINE has
vLLM in a process of its own for each command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rollcall.deploy.cli import main
from tests.deploy.kinds.language.test_export import RECIPE as SUMS
from tests.pages.blocks import blocks, json_values
from tests.pages.running import Elsewhere, Line, Page, write

TINY = "{vocab_size: 300, hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}"
DIRECT = (
    *("data.generate={pairs: 30, eval_pairs: 10}", f"policy.tiny={TINY}", "policy.warm_start={steps: 2, threads: 1}"),
    *("batch_size=10", "epochs=1", "kl_prompts=0"),
)
WARM_START = "  warm_start: {steps: 2, batch_size: 4, threads: 1}\n"
MINE = SUMS.replace("policy:\n", "policy:\n" + WARM_START)
SCORE = "def score(prompt, response, answer):\n    return float(answer in response)\n"
PROBLEMS = "".join(f'{{"prompt": "{a}+{b}=", "answer": "{a + b}"}}\n' for a in range(5) for b in range(5))
WORDS = ("film", "plot", "cast", "music", "light", "tale", "scene", "end", "play", "shot")


def a_model(folder: Path, *settings: str, name: str = "RUN") -> None:
    """A run that only imitated for a moment, and its model as a directory of its own."""
    write("sums.yaml", MINE)
    assert main.main(["sft", "sums.yaml", "eval.num_rows=0", f"name={name}", *settings]) == 0


def for_data(folder: Path) -> None:
    write("mine.yaml", MINE)
    write(
        "pairs.jsonl", "".join(f'{{"prompt": "{n}", "chosen": "good {n}", "rejected": "bad {n}"}}\n' for n in range(30))
    )


def reviews(folder: Path) -> None:
    """The page's two lines, and more of the kind."""
    (shown,) = (json_values(block.text) for block in blocks("docs/reward_models.md") if block.sort == "json")
    more = [{"text": f"{row['text']} {word}", "label": row["label"]} for word in WORDS for row in shown]
    write("reviews.jsonl", "".join(json.dumps(row) + "\n" for row in [*shown, *more]))


def adapted_runs(folder: Path) -> None:
    """RUN: of a model with adapters, as training leaves it."""
    from tests.deploy.kinds.language.test_export_forms import LORA, trained

    write("sums.yaml", SUMS)
    trained(LORA, "name=RUN")
    trained("name=sums")


LANGUAGE = {
    "docs/data.md": Page(
        {
            "rollcall sft mine.yaml policy.warm_start.lora.rank=16": Line(add=("eval.num_rows=0",)),
            "rollcall train synthetic-dpo policy.lora.rank=16": Line(add=DIRECT, leaves=("runs/synthetic-dpo/policy",)),
            "rollcall reward train FILE model.start=DIRECTORY model.lora.rank=16": Line(
                put={"FILE": "pairs.jsonl", "DIRECTORY": "runs/synthetic-dpo/policy"},
                add=("epochs=1", "batch_size=10"),
                leaves=("runs/reward/model",),
            ),
        },
        for_data,
        needs=("transformers", "peft"),
    ),
    "docs/reward_models.md": Page(
        {"rollcall reward train reviews.jsonl": Line(leaves=("runs/reward/model",), says="rollcall reward serve")},
        reviews,
        needs=("transformers",),
    ),
    "docs/exporting.md": Page(
        {
            "rollcall export RUN (2)": Line(leaves=("runs/RUN/policy/README.md",)),
            "rollcall export RUN DIR --dtype bfloat16": Line(put={"DIR": "exported"}, leaves=("exported/config.json",)),
            "rollcall export RUN --adapters": Line(leaves=("runs/RUN/adapters/adapter_config.json",)),
            "rollcall export RUN --push OWNER/NAME": Elsewhere(
                "tests/deploy/kinds/language/test_export_forms.py::"
                "test_a_push_uploads_what_was_exported_to_a_private_repository"
            ),
        },
        adapted_runs,
        needs=("transformers", "peft"),
    ),
    "docs/operations.md": Page(
        {
            "rollcall train my_math.yaml actors.num=8 learner.num_processes=2 cluster.learner.num_gpus=1 "
            "cluster.actors.num_gpus=1 cluster.actors.label_selector.rollcall=vllm cluster.min_actors=4 "
            "cluster.room_timeout_s=900": Line(
                put={"rollcall train": "rollcall config"}, says="rollcall: vllm"
            ),  # no GPUs here
        },
        lambda folder: write("my_math.yaml", SUMS.replace("runtime: serial\n", "")),
    ),
}


def with_my_math(folder: Path) -> None:
    write("my_math.yaml", SUMS)
    a_model(folder, name="arithmetic-grpo")


def runs_to_select_from(folder: Path) -> None:
    a_model(folder)
    shutil.copytree("runs/RUN/warm_start", "model")


def for_trl(folder: Path) -> None:
    a_model(folder)
    (recipe,) = (block.text for block in blocks("docs/migration/trl.md") if block.sort == "yaml")
    write("mine.yaml", recipe)
    write("problems.jsonl", PROBLEMS)
    (reward,) = (block.text for block in blocks("docs/migration/trl.md") if block.sort == "python")
    write("my_module.py", reward[reward.index("def reward") : reward.index("config = ")])


ONE_STEP = ("total_learner_steps=1", "actors.prompts_per_batch=2", "eval.num_rows=2", "metrics.enabled=false")
ROUNDS = (
    *("total_learner_steps=2", "policy.warm_start=null", f"policy.tiny={TINY}", "actors.prompts_per_batch=4"),
    *("actors.sampling.max_tokens=6", "preferences.total_labels=16", "preferences.rounds=2", "preferences.epochs=1"),
    *("preferences.batch_size=8", "eval.num_rows=0", "metrics.enabled=false", "runtime=serial", "name=rounds"),
)
SELECT = ("--prompts", "4")
TWO_PROCESSES = (*DIRECT, "total_learner_steps=2")

ENGINE = {
    "docs/going-on.md": Page(
        {
            "rollcall train my_math.yaml policy.init_from=runs/arithmetic-grpo": Line(add=ONE_STEP),
        },
        with_my_math,
        needs=("transformers", "vllm"),
        apart=True,
    ),
    "docs/data.md": Page(
        {
            "rollcall train synthetic-dpo learner.num_processes=2": Line(add=TWO_PROCESSES),
            "rollcall train synthetic-dpo learner.num_processes=2 learner.sharding=fsdp": Line(add=TWO_PROCESSES),
        },
        needs=("transformers",),
        apart=True,
    ),
    "docs/migration/trl.md": Page(
        {
            "rollcall train mine.yaml": Line(
                add=(
                    *(
                        "task.path=problems.jsonl",
                        "task.chat=false",
                        "task.num_eval_rows=4",
                        "policy.model=runs/RUN/warm_start",
                    ),
                    *("actors.sampling.max_tokens=4", "actors.engine.max_model_len=16", "runtime=serial", *ONE_STEP),
                )
            )
        },
        for_trl,
        needs=("transformers", "vllm"),
        apart=True,
    ),
    "docs/algorithms/selection.md": Page(
        {
            "rollcall select RUN DIRECTORY --samples 8": Line(
                put={"DIRECTORY": "best"},
                add=SELECT,
                leaves=("best/sft.jsonl", "best/pairs.jsonl", "best/summary.json"),
            ),
            "rollcall select RUN DIRECTORY reward=maths --samples 8 --at-least 1": Line(
                put={"DIRECTORY": "right"}, add=SELECT, leaves=("right/labelled.jsonl",), needs=("math_verify",)
            ),
            "rollcall select RECIPE DIRECTORY policy.model=MODEL_DIRECTORY": Line(
                put={"RECIPE": "sums.yaml", "MODEL_DIRECTORY": "model", "DIRECTORY": "other"}, add=SELECT
            ),
        },
        runs_to_select_from,
        needs=("transformers", "vllm"),
        apart=True,
    ),
    "docs/algorithms/rounds.md": Page(
        {
            "rollcall train rlhf-reviews": Line(add=ROUNDS, leaves=("runs/rounds/reward_models/rounds.jsonl",)),
            "rollcall train rlhf-reviews --people": Elsewhere(
                "tests/end_to_end/test_language_rounds.py::"
                "test_two_people_rank_what_the_policy_writes_and_their_agreement_is_booked"
            ),
            "rollcall train cartpole-preferences": Line(
                add=(
                    "runtime=serial",
                    "total_env_steps=8192",
                    "preferences.total_labels=20",
                    "preferences.initial_labels=10",
                    "eval.episodes=1",
                ),
                leaves=("runs/cartpole-preferences/report.html",),
            ),
        },
        needs=("transformers", "vllm"),
        apart=True,
    ),
}
