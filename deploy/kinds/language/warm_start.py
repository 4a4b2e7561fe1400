"""Supervised fine-tuning on demonstrations: what a warm start learns, and from which demonstrations of a task. The loop
is the offline drive's, the loss is sft.py's."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Row, Task
from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.kinds.language.model_directory import model_source, save_policy
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.deploy.report.recorders import Record
from rollcall.learners.algorithms.language.sft import SFT
from rollcall.learners.algorithms.language.sft_config import SFTConfig
from rollcall.learners.collators.demonstrations import DemonstrationCollator
from rollcall.learners.collective import Collective
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.footprint import frozen_dtype, trained_dtype
from rollcall.learners.loop.learner import Learner, resolve_device
from rollcall.learners.loop.schedules import ConstantSchedule, LinearSchedule
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig, WarmStartConfig
from rollcall.learners.models.language.lora import add_adapters, merged_parameters, target_names
from rollcall.learners.models.language.token_policy import (
    TokenPolicy,
    autocast_dtype,
    decoder_layers,
    layout_of,
    load_policy_model,
    model_length,
)

WARM_START = "warm_start"  # of a run directory: the model that the run begins with, in Hugging Face's format

_log = logging.getLogger("rollcall")


@dataclass(frozen=True)
class WarmStart:
    """Imitation of demonstrations, from the model at `given` to the one at `goal`; `seed` is its own."""

    demonstrations: Sequence[Demonstration]
    given: Path
    goal: Path
    policy: LMPolicyConfig
    optimised: LearnerConfig
    seed: int
    collective: Collective = field(default_factory=Collective)  # of a run that several processes share

    @property
    def steps(self) -> int:
        return self._settings.steps

    @cached_property
    def source(self) -> ShuffledSource[Demonstration]:
        return ShuffledSource(
            self.demonstrations, batch_size=self._settings.batch_size, steps=self.steps, seed=self.seed
        )

    @cached_property
    def learner(self) -> Learner:
        """Raises BadInput: when adapters that are asked for cannot be had, or there is no such model."""
        settings, policy = self._settings, self.policy
        model = load_policy_model(self.given, policy, device=resolve_device(self.optimised.device))
        if policy.lora is not None:
            target_names(model, policy.lora)  # what the run would refuse after this training
        if settings.lora is not None:
            add_adapters(model, settings.lora, seed=derive_seed(self.seed, "lora"))
        model_source(self.given)
        shape = LinearSchedule if settings.anneal_learning_rate else ConstantSchedule
        update = {
            "learning_rate": settings.learning_rate,
            "schedule": shape(warmup_steps=self.optimised.schedule.warmup_steps),
            "threads": settings.threads or max(1, usable_cores() // 2),
            "num_processes": self.collective.num_processes,
        }
        autocast, logits_mib = autocast_dtype(policy), policy.logits_workspace_mib
        return Learner(
            models={"policy": TokenPolicy(model, SamplingConfig(), autocast=autocast, logits_mib=logits_mib)},
            algorithm=SFT(SFTConfig(token_budget=settings.token_budget)),
            config=self.optimised.for_language().model_copy(update=update),
            policy_id=WARM_START,
            run_seed=self.seed,
            collator=DemonstrationCollator(layout_of(model, share_prompts=False)),
            collective=self.collective,
            fsdp_units=decoder_layers,
            read_out=None if settings.lora is None else merged_parameters,
            weights_dtype=trained_dtype(policy.model_copy(update={"lora": settings.lora}), self.optimised),
            frozen_dtype=frozen_dtype(policy),
        )

    def recorder(self) -> WarmStartLines:
        return WarmStartLines(self.goal.with_name("warm_start.jsonl"), sys.stdout)

    def finish(self, steps_done: int) -> dict[str, Any]:
        """Writes model and tokenizer, in one move; of several processes, the first does.

        Raises:
          RollcallError: when it was stopped before; nothing is written then.
        """
        if steps_done < self.steps:
            raise RollcallError(
                f"stopped at step {steps_done} of the warm start, before there was a checkpoint to go on from: train "
                "it again"
            )
        weights = self.learner.publish(epoch=0, version=steps_done)
        if weights is not None:
            save_policy(weights, model_source(self.given), self.goal)
        return {}

    @property
    def _settings(self) -> WarmStartConfig:
        assert self.policy.warm_start is not None
        return self.policy.warm_start


class WarmStartLines(ProgressLines):
    """A line of JSON for each step, and one for people every few seconds."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        super().__init__(stream, prefix="warm start: ")
        self._file = path.open("w")

    def on_step(self, record: Record) -> None:
        super().on_step(record)
        line = {name: value for name, value in record.items() if name not in ("update_s", "wait_batch_s")}
        self._file.write(json.dumps(line) + "\n")

    def close(self, summary: Record) -> None:
        self._file.close()


def demonstrations_of(
    task: Task,
    codec: TextCodec,
    model_directory: Path,
    *,
    num_rows: int | None,
    seed: int,
    what_for: str = "warm start",
) -> list[Demonstration]:
    """Of a task's training rows, in a seeded order; those that are longer than the model are left out, and said.

    Raises:
      BadInput: when there are none.
    """
    rows = list(task.rows("train"))
    order = np.random.default_rng(seed).permutation(len(rows))[:num_rows]
    demonstrations = [demonstration(task, codec, rows[index]) for index in order]
    if not demonstrations:
        raise BadInput(f"{what_for}: the task has no training rows")
    room, longest = model_length(model_directory), max(len(item.token_ids) for item in demonstrations)
    fitting = [item for item in demonstrations if room is None or len(item.token_ids) <= room]
    about = f"demonstrations are longer than the {room} tokens that the model takes (the longest has {longest})"
    if not fitting:
        raise BadInput(f"{what_for}: all {len(demonstrations)} {about}: shorten them, or take another policy.model")
    if left_out := len(demonstrations) - len(fitting):
        _log.warning("%s: %d of %d %s, and are left out", what_for, left_out, len(demonstrations), about)
    return fitting


def demonstration(task: Task, codec: TextCodec, row: Row) -> Demonstration:
    """A row's demonstration as tokens; after each segment of the model's own comes its end-of-sequence token. Of a chat
    of several messages, every turn of the assistant's."""
    token_ids: list[int] = []
    imitated: list[bool] = []
    if row.messages:
        reply = row.reply or {"role": "assistant", "content": row.answer}
        for tokens, by_model in codec.conversation((*row.messages, reply), tools=row.columns.get("tools")):
            token_ids += tokens
            imitated += [by_model] * len(tokens)
        return Demonstration(np.array(token_ids, np.int32), np.array(imitated, bool))
    for index, segment in enumerate(task.demonstration(row)):
        tokens = codec.prompt(segment.text) if index == 0 else codec.encode(segment.text)
        if segment.by_model:
            tokens = [*tokens, codec.eos_token_id]
        token_ids += tokens
        imitated += [segment.by_model] * len(tokens)
    return Demonstration(np.array(token_ids, np.int32), np.array(imitated, bool))
