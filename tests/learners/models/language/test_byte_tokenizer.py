"""A tokenizer made from texts: every text comes back, and what is common is short."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcall.learners.models.language.byte_tokenizer import byte_tokenizer
from rollcall.learners.models.language.tiny_model import write_tiny_model
from tests.needs import require_module

transformers = require_module("transformers")
TEXTS = ["the quick brown fox", "the lazy dog", "the fox and the dog"] * 20
TOKENIZER = byte_tokenizer(TEXTS, vocab_size=300)


@given(text=st.text(max_size=40).filter(lambda text: "<" not in text))
def test_every_text_comes_back_whatever_its_alphabet(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.unk_token_id not in tokens


def test_what_comes_often_is_few_tokens_and_256_bytes_are_tokens_of_their_own() -> None:
    assert len(TOKENIZER.encode("the fox and the dog")) < 10
    plain = byte_tokenizer(TEXTS, vocab_size=259)
    assert len(plain.encode("the fox")) == 7
    assert len(plain.encode("é")) == 2


def test_the_same_texts_make_the_same_tokenizer() -> None:
    again = byte_tokenizer(TEXTS, vocab_size=300)
    assert again.get_vocab() == TOKENIZER.get_vocab()


def test_a_tiny_model_takes_its_vocabulary(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, tokenizer=TOKENIZER, hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1, seed=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.eos_token_id == TOKENIZER.eos_token_id


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=258"):
        byte_tokenizer(TEXTS, vocab_size=258)
