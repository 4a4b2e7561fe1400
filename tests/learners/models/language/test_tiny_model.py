"""The tiny model as everybody else will meet it: through the files it was written to."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rollcall.cluster.errors import BadInput
from rollcall.learners.models.language.tiny_model import character_tokenizer, write_tiny_model
from tests.needs import require_module

transformers = require_module("transformers")

ALPHABET = "0123456789+="
SMALL: dict[str, Any] = {"alphabet": ALPHABET, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
AWKWARD = string.printable + " \u00a0\u2581Ġäß🙂\u0301"  # blanks, markers of other tokenizers, and a combining accent
TOKENIZER = character_tokenizer(AWKWARD)


def load(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(24).remainder(15)[None]
    return model(input_ids=tokens).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_read_from_its_files_computes_what_its_tensors_say(tmp_path: Path, tied: bool) -> None:
    write_tiny_model(tmp_path, tie_word_embeddings=tied, intermediate_size=64, seed=3, **SMALL)
    model = load(tmp_path)
    assert model.config.model_type == "qwen3"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # Once more from the raw tensors, through the architecture that the config names and nothing else.
    tensors = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in tensors) != tied
    again = transformers.Qwen3ForCausalLM(transformers.Qwen3Config.from_pretrained(tmp_path)).eval()
    missing, unexpected = again.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if tied else [], [])
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert float(logits(model).std()) > 0  # it says something
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied


def test_the_default_model_has_about_eight_hundred_thousand_parameters(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, alphabet=ALPHABET, seed=0)
    assert 750_000 < sum(parameter.numel() for parameter in load(tmp_path).parameters()) < 850_000
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["head_dim"], config["vocab_size"]) == (32, 3 + len(ALPHABET))
    assert config["architectures"] == ["Qwen3ForCausalLM"]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_tiny_model(tmp_path / name, seed=seed, **SMALL)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ac"]
    assert weights[0] != weights[1]


def test_writing_a_model_does_not_disturb_the_random_numbers_of_the_process(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    write_tiny_model(tmp_path, seed=5, **SMALL)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


@settings(deadline=None)
@given(st.text(alphabet=AWKWARD))
def test_text_over_the_alphabet_comes_back_as_it_was_one_token_a_character(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert len(tokens) == len(text)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.decode(tokens, skip_special_tokens=True) == text


@settings(deadline=None)
@given(st.text(alphabet=AWKWARD), st.text(alphabet=AWKWARD))
def test_the_tokens_of_a_conversation_are_those_of_its_turns(a: str, b: str) -> None:
    assert TOKENIZER.encode(a) + TOKENIZER.encode(b) == TOKENIZER.encode(a + b)


def test_special_tokens_stand_first_and_other_characters_are_unknown(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.encode("0=") == [3, 3 + ALPHABET.index("=")]
    assert tokenizer.encode("1x 2") == [4, 2, 2, 5]
    assert tokenizer.encode("1<eos>") == [4, 1]
    assert tokenizer.decode([4, 1], skip_special_tokens=True) == "1"


def test_a_tokenizer_read_from_its_files_is_the_one_that_was_written(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, seed=0, **{**SMALL, "alphabet": AWKWARD})
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = " a  b\n\t" + AWKWARD
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")
    assert loaded(["1", "12"], padding=True)["attention_mask"] == [[0, 1], [1, 1]]  # prompts are padded on the left


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alphabet '' is empty"):
        write_tiny_model(tmp_path, alphabet="", seed=0)
    with pytest.raises(ValueError, match="num_heads 4 is no multiple of num_kv_heads 3"):
        write_tiny_model(tmp_path, alphabet="a", num_kv_heads=3, seed=0)


def test_without_transformers_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"pip install rollcall-rl\[lm-cpu\]"):
        write_tiny_model(tmp_path, alphabet="a", seed=0)
