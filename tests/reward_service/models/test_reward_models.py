"""Reward models as modules and as directories: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.models.reward_model_files import (
    CARD,
    HeldOut,
    RewardModelCard,
    load_reward_model,
    new_text_model,
    save_segment_model,
    save_text_model,
)
from rollcall.reward_service.models.reward_models import (
    SegmentArchitecture,
    SegmentRewardModel,
    Statistics,
    TextRewardModel,
)
from rollcall.reward_service.models.text_encoder import TextEncoder
from rollcall.reward_service.protocol import ArrayField, Message, Segment
from tests.needs import require_module

transformers = require_module("transformers")


def segment(observations: Any, actions: Any) -> Segment:
    return Segment(observations=ArrayField.of(np.asarray(observations)), actions=ArrayField.of(np.asarray(actions)))


def random_segment(length: int, *, seed: int = 0) -> Segment:
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(length, 2, 2)).astype(np.float32)
    return segment(observations, generator.integers(0, 3, size=length))


DISCRETE = SegmentArchitecture(observation_shape=(2, 2), num_actions=3, hidden_sizes=(8,), members=2)


# Segments.


def test_each_member_is_a_network_of_its_own_over_normalised_observation_and_one_hot_action() -> None:
    model = SegmentRewardModel(DISCRETE, seed=1)
    observations, actions = (torch.from_numpy(a) for a in DISCRETE.arrays(random_segment(5)))
    model.normalise_by(observations)
    found = model(observations, actions)
    assert found.shape == (2, 5)
    seen = (observations - observations.mean(0)) / observations.std(0, correction=0)
    for member in range(2):
        hidden = torch.cat([seen, nn.functional.one_hot(actions[:, 0].long(), 3).float()], 1)
        for layer in range(2):
            hidden = hidden @ model.weights[layer][member] + model.biases[layer][member]
            hidden = nn.functional.leaky_relu(hidden) if layer == 0 else hidden
        torch.testing.assert_close(found[member], hidden[:, 0])
    assert not torch.allclose(found[0], found[1])


def test_the_architecture_is_read_from_segments_and_can_be_told_more() -> None:
    assert SegmentArchitecture.of([random_segment(50)]).num_actions == 3
    assert SegmentArchitecture.of([random_segment(50)], num_actions=5, action_shape=None).num_actions == 5
    box = segment(np.zeros((4, 3), np.float32), np.zeros((4, 1), np.float32))
    assert SegmentArchitecture.of([box]).action_shape == (1,)
    with pytest.raises(ValueError, match="different spaces"):
        SegmentArchitecture.of([box, random_segment(3)])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (segment(np.zeros((2, 3), np.float32), np.zeros(2, np.int64)), r"shape \[3\], not \[2, 2\]"),
        (segment(np.zeros((2, 2, 2), np.float32), np.zeros((2, 1), np.int64)), "not one whole number each"),
        (segment(np.zeros((2, 2, 2), np.float32), np.zeros(2, np.float32)), "float32"),
        (segment(np.zeros((2, 2, 2), np.float32), np.array([0, 3])), "there are 3, from 0"),
    ],
)
def test_a_segment_of_another_space_is_told_apart(given: Segment, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DISCRETE.arrays(given)


def test_statistics_make_rewards_zero_in_the_mean_and_one_in_deviation_for_each_member() -> None:
    rewards = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)) * torch.tensor([[3.0], [0.1]]) + 5
    normal = Statistics.of(rewards).normalise(rewards)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.std(-1, correction=0), torch.ones(2, dtype=torch.float64))


CARD_OF_SEGMENTS = RewardModelCard(
    kind="segment",
    statistics=Statistics(mean=(0.5, -1.0), std=(2.0, 3.0)),
    trained_on={"comparisons": 7},
    held_out=HeldOut(accuracy=0.75, low=0.4, high=0.9, n=12),
)


def test_a_saved_segment_model_is_the_same_when_it_is_loaded(tmp_path: Path) -> None:
    model = SegmentRewardModel(DISCRETE, seed=3)
    observations, actions = (torch.from_numpy(a) for a in DISCRETE.arrays(random_segment(6)))
    model.normalise_by(observations)
    version = save_segment_model(model, tmp_path / "model", CARD_OF_SEGMENTS)
    loaded = load_reward_model(tmp_path / "model")
    assert loaded.version == version
    assert loaded.card.held_out == CARD_OF_SEGMENTS.held_out
    assert loaded.card.statistics == CARD_OF_SEGMENTS.statistics
    assert torch.equal(loaded.module(observations, actions), model(observations, actions))
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not list(tmp_path.glob(".*"))  # nothing is left beside it


def test_the_version_is_of_the_contents(tmp_path: Path) -> None:
    model = SegmentRewardModel(DISCRETE, seed=3)
    one, again = (save_segment_model(model, tmp_path / name, CARD_OF_SEGMENTS) for name in ("a", "b"))
    assert one == again
    other_statistics = CARD_OF_SEGMENTS.model_copy(update={"statistics": Statistics(mean=(0, 0), std=(1, 1))})
    assert save_segment_model(model, tmp_path / "a", other_statistics) != one
    assert save_segment_model(SegmentRewardModel(DISCRETE, seed=4), tmp_path / "b", CARD_OF_SEGMENTS) != one


def _exchange_weights(model: Path) -> None:
    save_segment_model(SegmentRewardModel(DISCRETE, seed=9), model.with_name("other"), CARD_OF_SEGMENTS)
    shutil.copyfile(model.with_name("other") / "model.safetensors", model / "model.safetensors")


def _edit_card(model: Path, **values: Any) -> None:
    card = json.loads((model / CARD).read_text())
    (model / CARD).write_text(json.dumps(card | values))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_exchange_weights, "its hash is not the one"),
        (lambda model: (model / "model.safetensors").unlink(), "missing"),
        (lambda model: _edit_card(model, architecture=None), "without an architecture"),
        (lambda model: _edit_card(model, statistics={"mean": [0.0], "std": [1.0]}), "statistics of 1 members"),
        (lambda model: _edit_card(model, extra=1), "no reward model's card: extra"),
        (
            lambda model: _edit_card(model, architecture=DISCRETE.model_dump() | {"hidden_sizes": [9]}),
            "not the weights of the architecture",
        ),
        (lambda model: shutil.rmtree(model), "no directory"),
    ],
)
def test_what_is_not_the_model_that_was_written_is_refused_in_one_line(tmp_path: Path, harm: Any, told: str) -> None:
    save_segment_model(SegmentRewardModel(DISCRETE, seed=3), tmp_path / "model", CARD_OF_SEGMENTS)
    harm(tmp_path / "model")
    with pytest.raises(BadInput, match=told) as caught:
        load_reward_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_nothing_but_an_earlier_model_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="no reward model of Rollcall's"):
        save_segment_model(SegmentRewardModel(DISCRETE), tmp_path / "model", CARD_OF_SEGMENTS)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"


# Texts. The models are Hugging Face's own classes, made small on the spot.


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz :."]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def write_language_model(directory: Path) -> None:
    made = tokenizer()
    made.chat_template = "{% for m in messages %}{{ m['content'] }}:{% endfor %}"
    config = transformers.Qwen3Config(
        vocab_size=len(made), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=32, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.Qwen3ForCausalLM(config)
    model.save_pretrained(directory)
    made.save_pretrained(directory)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("language")
    write_language_model(directory)
    return directory


def with_some_head(model: TextRewardModel) -> TextRewardModel:
    with torch.no_grad():
        model.model.score.weight.copy_(torch.linspace(-1, 1, 16))  # type: ignore[union-attr, operator, arg-type]
    return model


def test_a_new_model_of_texts_says_0_and_keeps_the_language_models_body(language_model: Path) -> None:
    model = new_text_model(language_model, seed=0)
    rewards = model(torch.tensor([[5, 6, 1]]), torch.tensor([3]))
    assert rewards.tolist() == [[0.0]]
    body = transformers.AutoModelForCausalLM.from_pretrained(language_model)
    own: Any = model.model
    assert torch.equal(own.model.embed_tokens.weight, body.model.embed_tokens.weight)


def test_the_reward_is_read_from_the_last_token_whatever_the_padding_is(language_model: Path) -> None:
    model = with_some_head(new_text_model(language_model, seed=0)).eval()
    rows, lengths = torch.tensor([[5, 6, 7, 1, 9, 9], [8, 1, 3, 3, 3, 3], [4, 4, 4, 4, 4, 1]]), torch.tensor([4, 2, 6])
    with torch.no_grad():
        together = model(rows, lengths)[0]
        for row in range(3):
            alone = rows[row, : lengths[row]][None]
            torch.testing.assert_close(model(alone, lengths[row][None])[0, 0], together[row], atol=1e-5, rtol=0)
            theirs = model.model(input_ids=alone).logits[0, 0]  # Hugging Face's own reading
            torch.testing.assert_close(theirs, together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["GPT2", "Bert"])
def test_a_sequence_has_one_reward_while_the_model_learns_too(tmp_path: Path, kind: str) -> None:
    """Nothing drops out, whatever mode somebody asks for."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=40, num_labels=1, pad_token_id=0, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = new_text_model(tmp_path, seed=0).train()
    rows, lengths = torch.tensor([[5, 6, 7, 1], [4, 4, 1, 0]]), torch.tensor([4, 3])
    assert torch.equal(model(rows, lengths), model(rows, lengths))
    assert float(model(rows, lengths).detach().std()) > 0


def test_an_encoder_classifier_is_called_as_it_wants_to_be(tmp_path: Path) -> None:
    """No causal body and no `score`: a BERT, which sees padding unless a mask hides it."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_reward_model(tmp_path).module
    with torch.no_grad():
        alone = model(torch.tensor([[5, 6, 1]]), torch.tensor([3]))[0, 0]
        padded = model(torch.tensor([[5, 6, 1, 7, 7], [4, 4, 4, 4, 1]]), torch.tensor([3, 5]))[0, 0]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=0)
    assert abs(float(alone)) > 1e-4


def test_a_saved_model_of_texts_is_the_same_when_loaded_by_us_and_by_hugging_face(
    language_model: Path, tmp_path: Path
) -> None:
    model = with_some_head(new_text_model(language_model, seed=0)).eval()
    card = RewardModelCard(kind="text", statistics=Statistics(mean=(1.0,), std=(2.0,)))
    version = save_text_model(model, language_model, tmp_path / "model", card)
    loaded = load_reward_model(tmp_path / "model")
    rows, lengths = torch.tensor([[5, 6, 7, 1]]), torch.tensor([4])
    with torch.no_grad():
        assert torch.equal(loaded.module(rows, lengths), model(rows, lengths))
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(theirs(input_ids=rows).logits[0], model(rows, lengths)[0])
    assert loaded.version == version
    assert loaded.max_tokens == 64
    assert loaded.encoder is not None
    assert loaded.encoder.response("abc.") == TextEncoder(language_model).response("abc.")


def test_a_language_model_is_no_reward_model_and_a_pickle_is_not_read(language_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"it has no weights for score\.weight; train one from it first"):
        load_reward_model(language_model)
    pickled = tmp_path / "pickled"
    shutil.copytree(language_model, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({"score.weight": torch.ones(1, 16)}, pickled / "pytorch_model.bin")
    with pytest.raises(BadInput, match="no sequence classifier with one label can be loaded"):
        load_reward_model(pickled)


def test_a_sequence_is_prompt_response_and_end_and_messages_go_through_the_template(language_model: Path) -> None:
    encoder = TextEncoder(language_model)
    assert [*encoder.prompt("ab"), *encoder.response("cd")] == [3, 4, 5, 6, 1]
    messages = [Message(role="user", content="ab"), Message(role="assistant", content="c")]
    assert encoder.prompt(messages) == encoder.prompt("ab:c:")


def test_messages_without_a_template_are_refused(language_model: Path, tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="need a chat template"):
        TextEncoder(tmp_path).prompt([Message(role="user", content="ab")])
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "no tokenizer can be loaded from it"), ("nothing", "there is no such directory")):
        with pytest.raises(BadInput, match=said):
            TextEncoder(tmp_path / name)
