"""TRL's GRPO with the model, prompts and batch that it is given, generating with transformers: it uses all cores for
one thing after the other. Tokens are counted where they are rewarded. Tells tokens per second: the mean tokens of a
step after the warm-up over the median time of one."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
import warnings

import torch
from clock import WORK, tell
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

warnings.filterwarnings("ignore")
torch.set_num_threads(WORK["threads"])
tokens: list[int] = []
ends: list[float] = []


def reward(prompts, completions, completion_ids, answer, **columns):
    tokens.append(sum(len(ids) for ids in completion_ids))
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


class Clock(TrainerCallback):
    def on_step_end(self, *positional, **named):
        ends.append(time.perf_counter())


with open(WORK["rows"], encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
sampling = WORK["sampling"]
length = sampling["max_tokens"]
config = GRPOConfig(
    output_dir=tempfile.mkdtemp(prefix="rollcall-trl-"),
    per_device_train_batch_size=WORK["prompts"] * WORK["samples"],
    num_generations=WORK["samples"],
    max_completion_length=length,
    generation_kwargs={"min_new_tokens": length} if sampling["ignore_eos"] else None,
    shuffle_dataset=False,
    temperature=sampling["temperature"],
    top_p=sampling["top_p"],
    top_k=sampling["top_k"],
    learning_rate=WORK["learning_rate"],
    max_grad_norm=WORK["max_grad_norm"],
    lr_scheduler_type="constant",
    beta=0.0,
    max_steps=WORK["steps"],
    bf16=WORK["bfloat16"],
    use_cpu=not torch.cuda.is_available(),
    gradient_checkpointing=False,
    save_strategy="no",
    logging_steps=1000,
    report_to=[],
    disable_tqdm=True,
)
trainer = GRPOTrainer(model=WORK["model"], reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows))
trainer.add_callback(Clock())
trainer.train()
warm_up = WORK["warm_up"]
times = [end - begin for begin, end in itertools.pairwise(ends[warm_up - 1 :])]
tell(statistics.mean(tokens[warm_up : len(ends)]) / statistics.median(times))
