"""The reward model of a language run from preferences, made before the policy learns (Ouyang et al., 2022,
arXiv:2203.02155): pairs that version 0 samples, judged, and a reward model on that version's own body. Knows the order
of events; training is reward_train.py's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from rollcall.actors.text_codec import TextCodec
from rollcall.actors.text_task import Row
from rollcall.cluster.errors import BadInput
from rollcall.cluster.import_path import import_object
from rollcall.cluster.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy import offline, reward_train
from rollcall.deploy.implicit_rewards import sampled_pairs
from rollcall.deploy.preference_config import RewardTrainConfig, TextModelConfig
from rollcall.deploy.preference_data import PreferenceDataConfig
from rollcall.deploy.preference_settings import TextPreferencesConfig
from rollcall.deploy.runs import begin_run, read_json
from rollcall.learners.bradley_terry import BradleyTerryConfig
from rollcall.learners.learner import LearnerConfig, resolve_device
from rollcall.learners.token_policy import LMPolicyConfig, TokenPolicy, load_policy_model
from rollcall.reward_service.preference_files import PreferencePair, write_preferences
from rollcall.reward_service.preferences import TextCandidate
from rollcall.reward_service.synthetic_rater import SyntheticRater

_AT_ONCE = 128  # prompts answered in one call

_log = logging.getLogger("rollcall")


def train_reward_model(
    config: TextPreferencesConfig,
    rows: Sequence[Row],
    codec: TextCodec,
    model_directory: Path,
    directory: Path,
    *,
    max_tokens: int,
    seed: int,
    tell: Callable[[str], None] = print,
) -> None:
    """Leaves a run of `rollcall reward train` in `directory`, its model in `directory`/model.

    Raises:
      BadInput: when the preferences cannot be read, or the pairs are all ties.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = directory.name
    file = Path(config.file) if config.file is not None else directory.with_suffix(".jsonl")
    if config.taste is not None:
        tell(f"sampling {config.pairs:,} pairs for the reward model ...")
        torch.set_num_threads(config.threads)
        pairs = list(_judged(config, rows, codec, model_directory, max_tokens=max_tokens, seed=seed))
        if len(pairs) < 10:
            raise BadInput(f"preferences: of {config.pairs} pairs {len(pairs)} differ: the policy samples too little")
        write_preferences(file, pairs)
    training = RewardTrainConfig(
        name=name,
        seed=seed % 2**31,
        data=PreferenceDataConfig(train=str(file)),
        model=TextModelConfig(start=str(model_directory), max_tokens=config.max_tokens),
        loss=BradleyTerryConfig(noise=config.noise.error_rate),
        batch_size=config.batch_size,
        epochs=config.epochs,
        learner=LearnerConfig(
            learning_rate=config.learning_rate,
            warmup_steps=10,
            anneal_learning_rate=True,
            max_grad_norm=1.0,
            threads=config.threads,
        ),
    )
    begin_run(training, directory, recipe=name)
    tell("training the reward model ...")

    def build() -> reward_train.RewardJob:
        return reward_train.RewardJob(training, directory)

    offline.carry_out(training, directory, build, resume=False, stop=threading.Event())
    found = read_json(directory / "summary.json")["held_out"]
    tell(f"reward model: {found['accuracy']:.1%} of {found['n']} held-out pairs right ({directory / 'report.html'})")


def _judged(
    config: TextPreferencesConfig,
    rows: Sequence[Row],
    codec: TextCodec,
    model_directory: Path,
    *,
    max_tokens: int,
    seed: int,
) -> Iterator[PreferencePair]:
    """Pairs of samples of the model in `model_directory`, as a synthetic rater sees them."""
    assert config.taste is not None
    rater = SyntheticRater("synthetic", import_object(config.taste), config.noise)
    policy = TokenPolicy(
        load_policy_model(model_directory, LMPolicyConfig(model=str(model_directory))), SamplingConfig()
    )
    device = resolve_device("auto")
    policy.to(device)
    chosen = np.random.default_rng(derive_seed(seed, "prompts")).choice(len(rows), config.pairs)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(derive_seed(seed, "samples"))
        for begin in range(0, len(chosen), _AT_ONCE):
            asked = [rows[index] for index in chosen[begin : begin + _AT_ONCE]]
            prompts = [np.array(codec.prompt(row.prompt), np.int32) for row in asked]
            for row, samples in zip(asked, sampled_pairs(policy, prompts, max_tokens, device), strict=True):
                texts = [codec.decode(tokens.tolist()) for tokens in samples]
                if texts[0] == texts[1]:
                    continue
                answer = rater.answer([TextCandidate(prompt=row.prompt, response=text) for text in texts])
                best = 1 if answer["choice"] == "right" else 0
                yield PreferencePair(
                    prompt=row.prompt, chosen=texts[best], rejected=texts[1 - best], tie=answer["choice"] == "tie"
                )
