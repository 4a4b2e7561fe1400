"""Scores of learned reward models: each item's own, normalised, whoever else is in the batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.models.reward_model_files import (
    RewardModelCard,
    load_reward_model,
    new_text_model,
    save_segment_model,
    save_text_model,
)
from rollcall.reward_service.models.reward_models import SegmentArchitecture, SegmentRewardModel, Statistics
from rollcall.reward_service.protocol import ArrayField, Message, ScoreItem, Segment
from rollcall.reward_service.scorer import Failure, Score
from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer
from tests.needs import require_module

transformers = require_module("transformers")
ALPHABET = "abcdefghijklmnopqrstuvwxyz "


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with a head that is not 0, mean 0.5 and deviation 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "<eos>", "<unk>", *ALPHABET]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, max_position_embeddings=128, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    source = tmp_path_factory.mktemp("source")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.Qwen3ForCausalLM(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    model = new_text_model(source, seed=0)
    with torch.no_grad():
        model.model.score.weight.copy_(torch.linspace(-1, 1, 32))  # type: ignore[union-attr, operator, arg-type]
    directory = tmp_path_factory.mktemp("scorer") / "model"
    save_text_model(
        model, source, directory, RewardModelCard(kind="text", statistics=Statistics(mean=(0.5,), std=(2.0,)))
    )
    return directory


def texts(count: int, *, seed: int = 0) -> list[ScoreItem]:
    generator = random.Random(seed)

    def text() -> str:
        return "".join(generator.choices(ALPHABET, k=generator.randint(1, 50)))

    return [ScoreItem(id=str(i), prompt=text(), response=text()) for i in range(count)]


def value(outcome: Any) -> float:
    assert isinstance(outcome, Score), outcome
    return outcome.value


def test_a_score_is_the_direct_forward_passs_normalised_and_no_batch_changes_it(text_model: Path) -> None:
    items = texts(60)
    loaded = load_reward_model(text_model)
    assert loaded.encoder is not None
    for batch_tokens in (64, 512, 8192):
        scorer = build_reward_model_scorer(RewardModelConfig(path=str(text_model), batch_tokens=batch_tokens))
        together = scorer.score(items)
        for item, outcome in zip(items, together, strict=True):
            assert isinstance(outcome, Score)
            tokens = [*loaded.encoder.prompt(item.prompt or ""), *loaded.encoder.response(item.response or "")]
            with torch.no_grad():
                raw = float(loaded.module(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0, 0])
            assert outcome.components["raw"] == pytest.approx(raw, abs=1e-5)
            assert outcome.value == pytest.approx((raw - 0.5) / 2.0, abs=1e-5)
        reversed_ones = scorer.score(items[::-1])[::-1]
        assert [value(o) for o in reversed_ones] == pytest.approx([value(o) for o in together], abs=1e-5)
        scorer.close()


def test_the_same_prompt_has_one_score_in_whatever_form_it_comes(text_model: Path) -> None:
    scorer = build_reward_model_scorer(RewardModelConfig(path=str(text_model)))
    items = [
        ScoreItem(id="text", prompt="ab c ", response="de"),
        ScoreItem(id="messages", messages=(Message(role="user", content="ab c"),), response="de"),
        ScoreItem(id="tokens", token_ids=(3, 4, 29, 5, 29), response="de"),
    ]
    scores = [value(outcome) for outcome in scorer.score(items)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


def test_what_cannot_be_scored_is_that_items_failure_and_the_others_have_their_scores(text_model: Path) -> None:
    scorer = build_reward_model_scorer(RewardModelConfig(path=str(text_model), max_tokens=40))
    segment = Segment(observations=ArrayField.of(np.zeros((1, 2))), actions=ArrayField.of(np.zeros(1)))
    items = [
        ScoreItem(id="good", prompt="abc", response="def"),
        ScoreItem(id="long", prompt="a" * 30, response="b" * 10),
        ScoreItem(id="just fits", prompt="a" * 30, response="b" * 9),
        ScoreItem(id="segment", segment=segment),
        ScoreItem(id="foreign", token_ids=(3, 4_000_000), response="a"),
    ]
    outcomes = scorer.score(items)
    assert [o.kind if isinstance(o, Failure) else "score" for o in outcomes] == [
        *("score", "too_long", "score", "unsupported", "unsupported")
    ]
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].message == "41 tokens, and this model takes 40"
    (alone,) = scorer.score(items[:1])
    assert value(alone) == pytest.approx(value(outcomes[0]), abs=1e-5)


def test_cost_is_about_the_number_of_tokens(text_model: Path) -> None:
    scorer = build_reward_model_scorer(RewardModelConfig(path=str(text_model)))
    assert scorer.cost(ScoreItem(id="a", prompt="abcde", response="fgh")) == 8
    assert scorer.cost(ScoreItem(id="b", token_ids=(3, 4, 5), response="")) == 3


# Segments.

ARCHITECTURE = SegmentArchitecture(observation_shape=(3,), action_shape=(2,), hidden_sizes=(8, 8), members=3)
STATISTICS = Statistics(mean=(0.1, -0.2, 0.3), std=(0.5, 1.0, 2.0))


@pytest.fixture(scope="module")
def segment_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("segments") / "model"
    model = SegmentRewardModel(ARCHITECTURE, seed=2)
    save_segment_model(model, directory, RewardModelCard(kind="segment", statistics=STATISTICS))
    return directory


def segments(count: int) -> list[ScoreItem]:
    generator = np.random.default_rng(3)
    found = []
    for i in range(count):
        length = int(generator.integers(1, 30))
        observations = ArrayField.of(generator.normal(size=(length, 3)).astype(np.float32))
        actions = ArrayField.of(generator.normal(size=(length, 2)).astype(np.float32))
        found.append(ScoreItem(id=str(i), segment=Segment(observations=observations, actions=actions)))
    return found


def test_a_segments_score_is_the_sum_of_its_steps_normalised_rewards_averaged_over_the_members(
    segment_model: Path,
) -> None:
    module = load_reward_model(segment_model).module
    items = segments(40)
    for batch_tokens in (8, 4096):
        scorer = build_reward_model_scorer(RewardModelConfig(path=str(segment_model), batch_tokens=batch_tokens))
        for item, outcome in zip(items, scorer.score(items), strict=True):
            assert isinstance(outcome, Score) and item.segment is not None
            raw = module(*(torch.from_numpy(a) for a in ARCHITECTURE.arrays(item.segment))).double()
            rewards = (raw - torch.tensor(STATISTICS.mean)[:, None]) / torch.tensor(STATISTICS.std)[:, None]
            assert outcome.step_values == pytest.approx(rewards.mean(0).tolist(), abs=1e-5)
            assert outcome.value == pytest.approx(float(rewards.mean(0).sum()), abs=1e-4)
            assert outcome.value == pytest.approx(sum(outcome.step_values or ()))
            members = rewards.sum(1).numpy()
            assert outcome.components["disagreement"] == pytest.approx(float(members.std()), abs=1e-4)
            assert scorer.cost(item) == item.segment.num_steps


def test_a_segment_of_another_env_and_one_too_long_are_failures(segment_model: Path) -> None:
    scorer = build_reward_model_scorer(RewardModelConfig(path=str(segment_model), max_tokens=5))
    other = Segment(observations=ArrayField.of(np.zeros((2, 4), np.float32)), actions=ArrayField.of(np.zeros((2, 2))))
    long = Segment(observations=ArrayField.of(np.zeros((6, 3), np.float32)), actions=ArrayField.of(np.zeros((6, 2))))
    infinite = Segment(
        observations=ArrayField.of(np.full((2, 3), np.nan, np.float32)), actions=ArrayField.of(np.zeros((2, 2)))
    )
    items = [ScoreItem(id=str(i), segment=s) for i, s in enumerate((other, long, infinite))]
    items.append(ScoreItem(id="text", prompt="a", response="b"))
    found = scorer.score(items)
    assert [o.kind for o in found if isinstance(o, Failure)] == ["unsupported", "too_long", "non_finite", "unsupported"]


def test_what_cannot_be_served_is_refused_when_it_is_built(segment_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no directory"):
        build_reward_model_scorer(RewardModelConfig(path=str(tmp_path / "nothing")))
    with pytest.raises(BadInput, match="device = 'cuda:77'"):
        build_reward_model_scorer(RewardModelConfig(path=str(segment_model), device="cuda:77"))
