"""Supervised fine-tuning as an offline run: a task's demonstrations, through the same learner as everything else, to a
model directory in Hugging Face's format. Knows the order of events; the mathematics is sft.py's."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Row, Task
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.kinds.export import model_source, save_policy
from rollcall.learners.algorithms.language.sft import SFT, SFTConfig
from rollcall.learners.data.demonstrations import Demonstration, DemonstrationExperience, DemonstrationSource
from rollcall.learners.loop.learner import Learner, LearnerConfig
from rollcall.learners.models.lora import add_adapters, merged_parameters, target_names
from rollcall.learners.models.token_policy import (
    LMPolicyConfig,
    TokenPolicy,
    autocast_dtype,
    load_policy_model,
    model_length,
)

_log = logging.getLogger("rollcall")
REPORT_EVERY_S = 5.0


def warm_start(
    task: Task,
    codec: TextCodec,
    model_directory: Path,
    directory: Path,
    policy: LMPolicyConfig,
    learner: LearnerConfig,
    *,
    seed: int,
    tell: Callable[[str], None] = print,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Trains on demonstrations and writes model and tokenizer to `directory`, in one move at the end.

    Raises:
      BadInput: when the task has no demonstrations, or adapters that are asked for cannot be had.
      RollcallError: when a stop was requested; nothing is written then.
    """
    assert policy.warm_start is not None
    rows = list(task.rows("train"))
    order = np.random.default_rng(seed).permutation(len(rows))[: policy.warm_start.num_rows]
    demonstrations = _that_fit([demonstration(task, codec, rows[index]) for index in order], model_directory)
    settings: dict[str, Any] = {"seed": seed, "tell": tell, "stop_requested": stop_requested}
    imitate(demonstrations, model_directory, directory, policy, learner, **settings)


def _that_fit(demonstrations: list[Demonstration], model_directory: Path) -> list[Demonstration]:
    """Those that are not longer than the model; the others are left out, and said."""
    if not demonstrations:
        raise BadInput("warm start: the task has no training rows")
    room, longest = model_length(model_directory), max(len(item.token_ids) for item in demonstrations)
    fitting = [item for item in demonstrations if room is None or len(item.token_ids) <= room]
    about = f"demonstrations are longer than the {room} tokens that the model takes (the longest has {longest})"
    if not fitting:
        raise BadInput(f"warm start: all {len(demonstrations)} {about}: shorten them, or take another policy.model")
    if left_out := len(demonstrations) - len(fitting):
        _log.warning("warm start: %d of %d %s, and are left out", left_out, len(demonstrations), about)
    return fitting


def imitate(
    demonstrations: Sequence[Demonstration],
    model_directory: Path,
    directory: Path,
    policy: LMPolicyConfig,
    learner: LearnerConfig,
    *,
    seed: int,
    tell: Callable[[str], None] = print,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """As warm_start, of demonstrations that are tokens already."""
    assert policy.warm_start is not None
    settings = policy.warm_start
    threads = torch.get_num_threads()
    model = load_policy_model(model_directory, policy)
    if policy.lora is not None:
        target_names(model, policy.lora)  # what the run would refuse after this training
    if settings.lora is not None:
        add_adapters(model, settings.lora, seed=derive_seed(seed, "lora"))
    beside = model_source(model_directory)
    trainer = Learner(
        models={"policy": TokenPolicy(model, SamplingConfig(), autocast=autocast_dtype(policy))},
        algorithm=SFT(SFTConfig(token_budget=settings.token_budget)),
        config=learner.for_language().model_copy(
            update={
                "learning_rate": settings.learning_rate,
                "anneal_learning_rate": settings.anneal_learning_rate,
                "threads": settings.threads,
                "num_processes": 1,
            }
        ),
        policy_id="warm_start",
        run_seed=seed,
        experience=DemonstrationExperience(),
        read_out=None if settings.lora is None else merged_parameters,
    )
    source = DemonstrationSource(demonstrations, batch_size=settings.batch_size, steps=settings.steps, seed=seed)
    _train(trainer, source, directory.parent, settings.steps, tell, stop_requested)
    torch.set_num_threads(threads)
    save_policy(trainer.weights(epoch=0, version=settings.steps), beside, directory)


def demonstration(task: Task, codec: TextCodec, row: Row) -> Demonstration:
    """A row's demonstration as tokens; after each segment of the model's own comes its end-of-sequence token."""
    token_ids: list[int] = []
    imitated: list[bool] = []
    for index, segment in enumerate(task.demonstration(row)):
        tokens = codec.prompt(segment.text) if index == 0 else codec.encode(segment.text)
        if segment.by_model:
            tokens = [*tokens, codec.eos_token_id]
        token_ids += tokens
        imitated += [segment.by_model] * len(tokens)
    return Demonstration(np.array(token_ids, np.int32), np.array(imitated, bool))


def _train(
    trainer: Learner,
    source: DemonstrationSource,
    run_directory: Path,
    steps: int,
    tell: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> None:
    """The offline loop: take, update; one line of metrics a step."""
    told = began = time.monotonic()
    with (run_directory / "warm_start.jsonl").open("w") as file:
        for step in range(steps):
            if stop_requested():
                raise RollcallError(
                    f"stopped at step {step} of the warm start, before there was a checkpoint to go on from: "
                    "train it again"
                )
            batch: Sequence[Demonstration] | None = source.take(step)
            assert batch is not None
            result, _ = trainer.update(batch, StepOrder(step=step, epoch=0, progress=step / steps))
            line = {"step": step, "learning_rate": result.learning_rate, **result.metrics}
            file.write(json.dumps(line) + "\n")
            now = time.monotonic()
            if now - told > REPORT_EVERY_S or step + 1 == steps:
                told = now
                left = (now - began) / (step + 1) * (steps - step - 1)
                loss = result.metrics["negative_log_likelihood"]
                tell(f"warm start: step {step + 1}/{steps}  negative log-likelihood {loss:.3f}  ETA {left:.0f} s")
