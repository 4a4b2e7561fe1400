"""What runs on preferences need of memory: of each process that trains, with a frozen reference or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollcall.deploy.config.recipe.preference_config import DirectRunConfig, RewardTrainConfig, TextModelConfig
from rollcall.deploy.kinds.language.needs import (
    SPECIAL_TOKENS,
    checkpoint_bytes,
    imitation_of,
    learner_of,
    step_of,
    tiny_size,
)
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.model_size import ModelSize, size_of_directory
from rollcall.deploy.plan.needs import Needs, Part, Role, counted
from rollcall.deploy.preferences.data import Preferences
from rollcall.learners.algorithms.language.token_settings import TOKEN_BUDGET
from rollcall.learners.loop import footprint
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.reward_service.preferences.files import Preference, PreferencePair, SegmentPair

SEGMENT_MODEL = 200_000  # parameters of an ensemble over segments, at the most
BYTES_PER_CHARACTER = 2  # of comparisons, as they are read and as tokens


def direct_needs(config: DirectRunConfig, found: Preferences) -> Needs:
    """Policy, frozen reference, and a warm start of the policy before."""
    texts = _texts_of(found)
    size = _size(config.policy.model, config.policy.tiny, texts)
    longest = _longest(texts, config.policy.model, config.policy.tiny, config.max_tokens)
    budget = int(getattr(config.algorithm, "budget", TOKEN_BUDGET))
    tokens = min(2 * config.batch_size * longest, max(budget, 2 * longest))
    learner = learner_of(
        config.policy,
        config.learner,
        size,
        step=step_of(size, config.policy, tokens=tokens, predicted=tokens),
        critic=False,
        reference=True,
        base=memory.LANGUAGE_LEARNER,
        copy_on_device=False,
        shrink="algorithm.budget, max_tokens, policy.gradient_checkpointing",
    )
    if config.policy.warm_start is not None:  # it comes first, and its memory is free again then
        first = imitation_of(config.policy, config.learner, size, longest=longest, base=memory.LANGUAGE_LEARNER)
        learner = max(learner, first, key=lambda parts: sum(part.size_bytes for part in parts))
    return Needs(
        model=f"{size.name}, {counted(size.num_parameters)} parameters",
        roles=(Role("trainer", (*learner, _data(texts)), config.learner.num_processes, "learner"),),
        checkpoint_bytes=checkpoint_bytes(config.policy, config.learner, size, critic=False),
        checkpoints_kept=config.checkpoint.keep,
        begins_bytes=8 * size.num_parameters,
        on_ray=False,
        tokens=tokens,
    )


def reward_model_needs(config: RewardTrainConfig, found: Preferences) -> Needs:
    """The reward model, and the best one so far."""
    model = config.model
    if not isinstance(model, TextModelConfig):
        held = SEGMENT_MODEL * (16 + 4)
        parts = (
            Part("program", memory.LEARNER, host=True),
            Part("networks", held + memory.SMALL_BATCH, "model.members"),
        )
        return Needs(
            model="networks over segments",
            roles=(Role("trainer", parts, config.learner.num_processes, "learner"),),
            checkpoint_bytes=held,
            checkpoints_kept=config.checkpoint.keep,
            on_ray=False,
        )
    texts = _texts_of(found)
    if model.start == "words":
        return _words_needs(config, texts)
    size = _size(model.start, model.tiny, texts)
    longest = _longest(texts, model.start, model.tiny, model.max_tokens)
    budget = int(getattr(config.loss, "budget", TOKEN_BUDGET))
    tokens = min(2 * config.batch_size * longest, max(budget, 2 * longest))
    policy = LMPolicyConfig(lora=model.lora)
    learner = learner_of(
        policy,
        config.learner,
        size,
        step=step_of(size, policy, tokens=tokens, predicted=0),
        critic=False,
        reference=False,
        base=memory.LANGUAGE_LEARNER,
        copy_on_device=False,
        shrink="batch_size, model.max_tokens",
    )
    best = Part("best model", 4 * size.num_parameters, "keep=last", host=True)
    return Needs(
        model=f"{size.name}, {counted(size.num_parameters)} parameters",
        roles=(Role("trainer", (*learner, best, _data(texts)), config.learner.num_processes, "learner"),),
        checkpoint_bytes=size.num_parameters * (12 + footprint.optimizer_bytes(config.learner.optimizer)),
        checkpoints_kept=config.checkpoint.keep,
        begins_bytes=8 * size.num_parameters,
        on_ray=False,
        tokens=tokens,
    )


def _words_needs(config: RewardTrainConfig, texts: Sequence[str]) -> Needs:
    """A weight for each word and each pair of neighbours: at the most two a word of all texts."""
    parameters = 2 * sum(len(text.split()) + 1 for text in set(texts))
    held = parameters * (16 + footprint.optimizer_bytes(config.learner.optimizer))  # key, prior, weight and gradient
    parts = (
        Part("program", memory.LANGUAGE_LEARNER, host=True),
        Part("model", held + 2 * 4 * parameters + memory.SMALL_BATCH, "data.limit"),
    )
    return Needs(
        model=f"a model of words, up to {counted(parameters)} parameters",
        roles=(Role("trainer", (*parts, _data(texts)), config.learner.num_processes, "learner"),),
        checkpoint_bytes=held,
        checkpoints_kept=config.checkpoint.keep,
        on_ray=False,
    )


def _data(texts: Sequence[str]) -> Part:
    return Part("comparisons", BYTES_PER_CHARACTER * sum(map(len, texts)), "data.limit", host=True)


def _texts_of(found: Preferences) -> list[str]:
    """Prompt and response of every candidate."""
    return [text for item in (*found.train, *found.held_out) for text in _candidates(item)]


def _candidates(item: Preference) -> Iterator[str]:
    assert not isinstance(item, SegmentPair), "texts alone"
    prompt = item.prompt if isinstance(item.prompt, str) else "".join(message.content for message in item.prompt)
    for response in (item.chosen, item.rejected) if isinstance(item, PreferencePair) else item.responses:
        yield prompt + response


def _size(model: str, tiny: Mapping[str, Any], texts: Sequence[str]) -> ModelSize:
    if model != "tiny":
        return size_of_directory(model)
    settings = dict(tiny)
    pieces = settings.pop("vocab_size", None)
    characters = len({c for text in texts for c in text})
    return tiny_size(settings, int(pieces) if pieces is not None else characters + SPECIAL_TOKENS)


def _longest(texts: Sequence[str], model: str, tiny: Mapping[str, Any], max_tokens: int) -> int:
    """Tokens of the longest candidate that is not left out."""
    characters = max(map(len, texts))
    by_character = model == "tiny" and "vocab_size" not in tiny
    return min(max_tokens, characters + 2 if by_character else -(-characters // 3) + 2)
