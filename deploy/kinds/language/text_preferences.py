"""The reward model of a language run from preferences, made before the policy learns (Ouyang et al., 2022,
arXiv:2203.02155): pairs that version 0 samples, judged, and a reward model on that version's own body.
Training is reward_model.py's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Task
from rollcall.actors.trajectory_scoring import as_asked, asked_of
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.preference_config import REWARD_WEIGHT_DECAY, RewardTrainConfig, TextModelConfig
from rollcall.deploy.config.preference_settings import TextPreferencesConfig
from rollcall.deploy.kinds.kind import NestedRun
from rollcall.deploy.kinds.preferences.reward_model import REWARD_MODEL
from rollcall.deploy.preferences.data import PreferenceDataConfig
from rollcall.deploy.preferences.implicit_rewards import sampled_pairs
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerryConfig
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import resolve_device
from rollcall.learners.loop.optimizers import AdamConfig
from rollcall.learners.loop.schedules import LinearSchedule
from rollcall.learners.models.token_policy import LMPolicyConfig, TokenPolicy, load_policy_model
from rollcall.reward_service.preferences.files import (
    Preference,
    PreferencePair,
    SegmentPair,
    read_preferences,
    write_preferences,
)
from rollcall.reward_service.preferences.records import TextCandidate
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater

_AT_ONCE = 128  # prompts answered in one call

_log = logging.getLogger("rollcall")


def reward_model_run(
    config: TextPreferencesConfig,
    task: Task,
    codec: TextCodec,
    model_directory: Path,
    directory: Path,
    *,
    sampling: SamplingConfig,
    seed: int,
    tell: Callable[[str], None] = print,
) -> NestedRun:
    """A reward model's run in `directory`, its model in `directory`/model. It learns from what it will score: prompts
    in the task's form, and responses sampled as the run's actors sample, which are sampled here.

    Raises:
      BadInput: when the preferences cannot be read, or the pairs are all ties.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = directory.name
    file = directory.with_suffix(".jsonl")
    if config.file is not None:
        file = _in_the_tasks_form(Path(config.file), task, file)
    else:
        tell(f"sampling {config.pairs:,} pairs for the reward model ...")
        torch.set_num_threads(config.threads)
        pairs = list(_judged(config, task, codec, model_directory, sampling=sampling, seed=seed))
        if len(pairs) < 10:
            raise BadInput(
                f"preferences: of {config.pairs} pairs {len(pairs)} differ: the policy samples too little of what it "
                f"can (temperature={sampling.temperature}, top_p={sampling.top_p}, top_k={sampling.top_k}); raise "
                "actors.sampling.temperature or preferences.pairs"
            )
        write_preferences(file, pairs)
    training = RewardTrainConfig(
        name=name,
        seed=seed % 2**31,
        data=PreferenceDataConfig(train=str(file)),
        model=TextModelConfig(start=str(model_directory), max_tokens=config.max_tokens),
        loss=BradleyTerryConfig(noise=config.noise.believed_random_share),
        batch_size=config.batch_size,
        epochs=config.epochs,
        learner=LearnerConfig(
            learning_rate=config.learning_rate,
            optimizer=AdamConfig(weight_decay=REWARD_WEIGHT_DECAY),
            schedule=LinearSchedule(warmup_steps=10),
            max_grad_norm=1.0,
            threads=config.threads,
        ),
    )
    tell("training the reward model ...")
    return NestedRun(REWARD_MODEL, training, directory, told=partial(_tell_result, tell, directory))


def _tell_result(tell: Callable[[str], None], directory: Path, summary: Mapping[str, Any]) -> None:
    found = summary["held_out"]
    tell(f"reward model: {found['accuracy']:.1%} of {found['n']} held-out pairs right ({directory / 'report.html'})")


def _in_the_tasks_form(file: Path, task: Task, goal: Path) -> Path:
    """A file whose prompts are as the task's are when they are scored: of a chat task, messages. A plain prompt becomes
    a user's message, in a file of its own.

    Raises:
      BadInput: for messages where the task has none, and segments.
    """
    plain = 0
    found: list[Preference] = []
    for item in read_preferences(file):
        if isinstance(item, SegmentPair):
            raise BadInput(f"{item.source}: segments, and a language model is scored by texts: give texts")
        if not task.chat and not isinstance(item.prompt, str):
            raise BadInput(
                f"{item.source}: messages, and the task's prompts are plain text (chat=false): the reward model would "
                "learn from other prompts than it scores; give prompts, or set task.chat=true"
            )
        plain += isinstance(item.prompt, str)
        found.append(replace(item, prompt=as_asked(task, item.prompt) if isinstance(item.prompt, str) else item.prompt))
    if not task.chat or not plain:
        return file
    write_preferences(goal, found)
    _log.info("%s: %d plain prompts are a user's messages, as the task's are: %s", file, plain, goal)
    return goal


def _judged(
    config: TextPreferencesConfig,
    task: Task,
    codec: TextCodec,
    model_directory: Path,
    *,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[PreferencePair]:
    """Pairs of samples of the model in `model_directory`, as a synthetic rater sees them, who is told a row's prompt as
    it stands; the pair has it as the reward model will be asked."""
    assert config.true_reward is not None
    rater = SyntheticRater("synthetic", import_object(config.true_reward), config.noise)
    model = load_policy_model(model_directory, LMPolicyConfig(model=str(model_directory)))
    policy = TokenPolicy(model, sampling)
    device = resolve_device("auto")
    policy.to(device)
    rows = task.rows("train")
    chosen = np.random.default_rng(derive_seed(seed, "prompts")).choice(len(rows), config.pairs)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(derive_seed(seed, "samples"))
        for begin in range(0, len(chosen), _AT_ONCE):
            asked = [rows[index] for index in chosen[begin : begin + _AT_ONCE]]
            prompts = [np.array(codec.prompt(row.prompt), np.int32) for row in asked]
            answers = sampled_pairs(policy, prompts, sampling, device, ends=[codec.eos_token_id])
            for row, samples in zip(asked, answers, strict=True):
                texts = [codec.decode(tokens.tolist()) for tokens in samples]
                if texts[0] == texts[1]:
                    continue
                answer = rater.answer([TextCandidate(prompt=row.prompt, response=text) for text in texts])
                best = 1 if answer.choice == "right" else 0
                yield PreferencePair(
                    prompt=asked_of(task, row),
                    chosen=texts[best],
                    rejected=texts[1 - best],
                    tie=answer.choice == "tie",
                )
