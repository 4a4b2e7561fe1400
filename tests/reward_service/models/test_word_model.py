"""The reward model that counts words: naive Bayes at first, by its definition, whatever else is in the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rollcall.cluster.errors import BadInput
from tests.needs import require

require("transformers")

from rollcall.reward_service.models.reward_model_files import load_reward_model, new_text_model  # noqa: E402
from rollcall.reward_service.models.text_encoder import TextEncoder  # noqa: E402
from rollcall.reward_service.models.word_model import WordsModel, load_words_model, write_words_model  # noqa: E402

BETTER, WORSE = ("a fine film", "fine, really fine"), ("a dull film", "dull")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_words_model(tmp_path / "model", BETTER, WORSE, max_tokens=64)
    return tmp_path / "model"


def score(directory: Path, *texts: str) -> list[float]:
    encoder, module = TextEncoder(directory), new_text_model(directory, seed=0)
    rows = [[*encoder.prompt(""), *encoder.response(text)] for text in texts]
    longest = max(map(len, rows))
    padded = torch.tensor([[*row, *[9] * (longest - len(row))] for row in rows])
    found: list[float] = module(padded, torch.tensor([len(row) for row in rows]))[0].tolist()
    return found


def test_a_text_begins_with_the_log_ratio_of_its_words_and_pairs_over_the_root_of_their_number(directory: Path) -> None:
    # better: a, fine, film, a fine, fine film | fine "," really, "fine ,", ", really", "really fine"
    # worse: a, dull, film, a dull, dull film | dull
    better, worse, features = 5 + 6, 5 + 1, 13
    in_better = {"fine": 2, "film": 1, "fine film": 1}
    in_worse = {"film": 1}
    wanted = sum(
        0.3
        * math.log(((in_better.get(f, 0) + 1) / (better + features)) / ((in_worse.get(f, 0) + 1) / (worse + features)))
        for f in ("fine", "film", "fine film")
    ) / math.sqrt(3)
    assert score(directory, "Fine film") == pytest.approx([wanted], rel=1e-5)


def test_a_word_counts_once_what_is_unknown_not_at_all_and_nothing_says_nothing(directory: Path) -> None:
    once, twice, unknown, nothing = score(directory, "dull", "dull zzz dull", "dull zzz", "zzz")
    assert once == pytest.approx(twice) == pytest.approx(unknown) and once < 0
    assert nothing == 0.0


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(directory: Path) -> None:
    texts = ("fine", "a fine film, really fine", "dull film")
    assert score(directory, *texts) == pytest.approx([value for text in texts for value in score(directory, text)])


def test_the_same_texts_make_the_same_model_in_whatever_order_they_are_counted(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_words_model(tmp_path / name, BETTER, WORSE, max_tokens=64)
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path / name).iterdir()) for name in ("one", "other")]
    assert files[0] == files[1]


def test_what_is_trained_is_the_change_so_that_weight_decay_leads_back_to_naive_bayes(directory: Path) -> None:
    model = load_words_model(directory)
    assert [name for name, _ in model.named_parameters()] == ["change"]
    assert not model.change.any() and model.prior.any()


def test_damaged_files_are_refused_in_one_line(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "prior"}, directory / "model.safetensors")
    with pytest.raises(BadInput, match="no model of words can be loaded") as refused:
        load_reward_model(directory)
    assert "\n" not in str(refused.value)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": "many"}))
    with pytest.raises(BadInput, match="no model of words"):
        load_reward_model(directory)


def test_texts_without_a_word_make_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no word in any of the texts"):
        write_words_model(tmp_path / "model", [" "], ["\n"], max_tokens=64)


def test_it_is_called_as_a_classifier_is(directory: Path) -> None:
    model = load_words_model(directory)
    assert isinstance(model, WordsModel)
    ids = torch.tensor([[3, 4, 0]])
    assert model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 0]])).logits.shape == (1, 1)
