"""The reward model of a language run from preferences, made before the policy learns (Ouyang et al., 2022,
arXiv:2203.02155): pairs that version 0 samples, judged, and a reward model on that version's own body.
Training is reward_model.py's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.actors.language.conversations import opening
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Row, Task
from rollcall.actors.trajectory_scoring import as_asked, asked_of
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.preference_config import REWARD_WEIGHT_DECAY, RewardTrainConfig, TextModelConfig
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.kinds.kind import NestedRun
from rollcall.deploy.kinds.preferences.reward_model import REWARD_MODEL
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.deploy.preferences.implicit_rewards import sampled_pairs
from rollcall.learners.algorithms.preferences.bradley_terry_config import BradleyTerryConfig
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import resolve_device
from rollcall.learners.loop.optimizer_config import AdamConfig
from rollcall.learners.loop.schedules import LinearSchedule
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.preferences.files import (
    Preference,
    PreferencePair,
    Ranking,
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
        tell(f"sampling {config.total_labels:,} pairs for the reward model ...")
        torch.set_num_threads(config.threads)
        pairs = list(_judged(config, task, codec, model_directory, sampling=sampling, seed=seed))
        if len(pairs) < 10:
            raise BadInput(
                f"preferences: of {config.total_labels} pairs {len(pairs)} differ: the policy samples too little of "
                f"what it can ({said_of(sampling)}); raise actors.sampling.temperature or preferences.total_labels"
            )
        write_preferences(file, pairs)
    training = reward_training(config, name, PreferenceDataConfig(train=str(file)), start=model_directory, seed=seed)
    tell("training the reward model ...")
    return NestedRun(REWARD_MODEL, training, directory, told=partial(_tell_result, tell, directory))


def reward_training(
    config: TextPreferencesConfig, name: str, data: PreferenceDataConfig, *, start: Path, seed: int
) -> RewardTrainConfig:
    """Of a reward model on the body of a language model, or that goes on from another reward model."""
    return RewardTrainConfig(
        name=name,
        seed=seed % 2**31,
        data=data,
        model=TextModelConfig(start=str(start), max_tokens=config.max_tokens, members=config.members, lora=config.lora),
        loss=BradleyTerryConfig(noise=config.random_share),
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


def served_model(config: TextPreferencesConfig, path: Path, *, longest: int) -> RewardModelConfig:
    """How the service runs it: what it may have learnt from, and what the policy may write (`longest`, in tokens), is
    not too long."""
    usual = RewardModelConfig(path=str(path))
    return usual.model_copy(update={"max_tokens": max(usual.max_tokens, config.max_tokens, longest)})


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


def said_of(sampling: SamplingConfig) -> str:
    return f"temperature={sampling.temperature}, top_p={sampling.top_p}, top_k={sampling.top_k}"


def _judged(
    config: TextPreferencesConfig,
    task: Task,
    codec: TextCodec,
    model_directory: Path,
    *,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[Preference]:
    """Samples of the model in `model_directory`, as a synthetic rater sees them, who is told a row's prompt as it
    stands; the pair has it as the reward model will be asked."""
    assert config.true_reward is not None
    rater = SyntheticRater("synthetic", import_object(config.true_reward), config.noise)
    drawn = sampled_texts(task, codec, model_directory, candidates=config.candidates, sampling=sampling, seed=seed)
    for row, texts in islice(drawn, config.total_labels):
        distinct = list(dict.fromkeys(texts))
        if len(distinct) == 1:
            continue
        answer = rater.answer([TextCandidate(prompt=row.prompt, response=text) for text in distinct])
        asked = asked_of(task, row)
        if len(distinct) > 2:
            assert answer.ranks is not None
            yield Ranking(asked, tuple(distinct), answer.ranks)
            continue
        best = 1 if answer.choice == "right" else 0
        yield PreferencePair(
            prompt=asked, chosen=distinct[best], rejected=distinct[1 - best], tie=answer.choice == "tie"
        )


def sampled_texts(
    task: Task,
    codec: TextCodec,
    model_directory: Path,
    *,
    candidates: int,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[tuple[Row, list[str]]]:
    """Prompts that are drawn, each with so many samples of the model in the directory; without an end, and the same
    ones for the same arguments."""
    model = load_policy_model(model_directory, LMPolicyConfig(model=str(model_directory)))
    policy = TokenPolicy(model, sampling)
    device = resolve_device("auto")
    policy.to(device)
    rows = task.rows("train")
    drawn = np.random.default_rng(derive_seed(seed, "prompts"))
    for portion in count():
        asked = [rows[index] for index in drawn.choice(len(rows), _AT_ONCE)]
        prompts = [np.array(opening(task, codec, row), np.int32) for row in asked]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(derive_seed(seed, "samples", portion))
            pairs = [
                sampled_pairs(policy, prompts, sampling, device, ends=[codec.eos_token_id])
                for _ in range(-(-candidates // 2))
            ]
        for row, answers in zip(asked, zip(*pairs, strict=True), strict=True):
            tokens = [sample for answer in answers for sample in answer][:candidates]
            yield row, [codec.decode(sample.tolist()) for sample in tokens]
